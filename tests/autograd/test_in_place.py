"""Results that the caller changes in place: gradients remain right, or the backward pass raises an error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CELLS, KINDS, Case, cell_case, flatten, hx_of, structure_of
from comparing import assert_all_accurate
from torch import Tensor

import fused_rnn


def scale(tensor: Tensor) -> None:
    tensor.mul_(2)


def rectify(tensor: Tensor) -> None:
    tensor.relu_()


def reset_rows(tensor: Tensor) -> None:
    """Set the states of two sequences of the batch to zero, as an environment that has ended does."""
    tensor[..., torch.tensor([True, False, True], device=tensor.device), :] = 0


def overwrite_rows(tensor: Tensor) -> None:
    tensor[..., 1:, :] = tensor[..., :1, :]


CHANGES = [scale, rectify, reset_rows, overwrite_rows]


def doubled_gradients(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of ``loss``, and those of the sum of their squares."""
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    total = torch.stack([gradient.square().sum() for gradient in first]).sum()
    second = torch.autograd.grad(total, list(leaves.values()))
    named = {f"grad {name}": gradient.detach() for name, gradient in zip(leaves, first, strict=True)}
    return named | {f"second grad {name}": gradient for name, gradient in zip(leaves, second, strict=True)}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("kind", "state"), [(kind, s) for kind in CELLS for s in range(structure_of(kind).states)])
def test_states_of_cells(kind: str, state: int, change: Callable[[Tensor], None], device: str) -> None:
    """The states between two steps are changed in place; the oracle changes a copy, which torch.nn always allows."""

    def gradients(package: Any, device: str, copied: bool) -> dict[str, Tensor]:
        cell, input, states = cell_case(package, kind, 3, 4, 6, torch.float64, device=device)
        leaves = {"input": input.requires_grad_(), **dict(cell.named_parameters())}
        new = flatten(cell(input, hx_of(states)))
        if copied:
            new[state] = new[state].clone()
        change(new[state])
        loss = torch.stack([out.square().sum() for out in flatten(cell(input, hx_of(new)))]).sum()
        return doubled_gradients(loss, leaves)

    assert_all_accurate(gradients(fused_rnn, device, False), gradients(torch.nn, "cpu", True))


ONE_STEP = [
    {}, {"batch_first": True}, {"bidirectional": True}, {"lengths": (1, 1, 1)}, {"num_layers": 2},
]  # fmt: skip


@pytest.mark.parametrize("change", [scale, reset_rows])
@pytest.mark.parametrize("form", ONE_STEP, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_results_of_one_step(kind: str, form: dict[str, Any], change: Callable[[Tensor], None], device: str) -> None:
    """The output and the final states of a layer of one step may be changed, each of them and all."""
    case = Case(kind, time=1, **form)
    count = 1 + structure_of(kind).states

    def gradients(package: Any, device: str, changed: list[int], copied: bool) -> dict[str, Tensor]:
        module = case.module(package, torch.float64, device)
        input, states = case.tensors(torch.float64, device)
        leaves = {"input": input.requires_grad_(), **dict(module.named_parameters())}
        outputs = flatten(module(case.in_form(input), hx_of(states)))
        for index in changed:
            if copied:
                outputs[index] = outputs[index].clone()
            rows = outputs[index].transpose(0, 1) if case.batch_first and index == 0 else outputs[index]
            change(rows)
        return doubled_gradients(torch.stack([out.square().sum() for out in outputs]).sum(), leaves)

    for changed in [*([index] for index in range(count)), list(range(count))]:
        assert_all_accurate(gradients(fused_rnn, device, changed, False), gradients(torch.nn, "cpu", changed, True))


@pytest.mark.parametrize("kind", KINDS)
def test_results_of_one_step_with_lengths(kind: str, device: str) -> None:
    case = Case(kind, time=1)
    lengths = torch.tensor([1, 0, 1], device=device)

    def gradients(copied: bool) -> dict[str, Tensor]:
        module = case.module(fused_rnn, torch.float64, device)
        input, states = case.tensors(torch.float64, device)
        outputs = flatten(module(input.requires_grad_(), hx_of(states), lengths=lengths))
        outputs = [out.clone() for out in outputs] if copied else outputs
        for out in outputs:
            out.mul_(2)
        leaves = {"input": input, **dict(module.named_parameters())}
        return doubled_gradients(torch.stack([out.square().sum() for out in outputs]).sum(), leaves)

    assert_all_accurate(gradients(False), gradients(True))


@pytest.mark.parametrize("kind", KINDS)
def test_final_states_of_several_steps(kind: str, device: str) -> None:
    """Final states are no part of what the backward pass reads; the output is, and changing it raises an error."""
    case = Case(kind, num_layers=2, bidirectional=True)

    def gradients(package: Any, device: str) -> dict[str, Tensor]:
        module = case.module(package, torch.float64, device)
        output, *states = flatten(module(case.tensors(torch.float64, device)[0]))
        for state in states:
            reset_rows(state)
        loss = torch.stack([out.square().sum() for out in (output, *states)]).sum()
        return doubled_gradients(loss, dict(module.named_parameters()))

    assert_all_accurate(gradients(fused_rnn, device), gradients(torch.nn, "cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_of_several_steps_raises_an_error(kind: str, device: str) -> None:
    module = Case(kind).module(fused_rnn, torch.float64, device)
    output = flatten(module(Case(kind).tensors(torch.float64, device)[0]))[0]
    output.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_every_state_of_one_step_raises_an_error(device: str) -> None:
    """What c was after the step is read by the backward pass; the final c is another tensor."""
    module = fused_rnn.LSTM(4, 6, device=device)
    _, _, cells = module(torch.randn(1, 3, 4, device=device), return_states=True)
    cells.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cells.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_resets_within_a_compiled_loop(kind: str) -> None:
    """In reinforcement learning the states of environments that have ended are set to zero between two steps."""
    cell = getattr(fused_rnn, f"{kind}Cell")(4, 6)
    inputs, done = torch.randn(3, 5, 4), torch.rand(3, 5) < 0.5

    def run(inputs: Tensor, done: Tensor) -> Tensor:
        state = None
        for input, ended in zip(inputs.unbind(), done.unbind(), strict=True):
            state = cell(input, state)
            for tensor in flatten(state):
                tensor[ended] = 0
        return torch.stack([tensor.square().sum() for tensor in flatten(state)]).sum()

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(call(inputs, done), list(cell.parameters())) for call in (run, compiled)]
    assert all(map(torch.equal, *gradients))
    torch._dynamo.reset()
