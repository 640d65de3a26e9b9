"""What the CUDA compiler made of the kernels: read from the library, and from the logs kept beside the objects."""

import re
import struct
from pathlib import Path

import pytest

from fused_rnn import _C

BUILD = Path(__file__).parent.parent / "build"
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
# How a source's machine code and PTX begin in a library, and their kinds.
FATBIN = struct.pack("<IH", 0xBA55ED50, 1)
KINDS = {1: "compute", 2: "sm"}


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


def machine_code(library: bytes) -> list[list[str]]:
    """Return for each CUDA source in a library what it was compiled to, such as ["sm_80", "compute_90", "sm_90"]."""
    found = []
    at = library.find(FATBIN)
    while at >= 0:
        header, size = struct.unpack_from("<HQ", library, at + 6)
        end = at + header + size
        at += header
        names = []
        while at < end:
            kind, header, size, architecture = struct.unpack_from("<H2xIQ12xI", library, at)
            names.append(f"{KINDS[kind]}_{architecture}")
            at += header + size
        found.append(names)
        at = library.find(FATBIN, end)
    return found


def test_every_source_is_in_the_library() -> None:
    wanted = _C.build_info()["cuda_archs"].split(";")
    if wanted == [""]:
        pytest.skip("the package was built without CUDA")
    numbers = [re.sub(r"\D", "", architecture) for architecture in wanted]
    compiled = {*(f"sm_{number}" for number in numbers), f"compute_{numbers[-1]}"}
    found = machine_code(Path(_C.__file__).read_bytes())
    assert len(found) == (logs()[0].parent / "build.ninja").read_text().count(": cuda ")
    assert [names for names in found if {*names} != compiled] == []
