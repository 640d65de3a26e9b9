"""Builds the program that compares the kernels of two instruction sets: from the objects of the package, or anew."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / "build"
FOLDER = BUILD / "instruction_sets"
# The kernels that multiply bfloat16 in pairs: those of all cells.
RECURRENT = {f"{path.stem}_kernel" for path in (HERE.parents[1] / "csrc" / "cells").glob("*.h")}


class Shipped(NamedTuple):
    """How the package itself was built."""

    compiler: str
    """The compiler with all flags that do not depend on the instruction set."""
    kernels: dict[str, list[tuple[Path, str, Path]]]
    """For each instruction set the source, the flags and the object of each kernel."""


def shipped() -> Shipped:
    """Read it from what setup.py has left for ninja."""
    text = (BUILD / f"{sys.implementation.cache_tag}-torch{torch.__version__}" / "build.ninja").read_text()
    compiler = re.findall(r"^cxx = (.*)$", text, re.MULTILINE)[0]
    kernels: dict[str, list[tuple[Path, str, Path]]] = {}
    for object_, source, flags in re.findall(
        r"^build (\S+): cxx (\S+_kernel\.cpp)\n  flags = (.*)$", text, re.MULTILINE
    ):
        kernels.setdefault(Path(object_).suffixes[-2][1:], []).append((Path(source), flags, Path(object_)))
    return Shipped(compiler, kernels)


def build(first: str, second: str, sanitizers: str = "", static: bool = False, stand_in: bool = False) -> Path:
    """Build the program, as far as it is not built yet.

    Args:
        first: an instruction set, as ``csrc/cpu/per_capability.h`` names it.
        second: another, or the same one.
        sanitizers: as ``-fsanitize=`` takes them; then the kernels are compiled so, else they are the package's.
        static: whether the program needs no library of the system.
        stand_in: whether recurrent layers are compiled to multiply bfloat16 in pairs without an instruction for it.

    Returns:
        Its path. It takes a number of problems and a seed, prints what differs, and ends with 1 if anything does.
    """
    package = shipped()
    folder = FOLDER / "-".join(
        [first, second, *filter(None, sanitizers.split(",")), *["static"] * static, *["pairs"] * stand_in]
    )
    folder.mkdir(parents=True, exist_ok=True)
    checked = f" -O1 -g1 -fsanitize={sanitizers} -fno-sanitize-recover=all" if sanitizers else ""
    lines = [
        "rule cxx\n  command = $flags -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {package.compiler} {checked} {'-static' if static else ''} $in -o $out",
    ]
    objects = []

    def compiled(source: Path, name: str, flags: str) -> None:
        objects.append(folder / name)
        lines.append(f"build {objects[-1]}: cxx {source}\n  flags = {package.compiler} {flags}{checked}")

    for name in {first: 0, second: 0}:
        for source, flags, object_ in package.kernels[name]:
            if sanitizers or (stand_in and source.stem in RECURRENT):
                compiled(source, object_.name, flags + " -O1 -DFUSED_RNN_PAIRS_STAND_IN" * stand_in)
            else:
                objects.append(object_)
    compiled(HERE / "main.cpp", "main.o", f"-DFIRST={first} -DSECOND={second}")
    compiled(HERE / "stand_ins.cpp", "stand_ins.o", "")
    lines.append(f"build {folder / 'compare'}: link {' '.join(map(str, objects))}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    ninja = [sys.executable, "-m", "ninja", "-C", str(folder), "-j2", "--quiet"]
    done = subprocess.run(ninja, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "compare"
