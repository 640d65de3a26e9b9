"""Builds the kernels of csrc/cuda/ for the CPU, as a library for ctypes."""

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# No fortification: its longjmp refuses to leave one stack for another.
FLAGS = "-std=c++20 -fPIC -pthread -U_FORTIFY_SOURCE -Wall -Wextra -Werror -Wno-unknown-pragmas -x c++"
SANITIZE = "-g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
# Only this one needs a GPU's driver.
NOT_FOR_HOST = {"device_info.cu"}


def find_headers() -> Path:
    """Return the folder of the CUDA toolkit's headers, or skip the test."""
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and Path(nvcc).resolve().parent.parent]
    for place in places:
        if place and (Path(place) / "include" / "cuda_bf16.h").exists():
            return Path(place) / "include"
    pytest.skip("no headers of a CUDA toolkit: set CUDA_HOME to its folder")


def build(folder: Path, csrc: Path = ROOT / "csrc", kernels: str = "*_*ward_*", flags: str = "-O1") -> Path:
    """Build the library, as far as it is not built yet.

    Args:
        folder: where to build.
        csrc: the sources.
        kernels: pattern of the names of the files with persistent kernels; those of other files must not be called.
        flags: additional flags for the compiler.

    Returns:
        The path of the library.
    """
    headers = find_headers()
    sources = [HERE / f"{name}.cpp" for name in ("fibers", "matrix", "exports")]
    sources += [csrc / "cuda" / f"{name}.cu" for name in ("recurrent", "persistent_plan")]
    sources += sorted((csrc / "cuda").glob(f"{kernels}.cu"))
    objects = [f"{source.stem}.o" for source in sources]
    command = f"{os.environ.get('CXX', 'g++')} {FLAGS} {flags} -DFUSED_RNN_CUDA_ON_HOST -I{csrc} -I{HERE} -isystem {headers}"
    rules = [
        f"rule cxx\n  command = {command} -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {os.environ.get('CXX', 'g++')} {flags} -shared -pthread $in -o $out",
        *(f"build {output}: cxx {source}" for output, source in zip(objects, sources, strict=True)),
        f"build library.so: link {' '.join(objects)}",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text("\n".join(rules) + "\n")
        ninja = [sys.executable, "-m", "ninja", "-C", str(folder), "-j2", "--quiet"]
        done = subprocess.run(ninja, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "library.so"
