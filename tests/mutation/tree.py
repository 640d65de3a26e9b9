"""Copies of the repository in which faults are planted, with an extension that is linked from the package's objects."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from planting import edited
from torch.utils import cpp_extension

from fused_rnn import _C
from mutation.fault import Fault

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "mutation"
# What tests of the library need of the repository.
COPIED = ("fused_rnn", "csrc", "tests", "benchmarks", "conftest.py", "pyproject.toml", "setup.py")


class BuildError(Exception):
    """A fault does not compile or link."""


def run(command: Sequence[str], folder: Path, seconds: float) -> tuple[int, str]:
    """Run a command, and all processes that it starts, for at most ``seconds``; return its status and its output.

    Raises:
        subprocess.TimeoutExpired: it took longer, and has been killed.
    """
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output


class Package:
    """The package as it was built in this folder: the command and the object of every source.

    One can go on editing the sources, of which this takes a copy, but must not build them before the end of a run.
    """

    def __init__(self) -> None:
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-torch{torch.__version__}"
        ninja = [sys.executable, "-m", "ninja", "-C", str(build)]
        pending = subprocess.run([*ninja, "-n"], capture_output=True, text=True, check=True).stdout
        if "no work to do" not in pending:
            raise BuildError("the package's build is older than its sources: run `make build` first")
        database = subprocess.run([*ninja, "-t", "compdb"], capture_output=True, text=True, check=True).stdout
        self.commands: dict[str, str] = {
            entry["output"]: entry["command"] for entry in json.loads(database) if entry["output"].endswith(".o")
        }
        self.extension = Path(_C.__file__).name
        self.bindings = FOLDER / "bindings.o"
        self.snapshot = FOLDER / "snapshot"
        shutil.rmtree(self.snapshot, ignore_errors=True)
        self.snapshot.mkdir(parents=True)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.so", "results")
                shutil.copytree(source, self.snapshot / name, ignore=ignored)
            else:
                shutil.copy(source, self.snapshot / name)
        shutil.copy(_C.__file__, self.snapshot / self.extension)

    def object_of(self, source: str) -> str:
        """Return the object of a source of csrc/; of a kernel, that of the instruction set that this machine uses."""
        if source == "bindings.cpp":
            return str(self.bindings)
        capability = _C.build_info()["cpu_capability"]
        stem = source.removesuffix(".cpp")
        ends = (f"/{stem}.o", f"/{stem}.{capability}.o")
        (found,) = [output for output in self.commands if output.endswith(ends)]
        return found

    def compile(self, source: str, csrc: Path, output: Path, seconds: float) -> None:
        """Compile a source of a copy of csrc/ with the package's own command."""
        command = self._bindings_command() if source == "bindings.cpp" else self.commands[self.object_of(source)]
        arguments = shlex.split(command)
        arguments.remove("-MMD")  # the file of dependencies would overwrite that of the package
        del arguments[arguments.index("-MF") : arguments.index("-MF") + 2]
        arguments[arguments.index("-o") + 1] = str(output)
        arguments = [argument.replace(str(ROOT / "csrc"), str(csrc)) for argument in arguments]
        self._succeed(arguments, seconds)

    @property
    def objects(self) -> list[str]:
        """All objects of the extension."""
        return [*self.commands, str(self.bindings)]

    def link(self, objects: Sequence[str], output: Path, seconds: float) -> None:
        """Link the extension."""
        compiler = shlex.split(self.commands[self.object_of("ops/schemas.cpp")])[0]
        libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
        libraries += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
        nvcc = next((command.split()[0] for command in self.commands.values() if "nvcc" in command.split()[0]), None)
        if nvcc:
            libraries += [f"-L{Path(nvcc).parents[1] / 'lib64'}", "-lcudart_static", "-lrt", "-ldl", "-lpthread"]
        self._succeed([compiler, "-shared", "-fopenmp", *objects, *libraries, "-o", str(output)], seconds)

    def _bindings_command(self) -> str:
        """Return the command for bindings.cpp, which setuptools compiles with others: that of another source."""
        schemas = ROOT / "csrc" / "ops" / "schemas.cpp"
        command = self.commands[self.object_of("ops/schemas.cpp")].replace(
            str(schemas), str(ROOT / "csrc/bindings.cpp")
        )
        archs = shlex.quote(f'-DFUSED_RNN_CUDA_ARCHS="{_C.build_info()["cuda_archs"]}"')
        return f"{command} -DTORCH_EXTENSION_NAME=_C {archs} -isystem {sysconfig.get_path('include')}"

    @staticmethod
    def _succeed(arguments: list[str], seconds: float) -> None:
        status, output = run(arguments, FOLDER, seconds)
        if status:
            raise BuildError(output[-2000:])


class Tree:
    """A copy of the repository, perhaps with a fault, which is removed at the end of the ``with`` statement."""

    def __init__(self, package: Package, name: str, fault: Fault | None, seconds: float) -> None:
        self.package, self.fault, self.seconds = package, fault, seconds
        self.path = FOLDER / name

    def __enter__(self) -> "Tree":
        """Copy the repository, plant the fault, and build what it changes."""
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            shutil.copytree(self.package.snapshot, self.path)
            return self._prepare()
        except BaseException:
            self.__exit__()
            raise

    def _prepare(self) -> "Tree":
        extension = self.path / "fused_rnn" / self.package.extension
        if not self.fault:
            self.package.link(list(self.package.objects), extension, self.seconds)
            return self
        edits = [self.fault.edit, *self.fault.fewer]
        for name in {name for name, _, _ in edits}:
            file = self.path / name
            file.write_text(edited(name, file.read_text(), edits))
        if self.fault.source:
            self._build(self.fault, extension)
        else:
            (self.path / self.package.extension).rename(extension)
        return self

    def _build(self, fault: Fault, extension: Path) -> None:
        """Compile the source that has the fault, and link the extension with it."""
        changed = self.path / "changed.o"
        self.package.compile(fault.source, self.path / "csrc", changed, self.seconds)
        replaced = self.package.object_of(fault.source)
        # Of a template that is instantiated in two objects, the linker takes that of the first one.
        others = [name for name in self.package.objects if fault.fewer or name != replaced]
        self.package.link([str(changed), *others], extension, self.seconds)

    def __exit__(self, *_: Any) -> None:
        """Remove the copy."""
        shutil.rmtree(self.path, ignore_errors=True)

    def test(self, tests: Sequence[str]) -> tuple[int, str]:
        """Run tests in the copy until one fails; return pytest's status and the end of its output."""
        options = ["-x", "-p", "no:cacheprovider", "-m", "not long and not ecosystem and not needs_cuda"]
        return run([sys.executable, "-m", "pytest", *options, *tests], self.path, self.seconds)
