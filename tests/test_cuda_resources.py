"""What the CUDA compiler made of the kernels: read from the logs that the build keeps beside the objects."""

import re
from pathlib import Path

import pytest

BUILD = Path(__file__).parent.parent / "build"
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def kernels(log: str) -> list[dict[str, str]]:
    """Return name, architecture, spills and registers of each kernel in a log of ptxas."""
    return [entry.groupdict() for entry in ENTRY.finditer(log)]


def logs() -> list[Path]:
    """Return the logs of the latest build with CUDA."""
    folders = sorted({log.parent for log in BUILD.glob("*/*.cuda.o.log")}, key=lambda folder: folder.stat().st_mtime)
    return sorted(folders[-1].glob("*.cuda.o.log")) if folders else []


def test_no_kernel_spills() -> None:
    found = [kernel for log in logs() for kernel in kernels(log.read_text())]
    if not found:
        pytest.skip("the package was built without CUDA")
    assert sum("persistent" in kernel["name"] for kernel in found) > 100
    assert {kernel["architecture"] for kernel in found} >= {"sm_80", "sm_90a"}
    spilling = [kernel for kernel in found if kernel["stores"] != "0" or kernel["loads"] != "0"]
    assert spilling == []
    # 256 threads of a block share the 65,536 registers of a multiprocessor.
    assert max(int(kernel["registers"]) for kernel in found) <= 255


def test_a_spill_is_seen() -> None:
    log = """ptxas info    : Compiling entry function '_Z10persistentv' for 'sm_80'
ptxas info    : Function properties for _Z10persistentv
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers"""
    assert kernels(log) == [
        {"name": "_Z10persistentv", "architecture": "sm_80", "stores": "8", "loads": "4", "registers": "255"}
    ]
