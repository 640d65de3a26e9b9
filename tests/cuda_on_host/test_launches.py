"""What the operators do where a GPU has less room than it says, within the user's limit, and under a CUDA graph."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import CELLS, Case
from comparing import assert_all_accurate

import fused_rnn
from cuda_on_host.conftest import PATHS

pytestmark = pytest.mark.usefixtures("glue")

NO_LIMIT = 1 << 30
LAYER: dict[str, Any] = {"time": 3, "batch": 40, "hidden_size": 72, "bidirectional": True}


@pytest.fixture
def room(operators: Any) -> Iterator[Any]:
    """Return the operators, and end all limits that a test sets."""
    operators.most_blocks_launched()
    yield operators
    operators.set_room(NO_LIMIT)
    operators.set_multiprocessor_limit(0)


def check(kind: str) -> None:
    case = Case(kind, **LAYER)
    ours = case.result(fused_rnn, torch.float32)
    assert_all_accurate(ours, case.torch_result(torch.float64), case.torch_result(torch.float32))


@pytest.mark.parametrize("blocks", [20, 5, 2])
@pytest.mark.parametrize("path", ["any", "cluster", "grid"])
@pytest.mark.parametrize("kind", CELLS)
def test_another_plan_where_there_is_no_room(kind: str, path: str, blocks: int, room: Any) -> None:
    """A process that has a part of a GPU learns so at a launch. What was refused is not tried again."""
    room.set_path(PATHS[path])
    check(kind)
    launched = room.most_blocks_launched()
    assert launched > blocks
    room.set_room(blocks)
    check(kind)
    # Of clusters there may be more than run at once; a cluster has at most so many blocks.
    assert path != "grid" or room.most_blocks_launched() <= blocks
    room.most_blocks_launched()
    room.set_room(NO_LIMIT)
    check(kind)
    assert path != "grid" or room.most_blocks_launched() <= blocks
    room.set_multiprocessor_limit(0)  # forgets what was refused
    check(kind)
    assert room.most_blocks_launched() == launched


@pytest.mark.parametrize("limit", [1, 6, 20])
@pytest.mark.parametrize("path", ["any", "cluster", "grid"])
@pytest.mark.parametrize("kind", CELLS)
def test_launches_keep_within_the_limit(kind: str, path: str, limit: int, room: Any) -> None:
    room.set_path(PATHS[path])
    room.set_multiprocessor_limit(limit)
    check(kind)
    assert room.most_blocks_launched() <= limit


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", CELLS)
def test_a_packed_sequence_is_not_captured(kind: str, path: str, operators: Any) -> None:
    operators.set_path(PATHS[path])
    packed, padded = Case(kind, lengths=(5, 4, 1)), Case(kind)
    operators.set_capturing(True)
    try:
        padded.result(fused_rnn, torch.float32)
        with pytest.raises(RuntimeError, match=r"PackedSequence cannot be captured in a CUDA graph.*`lengths`"):
            packed.result(fused_rnn, torch.float32)
    finally:
        operators.set_capturing(False)


@pytest.mark.parametrize("kind", CELLS)
def test_a_packed_sequence_is_not_captured_backward(kind: str, operators: Any) -> None:
    case = Case(kind, lengths=(5, 4, 1))
    input = case.tensors(torch.float32)[0].requires_grad_()
    output = case.module(fused_rnn, torch.float32)(case.in_form(input))[0].data
    operators.set_capturing(True)
    try:
        with pytest.raises(RuntimeError, match="PackedSequence cannot be captured in a CUDA graph"):
            output.sum().backward()
    finally:
        operators.set_capturing(False)
