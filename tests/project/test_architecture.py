"""The allowed dependencies, the files that each operator and cell must have, and where the version is stated.

Dependencies are checked in all includes and imports. The required files are derived from the operators
registered with PyTorch and the cells in csrc/cells/. So the recipe in docs/add-a-cell.md is tested: if a new cell lacks
something, a test here names it.
"""

import ast
import re
from pathlib import Path

import cases
import pytest
import torch

import fused_rnn
from fused_rnn import _C, functional, modules, reference
from fused_rnn.convert import COUNTERPARTS

ROOT = Path(__file__).parents[2]
CSRC, PACKAGE = ROOT / "csrc", ROOT / "fused_rnn"
SCHEMAS = [schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("fused_rnn::")]
# An operator and those that belong to it are in the same files.
OPERATORS = sorted({re.sub("^fused_rnn::|_(backward|fused|pack|freeze|frozen)$", "", name) for name in SCHEMAS})
# The suffixes of operators that belong to another one.
SECOND = {
    "recurrent": ["_backward", "_freeze", "_frozen"],
    "masked_conv2d": ["_fused", "_backward"],
    "gated_activation": ["_backward"],
    "pixel_network": ["_pack"],
}
# The files of operators that run on a GPU, beside those that all have. The gated activation has no kernel of its own
# there.
ON_A_GPU = {
    "recurrent": ["csrc/ops/cuda/recurrent.cpp", "csrc/cuda/recurrent.cu"],
    "masked_conv2d": ["csrc/ops/cuda/masked_conv2d.cpp", "csrc/cuda/masked_conv2d.cu"],
    "gated_activation": ["csrc/ops/cuda/gated_activation.cpp"],
    "pixel_network": ["csrc/ops/cuda/pixel_network.cpp", "csrc/cuda/pixel_network.cu"],
}
# The evaluation of a network pixel by pixel is not differentiable, and is defined by what the whole image gives.
WITHOUT_GRADIENT = {"pixel_network"}
# Each header of csrc/cells/ has the cells of one public name; rnn.h, for example, has those with tanh and with ReLU.
CELLS = sorted(path.stem for path in (CSRC / "cells").glob("*.h") if path.stem != "cells")
TYPES = ("float32", "bfloat16", "float16")

# For each folder of csrc, what its files may include besides the C++ library and files of the same folder.
MAY_INCLUDE = {
    "bindings": r"cells/|cpu/recurrent/plan.h$|ops/|cuda/[\w/]+\.h$|ATen/|pybind11/|torch/csrc/\w+/python_variable.h$",
    "ops": r"(cells|distributions|params)/|(cpu|cuda)/[\w/]+\.h$|ATen/|c10/|torch/(library|csrc/)|"
    r"(dlfcn|omp|sys/mman)\.h$",
    "cpu": r"params/|cells/|distributions/|ATen/cpu/vec/|(omp|sched|unistd|linux/futex|sys/syscall)\.h$",
    "cuda": r"params/|cells/|distributions/|cuda\w*\.h$|hopper_on_host\.h$|cooperative_groups|mma\.h$",
    "cells": r"$^",
    "distributions": r"params/",
    "params": r"$^",
}
# For folders in which it is restricted, what they may include of the C++ library.
MAY_INCLUDE_STANDARD = {"cells": r"$^", "distributions": r"$^", "params": r"cstdint$"}

# For each module or folder of fused_rnn, what other parts of the package it may import.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {
        "modules", "models", "autoregressive", "functional", "reference", "convert", "explain", "flops", "keras",
        "onnx", "config", "_version",
    },
    "config": {"_C", "_version"},
    "convert": {"convert_masked_conv2d", "modules"},
    "convert_masked_conv2d": {"functional", "modules", "reference"},
    "explain": {"_C", "functional", "modules"},
    "flops": {"ops", "reference"},
    "keras": {"foreign", "modules"},
    "onnx": {"foreign", "functional", "modules", "ops"},
    "foreign": {"modules"},
    "autoregressive": {"models"},
    "models": {"modules", "functional"},
    "modules": {"functional", "reference"},
    "functional": {"autograd", "ops", "reference"},
    "autograd": {"ops", "reference"},
    "ops": {"_C"},
    "reference": set(),
    "_version": set(),
    "_C": set(),
}  # fmt: skip


def includes() -> list[tuple[str, str]]:
    """Return all pairs of a file of csrc and the name of a file that it includes."""
    found = []
    for path in sorted(CSRC.rglob("*")):
        if path.suffix in {".cpp", ".h", ".cu", ".cuh"}:
            names = re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)
            found += [(path.relative_to(CSRC).as_posix(), name) for name in names]
    return found


