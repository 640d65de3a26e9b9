"""Registers, spills and architectures of the compiled CUDA kernels, and whether cuBLAS is found at run time.

They are read from the library and from the compiler's logs beside the objects; no GPU is needed.
"""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch
from compiled import build_folder, kernels, logs

from fused_rnn import _C

# The header of a source's machine code and PTX in a library, their kinds, and the flags for the letters of
# architectures, as found in the output of nvcc 13.0. Code for sm_90a or compute_90a runs only on compute capability
# 9.0.
FATBIN = struct.pack("<IH", 0xBA55ED50, 1)
KINDS = {1: "compute", 2: "sm"}
LETTERS = {1 << 20: "a", 1 << 21: "f"}


def architectures() -> list[str]:
    """Return the architectures for which the library was built; none without CUDA."""
    return list(filter(None, _C.build_info()["cuda_archs"].split(";")))


def test_no_kernel_spills() -> None:
    found = [kernel for log in logs() for kernel in kernels(log.read_text())]
    if not found:
        pytest.skip("the package was built without CUDA")
    assert sum("persistent" in kernel["name"] for kernel in found) > 100
    assert {kernel["architecture"] for kernel in found} >= {f"sm_{architecture}" for architecture in architectures()}
    spilling = [kernel for kernel in found if kernel["stores"] != "0" or kernel["loads"] != "0"]
    assert spilling == []
    # 256 threads of a block share the 65,536 registers of a multiprocessor.
    assert max(int(kernel["registers"]) for kernel in found) <= 255


HOPPER = {
    "correlate", "sum_weight_gradient", "add_weight_gradient", "convolve_first_layer", "sum_first_layer_gradient",
    "add_first_layer_gradient",
}  # fmt: skip
"""The kernels of masked convolution for compute capability 9.0."""
SERIAL = "wgmma.mma_async instructions are serialized"
"""What ptxas says, for various reasons, if it does not let one start before the last one is done."""


def test_matrix_instructions_follow_each_other_at_once() -> None:
    if "90a" not in architectures():
        pytest.skip("the package was built without CUDA for sm_90a")
    every = [log.read_text() for log in logs() if "conv" in log.parts]
    names = " ".join(kernel["name"] for log in every for kernel in kernels(log) if kernel["architecture"] == "sm_90a")
    assert {kernel for kernel in HOPPER if not re.search(rf"\d{kernel}I", names)} == set()
    assert [line for log in every for line in log.splitlines() if SERIAL in line] == []


MMA = {"mma_correlate", "mma_sum_weight_gradient", "mma_add_weight_gradient"}
"""The kernels of masked convolution for other GPUs."""


def test_kernels_for_single_warps_are_built_for_every_architecture() -> None:
    if not architectures():
        pytest.skip("the package was built without CUDA")
    every = [kernel for log in logs() if "conv" in log.parts for kernel in kernels(log.read_text())]
    for architecture in architectures():
        names = " ".join(kernel["name"] for kernel in every if kernel["architecture"] == f"sm_{architecture}")
        assert {kernel for kernel in MMA if not re.search(rf"\d{kernel}I", names)} == set()


def test_a_spill_is_seen() -> None:
    log = """ptxas info    : Compiling entry function '_Z10persistentv' for 'sm_80'
ptxas info    : Function properties for _Z10persistentv
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers"""
    assert kernels(log) == [
        {"name": "_Z10persistentv", "architecture": "sm_80", "stores": "8", "loads": "4", "registers": "255"}
    ]


def machine_code(library: bytes) -> list[list[str]]:
    """Return the targets of each CUDA source in a library, such as ["sm_80", "compute_90", "sm_90a"]."""
    found = []
    at = library.find(FATBIN)
    while at >= 0:
        header, size = struct.unpack_from("<HQ", library, at + 6)
        end = at + header + size
        at += header
        names = []
        while at < end:
            kind, header, size, architecture, flags = struct.unpack_from("<H2xIQ12xI8xQ", library, at)
            letters = "".join(letter for flag, letter in LETTERS.items() if flags & flag)
            names.append(f"{KINDS[kind]}_{architecture}{letters}")
            at += header + size
        found.append(names)
        at = library.find(FATBIN, end)
    return found


def test_letters_are_seen(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    source, made = tmp_path / "one.cu", tmp_path / "one.o"
    source.write_text("__global__ void one() {}")
    for architecture, names in {
        "compute_90,code=[sm_90a,compute_90]": {"sm_90a", "compute_90"},
        "compute_90a,code=[sm_90a,compute_90a]": {"sm_90a", "compute_90a"},
        "compute_90,code=[sm_90,compute_90]": {"sm_90", "compute_90"},
    }.items():
        subprocess.run([nvcc, f"-gencode=arch={architecture}", "-c", str(source), "-o", str(made)], check=True)
        assert [{*found} for found in machine_code(made.read_bytes())] == [names]


def test_every_source_is_in_the_library() -> None:
    wanted = architectures()
    if not wanted:
        pytest.skip("the package was built without CUDA")
    # The PTX must be for an architecture without a letter, since no newer GPU accepts PTX with one.
    compiled = {*(f"sm_{architecture}" for architecture in wanted), f"compute_{wanted[-1].rstrip('af')}"}
    found = machine_code(Path(_C.__file__).read_bytes())
    folder = build_folder()
    assert folder is not None
    assert len(found) == (folder / "build.ninja").read_text().count(": cuda ")
    assert [names for names in found if {*names} != compiled] == []


def test_cublas_is_found_where_torch_has_it() -> None:
    if not architectures():
        pytest.skip("the package was built without CUDA")
    assert _C.finds_cublas() == (torch.version.cuda is not None)
