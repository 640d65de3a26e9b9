"""Settings of all tests."""

import os
from typing import Any

import pytest
import torch

import fused_rnn


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
def _same_conditions() -> None:
    """Seed each test, so that it sees the same numbers alone as with others, and let it compute on one thread.

    On a busy machine the threads of PyTorch's small operations wait for one another a hundred times as long as they
    work. That more threads give the same results bit for bit is for test_determinism.py to see.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions of this package that were called."""
    called: list[str] = []
    for name in ("lstm", "gru", "lstm_cell", "gru_cell"):
        function = getattr(fused_rnn.functional, name)

        def call(*args: Any, _name: str = name, _function: Any = function, **kwargs: Any) -> Any:
            called.append(_name)
            return _function(*args, **kwargs)

        monkeypatch.setattr(fused_rnn.functional, name, call)
    return called
