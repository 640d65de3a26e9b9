"""The gradients of the operators themselves, as a traced or exported model calls them, without the layers above."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import CELLS, Case, batch_sizes, layer_inputs, structure_of
from comparing import assert_all_accurate, differentiate
from layer_results import lengths_of
from torch import Tensor
from torch.autograd import forward_ad

from fused_rnn import ops, reference

FORMS: list[dict[str, Any]] = [{}, {"bidirectional": True, "bias": False}, {"lengths": (5, 4, 1)}, {"time": 1}]
FORMS_OF_LSTM: list[dict[str, Any]] = [{"proj_size": 3, "bidirectional": True}, {"proj_size": 2, "time": 1}]
CASES = [Case(kind, **form) for kind in CELLS for form in FORMS] + [Case("LSTM", **form) for form in FORMS_OF_LSTM]


def leaves_of(case: Case, device: str) -> dict[str, Tensor]:
    input, states, weights = layer_inputs(case, torch.float64, device)
    named = {"input": input, **{f"state{i}": state for i, state in enumerate(states)}}
    named |= {f"weight{i}": weight for i, weight in enumerate(weights)}
    return {name: tensor.requires_grad_() for name, tensor in named.items()}


def outputs_of(operator: Callable[..., Any], case: Case, leaves: dict[str, Tensor], *args: Any) -> list[Tensor]:
    """Return the differentiable outputs of the operator, or of the reference: output, final states and history."""
    input, *tensors = leaves.values()
    count = structure_of(case.kind).states
    results = operator(CELLS[case.kind], input, tensors[:count], tensors[count:], *args)
    if operator is ops.recurrent:
        output, finals, _, history = results
        return [output, *finals, *history]
    (output, *sequences), finals = results
    directions = leaves["state0"].size(0)
    history = [values.reshape(-1, directions, values.size(-1) // directions).transpose(0, 1) for values in sequences]
    return [output, *finals, *history]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_recurrent(case: Case, device: str) -> None:
    results = []
    for operator, on, saved in ((ops.recurrent, device, (True,)), (reference.recurrent, "cpu", ())):
        leaves = leaves_of(case, on)
        outputs = outputs_of(operator, case, leaves, batch_sizes(case), None, *saved)
        results.append({name: tensor.cpu() for name, tensor in differentiate(outputs, leaves).items()})
    assert_all_accurate(*results)


@pytest.mark.parametrize("kind", CELLS)
def test_recurrent_with_lengths(kind: str, device: str) -> None:
    case = Case(kind, batch=6, bidirectional=True)
    results = []
    for operator, on, saved in ((ops.recurrent, device, (True,)), (reference.recurrent, "cpu", ())):
        leaves = leaves_of(case, on)
        outputs = outputs_of(operator, case, leaves, None, lengths_of(case).to(on), *saved)
        results.append({name: tensor.cpu() for name, tensor in differentiate(outputs, leaves).items()})
    assert_all_accurate(*results)


@pytest.mark.parametrize("kind", CELLS)
def test_what_was_not_asked_for_is_empty(kind: str, device: str) -> None:
    """Gates and history are returned only with ``save_for_backward``, whether or not gradients are needed."""
    leaves = leaves_of(Case(kind), device)
    output, *_, history = results = list(outputs_of(ops.recurrent, Case(kind), leaves, None, None, False))
    assert output.requires_grad
    if structure_of(kind).states > 1:
        assert history.shape == (0,)
    plain = {name: tensor.detach() for name, tensor in leaves.items()}
    expected = outputs_of(ops.recurrent, Case(kind), plain, None, None, False)
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize("kind", CELLS)
def test_some_arguments_without_gradients(kind: str, device: str) -> None:
    everything = leaves_of(Case(kind), device)
    expected = differentiate(outputs_of(ops.recurrent, Case(kind), everything, None, None, True), everything)
    for frozen in everything:
        leaves = leaves_of(Case(kind), device)
        leaves[frozen].requires_grad_(False)
        outputs = outputs_of(ops.recurrent, Case(kind), leaves, None, None, True)
        needed = {name: leaf for name, leaf in leaves.items() if name != frozen}
        for name, gradient in differentiate(outputs, needed).items():
            assert torch.equal(gradient, expected[name])


def convolution() -> tuple[dict[str, Tensor], tuple[Any, ...]]:
    leaves = {"input": torch.randn(2, 3, 5, 4), "weight": torch.randn(6, 3, 3, 3), "bias": torch.randn(6)}
    return {name: leaf.double().requires_grad_() for name, leaf in leaves.items()}, ("B", 3, (1, 2))


@pytest.mark.parametrize("biased", [False, True])
def test_masked_conv2d(biased: bool, device: str) -> None:
    leaves, options = convolution()
    if not biased:
        del leaves["bias"]
    results = []
    for operator, on in ((ops.masked_conv2d, device), (reference.masked_conv2d, "cpu")):
        input, weight, *bias = (leaf.to(on) for leaf in leaves.values())
        output = operator(input, weight, bias[0] if biased else None, *options)
        results.append(differentiate([output], leaves))
    assert_all_accurate(*results)


def test_derivatives_without_a_kernel_raise_an_error() -> None:
    """Second derivatives and forward mode, which the layers compute by the reference."""
    leaves, options = convolution()

    def convolve(input: Tensor) -> Tensor:
        return ops.masked_conv2d(input, leaves["weight"], leaves["bias"], *options)

    def recur(kind: str, tensors: dict[str, Tensor], input: Tensor) -> Tensor:
        return outputs_of(ops.recurrent, Case(kind), {**tensors, "input": input}, None, None, False)[0]

    calls: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [(convolve, leaves["input"])]
    for kind in CELLS:
        tensors = leaves_of(Case(kind), "cpu")
        calls.append((partial(recur, kind, tensors), tensors["input"]))
    for call, input in calls:
        (first,) = torch.autograd.grad(call(input).square().sum(), input, create_graph=True)
        with pytest.raises(RuntimeError, match="not implemented"):
            first.sum().backward()
        for given in (input, input.detach()):
            with forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp is not implemented"):
                call(forward_ad.make_dual(given, torch.ones_like(given)))


@pytest.mark.parametrize("kind", CELLS)
def test_output_of_one_step_may_change_in_place(kind: str, device: str) -> None:
    gradients = []
    for change in (torch.Tensor.mul, torch.Tensor.mul_):
        leaves = leaves_of(Case(kind, time=1), device)
        output = outputs_of(ops.recurrent, Case(kind, time=1), leaves, None, None, False)[0]
        gradients.append(torch.autograd.grad(change(output, 3).sum(), list(leaves.values()), allow_unused=True))
    assert all(map(torch.equal, *gradients))
    output = outputs_of(ops.recurrent, Case(kind), leaves_of(Case(kind), device), None, None, False)[0]
    output.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("kind", CELLS)
def test_only_one_step_has_a_backward_pass_without_output(kind: str) -> None:
    case = Case(kind)
    input, states, weights = layer_inputs(case)
    output, finals, gates, history = ops.recurrent(CELLS[kind], input, states, weights, None, None, True)
    grads = ([None] * len(finals), [None] * len(history))
    with pytest.raises(RuntimeError, match="output may be None only if there is one time step, got 5"):
        ops.recurrent_backward(
            CELLS[kind], torch.ones_like(output), *grads, input, states, weights, None, None, None, gates, history,
            True, True, True,
        )  # fmt: skip
