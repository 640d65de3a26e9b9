"""Who may use whom, read from the includes and the imports; and that an operator has one name in every folder."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC, PACKAGE = ROOT / "csrc", ROOT / "fused_rnn"
OPERATORS = ["lstm", "gru", "masked_conv2d"]
ON_A_GPU = ["lstm", "gru"]

# For each folder of csrc what its files may include, beside the C++ library; a folder includes its own files freely.
MAY_INCLUDE = {
    "bindings": r"ops/|cuda/[\w/]+\.h$|ATen/|pybind11/",
    "ops": r"params/|cpu/[\w/]+\.h$|cuda/[\w/]+\.h$|ATen/|c10/|torch/(library|csrc/)|dlfcn\.h$",
    "cpu": r"params/|cells/|ATen/cpu/vec/|(omp|sched)\.h$",
    "cuda": r"params/|cells/|cuda\w*\.h$|cooperative_groups|mma\.h$",
    "cells": r"$^",
    "params": r"$^",
}
# What a folder may include of the C++ library, where that is little.
MAY_INCLUDE_STANDARD = {"cells": r"$^", "params": r"cstdint$"}

# For each module or folder of fused_rnn what else of the package it may import.
MAY_IMPORT = {
    "__init__": {"modules", "functional", "reference", "convert", "explain", "keras", "onnx", "config", "_version"},
    "config": {"_C", "_version"},
    "convert": {"modules"},
    "explain": {"_C", "functional", "modules"},
    "keras": {"foreign", "modules"},
    "onnx": {"foreign", "modules", "reference"},
    "foreign": {"modules"},
    "modules": {"functional", "reference"},
    "functional": {"autograd"},
    "autograd": {"ops", "reference"},
    "ops": {"_C"},
    "reference": set(),
    "_version": set(),
    "_C": set(),
}


def includes() -> list[tuple[str, str]]:
    """Return each file of csrc with each of its includes."""
    found = []
    for path in sorted(CSRC.rglob("*")):
        if path.suffix in {".cpp", ".h", ".cu", ".cuh"}:
            names = re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)
            found += [(path.relative_to(CSRC).as_posix(), name) for name in names]
    return found


def imports() -> list[tuple[str, str]]:
    """Return each file of fused_rnn with each name that it imports, in full."""
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
        ("cells/lstm.h", "cmath"), ("cells/lstm.h", "params/recurrent.h"), ("params/recurrent.h", "vector"),
        ("params/recurrent.h", "cells/lstm.h"), ("cpu/lstm_kernel.cpp", "ATen/core/Tensor.h"),
        ("cpu/lstm_kernel.cpp", "ops/recurrent.h"), ("cpu/lstm_kernel.cpp", "torch/library.h"),
        ("cuda/lstm.cu", "cpu/lstm.h"), ("cuda/lstm.cu", "c10/core/Device.h"), ("ops/lstm.cpp", "torch/extension.h"),
        ("ops/lstm.cpp", "cells/lstm.h"), ("bindings.cpp", "torch/extension.h"),
    ],
)  # fmt: skip
def test_a_breach_in_includes_is_seen(file: str, name: str) -> None:
    assert not include_is_allowed(file, name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("reference/lstm.py", "fused_rnn.ops.lstm"), ("reference/lstm.py", "numpy"),
        ("ops/lstm.py", "fused_rnn.autograd"), ("autograd/lstm.py", "fused_rnn.functional"),
        ("functional/lstm.py", "fused_rnn.ops.lstm"),
        ("modules/lstm.py", "fused_rnn.autograd"), ("functional/lstm.py", "fused_rnn.LSTM"),
        ("convert.py", "fused_rnn.functional"), ("modules/lstm.py", "fused_rnn.convert"),
    ],
)  # fmt: skip
def test_a_breach_in_imports_is_seen(file: str, name: str) -> None:
    assert not import_is_allowed(file, name)


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_has_one_name_in_every_folder(operator: str) -> None:
    python = [
        f"fused_rnn/{folder}/{operator}.py" for folder in ("ops", "autograd", "functional", "modules", "reference")
    ]
    cpp = [f"csrc/ops/{operator}.cpp", f"csrc/cpu/{operator}.h", f"csrc/cpu/{operator}_kernel.cpp"]
    cuda = [f"csrc/cuda/{operator}.cuh"] if operator in ON_A_GPU else []
    for file in [*python, *cpp, *cuda, f"tests/operators/test_{operator}.py"]:
        assert (ROOT / file).exists(), file
    assert re.search(rf'"{operator}\(', (CSRC / "ops" / "schemas.cpp").read_text())
