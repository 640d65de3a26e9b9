"""Builds the program that compares the kernels of two instruction sets, from the package's objects or from sources."""

import fcntl
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / "build"
FOLDER = BUILD / "instruction_sets"
# The kernels in plain loops, of plain.h.
PLAIN = "PLAIN"
# The kernels that multiply bfloat16 in pairs: those of all cells.
RECURRENT = {f"{path.stem}_kernel" for path in (HERE.parents[1] / "csrc" / "cells").glob("*.h")}


class Shipped(NamedTuple):
    """The commands with which the package itself was built."""

    compiler: str
    """The compiler, with all flags that do not depend on the instruction set."""
    kernels: dict[str, list[tuple[Path, str, Path]]]
    """For each instruction set, the source, the flags and the object of each kernel."""


def shipped() -> Shipped:
    """Read the commands from the build.ninja that setup.py wrote."""
    text = (BUILD / f"{sys.implementation.cache_tag}-torch{torch.__version__}" / "build.ninja").read_text()
    compiler = re.findall(r"^cxx = (.*)$", text, re.MULTILINE)[0]
    kernels: dict[str, list[tuple[Path, str, Path]]] = {}
    for object_, source, flags in re.findall(
        r"^build (\S+): cxx (\S+_kernel\.cpp)\n  flags = (.*)$", text, re.MULTILINE
    ):
        kernels.setdefault(Path(object_).suffixes[-2][1:], []).append((Path(source), flags, Path(object_)))
    return Shipped(compiler, kernels)


def build(first: str, second: str, sanitizers: str = "", static: bool = False, stand_in: bool = False) -> Path:
    """Build the program, or only what has changed of it.

    Args:
        first: an instruction set, by its name in ``csrc/cpu/kit/per_capability.h``, or PLAIN for plain loops.
        second: another instruction set, or the same one.
        sanitizers: the argument of ``-fsanitize=`` with which to compile the kernels; empty for the package's objects.
        static: whether to link the program statically.
        stand_in: whether to compile recurrent layers such that they multiply pairs of bfloat16 without the instruction.

    Returns:
        The path of the program. Its arguments are a number of problems and a seed; it prints all differences, and ends
        with 1 if there are any.
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
        for source, flags, object_ in package.kernels[name] if name != PLAIN else ():
            if sanitizers or (stand_in and source.stem in RECURRENT):
                compiled(source, object_.name, flags + " -O1 -DFUSED_RNN_PAIRS_STAND_IN" * stand_in)
            else:
                objects.append(object_)
    compiled(HERE / "main.cpp", "main.o", f"-DFIRST={first} -DSECOND={second}")
    compiled(HERE / "stand_ins.cpp", "stand_ins.o", "")
    lines.append(f"build {folder / 'compare'}: link {' '.join(map(str, objects))}")
    with (folder / "lock").open("w") as lock:  # against tests in other processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        ninja = [sys.executable, "-m", "ninja", "-C", str(folder), "-j2", "--quiet"]
        done = subprocess.run(ninja, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "compare"
