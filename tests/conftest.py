"""Settings of all tests."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from on_gpu import float32_precision

import fused_rnn
from fused_rnn import _C

# Tests keep their names on the CPU, where pytest (8.4) can leave a parameter out of them.
DEVICES = [
    pytest.param("cpu", id=getattr(pytest, "HIDDEN_PARAM", "cpu")),
    pytest.param("cuda", marks=pytest.mark.needs_cuda),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; FAIL_WITHOUT_CUDA=1 lets it fail instead."""
    if torch.cuda.is_available() or os.environ.get("FAIL_WITHOUT_CUDA") == "1":
        return
    for item in items:
        if item.get_closest_marker("needs_cuda"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU and a build of PyTorch with CUDA"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "instruction_sets: also run by test_determinism.py in a process of its own for each instruction set"
    )


@pytest.fixture(autouse=True)
def _gpu_where_needed(request: pytest.FixtureRequest) -> None:
    """Fail what needs a GPU and was not skipped, also where the test would not notice."""
    if request.node.get_closest_marker("needs_cuda") and not torch.cuda.is_available():
        pytest.fail("needs an NVIDIA GPU and a build of PyTorch with CUDA", pytrace=False)


@pytest.fixture(autouse=True)
def _same_conditions() -> None:
    """Seed each test, so that it sees the same numbers alone as with others, and let it compute on one thread.

    On a busy machine the threads of PyTorch's small operations wait for one another a hundred times as long as they
    work. That more threads give the same results bit for bit is for test_determinism.py to see.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on the CPU, and once more on a GPU, where float32 is then computed without tf32."""
    if request.param == "cpu":
        yield "cpu"
        return
    with float32_precision("ieee"):
        yield request.param


@pytest.fixture(params=["any", "stepwise", "grid", "cluster"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let the kernels of a GPU take one path only, where they can."""
    _C.set_plan_override(request.param)
    yield request.param
    _C.set_plan_override("any")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions of this package that were called."""
    called: list[str] = []
    for name in ("lstm", "gru", "rnn", "lstm_cell", "gru_cell", "rnn_cell"):
        function = getattr(fused_rnn.functional, name)

        def call(*args: Any, _name: str = name, _function: Any = function, **kwargs: Any) -> Any:
            called.append(_name)
            return _function(*args, **kwargs)

        monkeypatch.setattr(fused_rnn.functional, name, call)
    return called
