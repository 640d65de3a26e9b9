"""How many threads the kernels use on a CPU, and that they wait for one another where there are few processors."""

import os

import pytest
import torch
from cases import KINDS, Case, check_result
from comparing import assert_identical

import fused_rnn
from fused_rnn import _C


@pytest.mark.parametrize(("processors", "threads", "used"), [(2, 8, 2), (8, 2, 2), (1, 3, 1), (4, 4, 4)])
def test_no_more_threads_than_processors(processors: int, threads: int, used: int) -> None:
    _C.set_processors(processors)
    torch.set_num_threads(threads)
    assert _C.most_threads() == used


def test_processors_are_those_that_the_process_may_use() -> None:
    _C.set_processors(0)
    torch.set_num_threads(4096)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert _C.most_threads() == available


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_sleep_at_each_step_wake_up(kind: str) -> None:
    """There are so many threads that some wait longer than they spin, on any machine of fewer than 8 processors."""
    case = Case(kind, time=60, batch=1, input_size=8, hidden_size=256)
    once = case.result(fused_rnn, torch.float32)
    check_result(once, case, torch.float32, "cpu")
    torch.set_num_threads(8)
    assert_identical(case.result(fused_rnn, torch.float32), once)
