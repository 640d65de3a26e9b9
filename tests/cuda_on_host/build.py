"""Builds the kernels of csrc/cuda/ for the CPU as a library for ctypes, all of them or some from edited sources.

It also builds the operators of csrc/ops/ that call the kernels, as a library for torch.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from planting import Edit, edited
from torch.utils import cpp_extension

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
FOLDER = HERE.parent.parent / "build" / "cuda_on_host"
CXX = os.environ.get("CXX", "g++")
OWN = (
    "boxes", "convolutions", "copies", "driver", "exports", "fibers", "hopper_kernels", "matrix", "pixels", "runtime",
    "warpgroup",
)  # fmt: skip
"""The sources of this folder that all libraries have."""
# No fortification: its longjmp refuses to leave one stack for another.
FLAGS = "-std=c++20 -fPIC -pthread -U_FORTIFY_SOURCE -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-class-memaccess"


def find_headers() -> Path:
    """Return the folder of the CUDA toolkit's headers, or skip the test."""
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and Path(nvcc).resolve().parent.parent]
    for place in places:
        if place and (Path(place) / "include" / "cuda_bf16.h").exists():
            return Path(place) / "include"
    pytest.skip("no headers of a CUDA toolkit: set CUDA_HOME to its folder")


def sources(csrc: Path = CSRC) -> list[Path]:
    """Return what the library is made of."""
    own = [HERE / f"{name}.cpp" for name in OWN]
    return [*own, *sorted((csrc / "cuda").rglob("*.cu"))]


def build() -> Path:
    """Build the library, as far as it is not built yet, and return its path."""
    return _make(FOLDER, sources(), [], CSRC, "-O1")


def build_glue() -> Path:
    """Build the library of the operators with all that csrc/ops/ has for a GPU, and return its path."""
    build()
    # glue.cpp stands in for torch_cuda.cpp and the *_cpu.cpp, and for the kernels' questions to the GPU.
    glue = [path for path in sorted((CSRC / "ops" / "cuda").glob("*.cpp")) if path.stem != "torch_cuda"]
    common = ("layer", "masked_conv2d", "pixel_network", "recurrent", "schemas", "threads")
    glue += [CSRC / "ops" / f"{name}.cpp" for name in common] + [HERE / "glue.cpp"]
    others = {"convolutions", "exports", "device_info", "hopper_kernels", "launch", "pixels"}
    kernels = [str(FOLDER / _object(source)) for source in sources() if source.stem not in others]
    torch_headers = " ".join(f"-isystem {path}" for path in cpp_extension.include_paths())
    flags = f"-O0 -fvisibility=hidden -Wno-unused-parameter -I{HERE / 'shim'} {torch_headers}"
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch_cpu", "-lc10"]
    folder = FOLDER / f"glue-torch{torch.__version__}"
    return _make(folder, glue, kernels, CSRC, flags, " ".join(libraries))


def build_variant(name: str, edits: Sequence[Edit], stems: Sequence[str], flags: str = "-O1") -> Path:
    """Build another library, with its own objects of the sources ``stems``, made from a copy of csrc/ with ``edits``.

    Where a function is in objects of both, the linker takes the first one: that of the variant.
    """
    build()
    folder = FOLDER / name
    csrc = _copy(folder / "csrc", edits)
    others = [str(FOLDER / _object(source)) for source in sources() if source.stem not in stems]
    return _make(folder, [source for source in sources(csrc) if source.stem in stems], others, csrc, flags)


def _copy(target: Path, edits: Sequence[Edit]) -> Path:
    """Copy csrc/ with edits, and leave alone what is there and the same."""
    files = [
        path
        for folder in ("cuda", "params", "cells", "distributions")
        for path in (CSRC / folder).rglob("*")
        if path.is_file()
    ]
    missing = {file for file, _, _ in edits} - {path.relative_to(CSRC).as_posix() for path in files}
    assert not missing, f"{missing} are not among the files that are copied"
    for path in files:
        name = path.relative_to(CSRC).as_posix()
        text = edited(name, path.read_text(), edits)
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or copy.read_text() != text:
            copy.write_text(text)
    return target


def _object(source: Path) -> str:
    """Return the name of what a source is compiled to: that of its folder and its own."""
    return f"{source.parent.name}-{source.stem}.o"


def _make(
    folder: Path, compiled: Sequence[Path], objects: Sequence[str], csrc: Path, flags: str, libraries: str = ""
) -> Path:
    own = [_object(source) for source in compiled]
    command = f"{CXX} {FLAGS} {flags} -DFUSED_RNN_CUDA_ON_HOST -I{csrc} -I{HERE} -isystem {find_headers()}"
    lines = [
        f"rule cxx\n  command = {command} -MMD -MF $out.d -x c++ -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {CXX} {flags} -shared -pthread $in -o $out {libraries}",
        *(f"build {output}: cxx {source}" for output, source in zip(own, compiled, strict=True)),
        f"build library.so: link {' '.join([*own, *objects])}",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        ninja = [sys.executable, "-m", "ninja", "-C", str(folder), "-j2", "--quiet"]
        done = subprocess.run(ninja, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "library.so"
