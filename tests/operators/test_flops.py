"""The number of floating-point operations that FlopCounterMode counts, compared with its count for torch.nn."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CELLS, KINDS, Case, cell_case, flatten, hx_of, structure_of
from convolution_cases import FORMS, FUSED, Convolution, ConvolutionCase
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
from fused_rnn import reference


def count(run: Callable[[], Any]) -> int:
    """Return how many operations ``run`` takes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def forward_and_backward(module: Any, input: Any, states: tuple[Tensor, ...]) -> tuple[int, int]:
    """Return the operations of the forward pass, and those of the forward and the backward pass."""

    def run(backward: bool) -> None:
        outputs = flatten(module(input, hx_of(states)))
        if backward:
            torch.stack([out.sum() for out in outputs]).sum().backward()

    return count(lambda: run(False)), count(lambda: run(True))


@pytest.mark.parametrize("gradients", [(False, False, True), (True, False, False), (True, True, True)], ids=str)
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
        {"bias": False, "time": 1},
        {"lengths": (5, 3, 1), "bias": False},
        {"unbatched": True},
        {"batch": 0},
        {"proj_size": 3, "num_layers": 2, "bidirectional": True},
    ],
    ids=str,
)
def test_a_layer_counts_as_in_torch(kind: str, form: dict[str, Any], gradients: tuple[bool, bool, bool]) -> None:
    """In float64 torch.nn's layers are made of ordinary products, which PyTorch counts."""
    if "proj_size" in form and not structure_of(kind).may_project:
        pytest.skip("only an LSTM has a projection")
    case, counts = Case(kind, **form), []
    for package in (fused_rnn, torch.nn):
        module = case.module(package, torch.float64).requires_grad_(gradients[2])
        input, states = case.tensors(torch.float64)
        input.requires_grad_(gradients[0])
        states = tuple(state.requires_grad_(gradients[1]) for state in states)
        counts.append(forward_and_backward(module, case.in_form(input), states))
    assert counts[0] == counts[1]
    assert (counts[0][0] > 0) == (case.batch > 0)


@pytest.mark.parametrize("gradients", [(False, False), (True, True)], ids=str)
@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_counts_as_in_torch(kind: str, batch: int | None, gradients: tuple[bool, bool]) -> None:
    counts = []
    for package in (fused_rnn, torch.nn):
        module, input, states = cell_case(package, kind, batch, 4, 6, torch.float64)
        states = tuple(state.requires_grad_(gradients[1]) for state in states)
        counts.append(forward_and_backward(module, input.requires_grad_(gradients[0]), states))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_formula(kind: str) -> None:
    """A multiplication and an addition for each weight of the gates, in each step and sequence."""
    layer = getattr(fused_rnn, kind)(4, 6)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    assert count(lambda: layer(torch.randn(5, 3, 4))) == 2 * 5 * 3 * gates * 6 * (4 + 6)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_count(kind: str) -> None:
    """With lengths, as many operations are counted as for the same sequences packed."""
    counts = []
    for case, options in (
        (Case(kind, lengths=(5, 3, 1)), {}),
        (Case(kind), {"lengths": torch.tensor([5, 3, 1])}),
    ):
        layer = case.module(fused_rnn, torch.float64)
        input = case.in_form(case.tensors(torch.float64)[0].requires_grad_())

        def run(layer: Any = layer, input: Any = input, options: Any = options) -> None:
            flatten(layer(input, **options))[0].sum().backward()

        counts.append(count(run))
    assert counts[0] == counts[1] > 0
    empty = fused_rnn.GRU(4, 6)
    assert count(lambda: empty(torch.randn(5, 2, 4), lengths=[0, 0])) == 0


@pytest.mark.parametrize("wanted", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("case", [*FORMS, *FUSED[::5]], ids=str)
def test_a_masked_convolution_counts_its_active_taps(case: ConvolutionCase, wanted: tuple[bool, bool]) -> None:
    """Of a dense convolution's operations, it takes the share that the mask leaves, forward and backward."""
    tensors, counts = case.tensors(torch.float64), []
    for name, grad in zip(("input", "weight"), wanted, strict=True):
        tensors[name].requires_grad_(grad)
    for convolution in (case.ours, case.oracle):

        def run(convolution: Convolution = convolution) -> None:
            output = convolution(**tensors)
            if any(wanted):
                output.sum().backward()

        counts.append(count(run))
    mask = case.mask()
    assert counts[0] * mask.numel() == counts[1] * mask.sum()


def test_shapes_are_enough() -> None:
    """With fake tensors, lengths are unknown, and all steps are counted."""
    with FakeTensorMode():
        layer, images = fused_rnn.LSTM(4, 6), fused_rnn.MaskedConv2d(3, 6, 5, "B", data_channels=3)
        input, lengths, pixels = torch.randn(5, 3, 4), torch.ones(3, dtype=torch.int64), torch.randn(2, 3, 8, 9)
        assert count(lambda: layer(input, lengths=lengths)) == count(lambda: layer(input)) == 2 * 15 * 24 * 10
        counted = count(lambda: images(pixels))
    assert counted == 2 * 2 * 72 * int(reference.mask(6, 3, (5, 5), "B", 3).sum())


def test_each_module_has_its_count() -> None:
    """The counts are listed by module, too."""
    model = torch.nn.Sequential(fused_rnn.MaskedConv2d(1, 4, 3), torch.nn.Flatten(2), fused_rnn.GRU(12, 5))
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 1, 3, 4))
    counts = counter.get_flop_counts()
    assert counts["Sequential.0"] == {torch.ops.fused_rnn.masked_conv2d: 2 * 2 * 12 * 4 * 4}
    assert counts["Sequential.2"] == {torch.ops.fused_rnn.recurrent: 2 * 2 * 4 * 15 * (12 + 5)}
