"""Fixtures and settings for all tests."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from on_gpu import float32_precision

import fused_rnn
from fused_rnn import _C

# The parameter is hidden from the names of tests on the CPU, where pytest can do so (since 8.4).
DEVICES = [
    pytest.param("cpu", id=getattr(pytest, "HIDDEN_PARAM", "cpu")),
    pytest.param("cuda", marks=pytest.mark.needs_cuda),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU if there is none, unless FAIL_WITHOUT_CUDA=1, with which they fail."""
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
    """Fail a test that needs a GPU and was not skipped, even if it would pass without one."""
    if request.node.get_closest_marker("needs_cuda") and not torch.cuda.is_available():
        pytest.fail("needs an NVIDIA GPU and a build of PyTorch with CUDA", pytrace=False)


@pytest.fixture(autouse=True)
def _same_conditions() -> None:
    """Seed each test, so that its numbers do not depend on other tests, and let it compute on one thread.

    On a busy machine the threads of PyTorch's small operations wait for one another a hundred times as long as they
    compute. test_determinism.py tests that more threads give the same results bit for bit. A test that asks for some
    threads gets them, even if there are fewer processors.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    _C.set_processors(64)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on the CPU and again on a GPU, where float32 is computed without tf32."""
    if request.param == "cpu":
        yield "cpu"
        return
    with float32_precision("ieee"):
        yield request.param


@pytest.fixture(params=["any", "stepwise", "grid", "cluster", "warpgroup"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Restrict the layers on a GPU to one path, where it supports them."""
    _C.set_plan_override(request.param)
    yield request.param
    _C.set_plan_override("any")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functional layers and cells that were called, which grows during a test."""
    called: list[str] = []
    for name in ("lstm", "gru", "rnn", "lstm_cell", "gru_cell", "rnn_cell"):
        function = getattr(fused_rnn.functional, name)

        def call(*args: Any, _name: str = name, _function: Any = function, **kwargs: Any) -> Any:
            called.append(_name)
            return _function(*args, **kwargs)

        monkeypatch.setattr(fused_rnn.functional, name, call)
    return called