def imports() -> list[tuple[str, str]]:
    """Return all pairs of a file of fused_rnn and a qualified name that it imports."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            found += [(path.relative_to(PACKAGE).as_posix(), name) for name in names]
    return found


def include_is_allowed(file: str, name: str) -> bool:
    folder = file.split("/")[0].removesuffix(".cpp")
    if name.startswith(f"{folder}/"):
        return True
    is_standard = "/" not in name and "." not in name
    pattern = MAY_INCLUDE_STANDARD.get(folder, "") if is_standard else MAY_INCLUDE[folder]
    return re.match(pattern, name) is not None


def import_is_allowed(file: str, name: str) -> bool:
    folder = file.split("/")[0].removesuffix(".py")
    package, *rest = name.split(".")
    if package != "fused_rnn":
        return folder != "reference" or package in {"torch", "collections", "functools", "typing"}
    return rest[0] == folder or rest[0] in MAY_IMPORT[folder]


def test_there_is_something_to_read() -> None:
    assert len({file for file, _ in includes()}) > 10
    assert len({file for file, _ in imports()}) > 20


def test_includes() -> None:
    assert [pair for pair in includes() if not include_is_allowed(*pair)] == []


def test_imports() -> None:
    assert [pair for pair in imports() if not import_is_allowed(*pair)] == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("cells/lstm.h", "cmath"), ("cells/lstm.h", "params/layer.h"), ("params/layer.h", "vector"),
        ("params/layer.h", "cells/lstm.h"), ("cpu/lstm_kernel.cpp", "ATen/core/Tensor.h"),
        ("cpu/lstm_kernel.cpp", "ops/layer.h"), ("cpu/lstm_kernel.cpp", "torch/library.h"),
        ("cuda/recurrent.cu", "cpu/recurrent.h"), ("cuda/recurrent.cu", "c10/core/Device.h"),
        ("ops/recurrent.cpp", "torch/extension.h"),
        ("bindings.cpp", "torch/extension.h"),
    ],
)  # fmt: skip
def test_a_breach_in_includes_is_seen(file: str, name: str) -> None:
    assert not include_is_allowed(file, name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("reference/lstm.py", "fused_rnn.ops.recurrent"), ("reference/lstm.py", "numpy"),
        ("ops/recurrent.py", "fused_rnn.autograd"), ("autograd/recurrent.py", "fused_rnn.functional"),
        ("functional/lstm.py", "fused_rnn.modules"),
        ("modules/lstm.py", "fused_rnn.autograd"), ("functional/lstm.py", "fused_rnn.LSTM"),
        ("convert.py", "fused_rnn.functional"), ("modules/lstm.py", "fused_rnn.convert"),
    ],
)  # fmt: skip
def test_a_breach_in_imports_is_seen(file: str, name: str) -> None:
    assert not import_is_allowed(file, name)


def test_the_operators() -> None:
    assert OPERATORS == ["gated_activation", "masked_conv2d", "pixel_network", "recurrent"]
    assert {*SCHEMAS} == {f"fused_rnn::{name}{suffix}" for name in OPERATORS for suffix in ("", *SECOND.get(name, ()))}


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_has_one_name_in_every_folder(operator: str) -> None:
    differentiable = () if operator in WITHOUT_GRADIENT else ("autograd", "reference")
    python = [f"fused_rnn/{folder}/{operator}.py" for folder in ("ops", "functional", *differentiable)]
    cpp = [f"csrc/ops/{operator}.cpp", f"csrc/cpu/{operator}.h"]
    for file in [*python, *cpp, *ON_A_GPU.get(operator, ()), f"tests/operators/test_{operator}.py"]:
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_has_its_files(name: str) -> None:
    """The files that belong to one cell: the first part of docs/add-a-cell.md."""
    folders = ("functional", "modules", "reference")
    python = [f"fused_rnn/{folder}/{name}{suffix}.py" for folder in folders for suffix in ("", "_cell")]
    passes = [f"{name}_{direction}_{dtype}.cu" for direction in ("forward", "backward") for dtype in TYPES]
    cuda = [f"csrc/cuda/persistent/instances/{file}" for file in passes]
    for file in [*python, f"csrc/cpu/{name}_kernel.cpp", *cuda]:
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_named_where_it_must_be(name: str) -> None:
    """The lines of a cell in files that all cells share: the second part of docs/add-a-cell.md."""
    cells_of_header = [cell for cell in _C.cells() if cell.split("_")[0] == name]
    header = (CSRC / "cells" / f"{name}.h").read_text()
    assert sorted(re.findall(r'kName = "(\w+)"', header)) == sorted(cells_of_header), (
        "csrc/cells/cells.h must list its structs"
    )
    listed = re.findall(r"\bX\((\w+)\)", (CSRC / "cells" / "cells.h").read_text())
    structs = [struct for struct in listed if re.search(rf"^struct {struct}\b", header, re.MULTILINE)]
    instances = (CSRC / "cpu" / f"{name}_kernel.cpp").read_text()
    assert len(structs) == len(cells_of_header)
    assert [struct for struct in structs if f"FUSED_RNN_INSTANTIATE({struct})" not in instances] == []
    layer, cell = name.upper(), f"{name.upper()}Cell"
    for module in (fused_rnn, modules):
        assert {layer, cell} <= {*module.__all__}
    for functions in (functional, reference):
        assert {name, f"{name}_cell"} <= {*functions.__all__}
    assert {getattr(fused_rnn, layer), getattr(fused_rnn, cell)} <= {*COUNTERPARTS.values()}
    assert layer in cases.KINDS
    assert {*cells_of_header} <= {*cases.CELLS.values()}
    assert {*cells_of_header} <= {*reference.CELLS}


def test_every_cell_has_a_header_and_a_definition() -> None:
    assert {cell.split("_")[0] for cell in _C.cells()} == {*CELLS}
    assert _C.cells().keys() == reference.CELLS.keys()


def test_version_is_stated_once() -> None:
    files = [ROOT / "setup.py", ROOT / "pyproject.toml", *PACKAGE.glob("**/*.py"), *CSRC.glob("**/*.cpp")]
    stating = [file.name for file in files if f'"{fused_rnn.__version__}"' in file.read_text()]
    assert stating == ["_version.py"]
