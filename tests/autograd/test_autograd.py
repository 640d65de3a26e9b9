"""Gradients of recurrent layers in special cases: some only, computed twice, second order, unusual memory layouts."""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from cases import KINDS, Case, flatten, hx_of, layer_inputs, structure_of
from comparing import assert_accurate, assert_all_accurate
from torch import Tensor

import fused_rnn
from fused_rnn import functional

FORMS = [{}, {"lengths": (2, 5, 4), "bidirectional": True}]
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{kind: getattr(functional, kind.lower()) for kind in KINDS},
    "RNN_RELU": partial(functional.rnn, nonlinearity="relu"),
}


def layer(kind: str, input: Any, states: tuple[Tensor, ...], weights: list[Tensor], **kwargs: Any) -> list[Tensor]:
    """Call the function of a layer, and return all its outputs."""
    return flatten(FUNCTIONS[kind](input, hx_of(states), weights, **kwargs))


def subsets(items: list[int]) -> list[tuple[int, ...]]:
    return [subset for size in range(1, len(items) + 1) for subset in combinations(items, size)]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    ("kind", "used"), [(kind, s) for kind in KINDS for s in subsets([0, 1, 2][: 1 + structure_of(kind).states])]
)
def test_any_outputs_may_go_unused(kind: str, used: tuple[int, ...], form: dict[str, Any], device: str) -> None:
    case = Case(kind, **form)

    def gradients(package: Any, device: str) -> dict[int, Tensor]:
        module = case.module(package, torch.float64, device)
        input, states = case.tensors(torch.float64, device)
        leaves = [tensor.requires_grad_() for tensor in (input, *states)]
        outputs = flatten(module(case.in_form(input), hx_of(states)))
        loss = torch.stack([outputs[i].square().sum() for i in used]).sum()
        return dict(enumerate(torch.autograd.grad(loss, [*leaves, *module.parameters()])))

    assert_all_accurate(gradients(fused_rnn, device), gradients(torch.nn, "cpu"))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_arguments_may_be_frozen(kind: str, form: dict[str, Any], device: str) -> None:
    case = Case(kind, **form)
    everything = case.torch_result(torch.float64)
    names = [name for name in everything if name.startswith("grad")]
    for frozen in [{name} for name in names] + [set(names) - {name} for name in names]:
        module = case.module(fused_rnn, torch.float64, device)
        input, states = case.tensors(torch.float64, device)
        leaves = {
            "input": input,
            **{f"hx{i}": state for i, state in enumerate(states)},
            **dict(module.named_parameters()),
        }
        for name, leaf in leaves.items():
            leaf.requires_grad_(f"grad {name}" not in frozen)
        outputs = flatten(module(case.in_form(input), hx_of(states)))
        generator = torch.Generator().manual_seed(1)
        grads = [torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in outputs]
        torch.autograd.backward(outputs, grads)
        for name, leaf in leaves.items():
            if f"grad {name}" in frozen:
                assert leaf.grad is None
            else:
                assert leaf.grad is not None
                assert_accurate(leaf.grad, everything[f"grad {name}"], name=name)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_twice(kind: str, device: str) -> None:
    module = Case(kind).module(fused_rnn, torch.float64, device)
    loss = flatten(module(torch.randn(5, 3, 4, dtype=torch.float64, device=device)))[0].square().sum()
    first = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(module.parameters()))
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("changed", ["input", "h0", "weight", "output"])
@pytest.mark.parametrize("kind", KINDS)
def test_backward_raises_after_a_change_in_place(kind: str, changed: str, device: str) -> None:
    module = Case(kind).module(fused_rnn, torch.float64, device)
    input, states = Case(kind).tensors(torch.float64, device)
    output, _ = module(input, hx_of(states))
    tensors = {"input": input, "h0": states[0], "weight": module.weight_hh_l0, "output": output}
    loss = output.sum()
    with torch.no_grad():
        tensors[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def transposed(tensor: Tensor) -> Tensor:
    """Return the same values with the last two dimensions swapped in memory."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2) if tensor.dim() > 1 else strided(tensor)


def strided(tensor: Tensor) -> Tensor:
    """Return the same values with gaps between them in memory."""
    return torch.stack((tensor, tensor.new_full(tensor.shape, 9.0)), dim=-1)[..., 0]


def expanded(tensor: Tensor) -> Tensor:
    """Return a tensor in which every row is the first one, stored only once in memory."""
    return tensor[:1].expand_as(tensor)


@pytest.mark.parametrize("layout", [transposed, strided, expanded])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_layout_in_memory(kind: str, dtype: torch.dtype, layout: Callable[[Tensor], Tensor], device: str) -> None:
    # On a GPU the hidden size is one that the persistent kernels accept for bfloat16.
    case = Case(kind, bidirectional=True) if device == "cpu" else Case(kind, hidden_size=16, bidirectional=True)
    input, states, weights = layer_inputs(case, dtype, device)

    def run(arrange: Callable[[Tensor], Tensor]) -> list[Tensor]:
        arranged = [arrange(layout(tensor)) for tensor in (input, *states, *weights)]
        leaves = [tensor.detach().requires_grad_() for tensor in arranged]
        split = 1 + len(states)
        outputs = layer(kind, leaves[0], tuple(leaves[1:split]), leaves[split:], bidirectional=True)
        grads = [arrange(layout(out.detach().cos())) for out in outputs]
        return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]

    assert all(map(torch.equal, run(lambda tensor: tensor), run(lambda tensor: tensor.contiguous())))


@pytest.mark.parametrize("kind", KINDS)
def test_inference_equals_training(kind: str, device: str) -> None:
    case = Case(kind, num_layers=2, bidirectional=True)
    module, (input, _) = case.module(fused_rnn, torch.float32, device), case.tensors(torch.float32, device)
    training = flatten(module(input))
    with torch.no_grad():
        assert all(map(torch.equal, training, flatten(module(input))))
    with torch.inference_mode():
        assert all(map(torch.equal, training, flatten(module(input))))


FORMS_OF_ONE_STATE: list[dict[str, Any]] = [
    {}, {"bidirectional": True, "bias": False}, {"lengths": (3, 1), "bidirectional": True},
]  # fmt: skip
GRADCHECK_CASES = [
    Case("LSTM", 3, 2, 2, 3),
    Case("LSTM", 3, 2, 2, 3, bidirectional=True, proj_size=2, bias=False),
    Case("LSTM", 3, 2, 2, 3, lengths=(3, 1), bidirectional=True),
    *(Case(kind, 3, 2, 2, 3, **form) for kind in ("GRU", "RNN", "RNN_RELU") for form in FORMS_OF_ONE_STATE),
]


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("case", GRADCHECK_CASES, ids=str)
def test_gradcheck(case: Case, check: Callable[..., bool], device: str) -> None:
    _, states, weights = layer_inputs(case, device=device)
    split = 1 + len(states)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        kwargs = {"bidirectional": case.bidirectional}
        return tuple(layer(case.kind, case.in_form(tensors[0]), tensors[1:split], list(tensors[split:]), **kwargs))

    leaves = [
        tensor.detach().requires_grad_() for tensor in (case.tensors(torch.float64, device)[0], *states, *weights)
    ]
    assert check(function, leaves, rtol=1e-6, atol=1e-8, fast_mode=check is torch.autograd.gradgradcheck)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_penalty(kind: str, form: dict[str, Any], device: str) -> None:
    case = Case(kind, num_layers=2, **form)

    def gradients(package: Any, device: str) -> dict[str, Tensor]:
        module = case.module(package, torch.float64, device)
        input = case.tensors(torch.float64, device)[0].requires_grad_()
        loss = flatten(module(case.in_form(input)))[0].square().sum()
        (first,) = torch.autograd.grad(loss, input, create_graph=True)
        second = torch.autograd.grad(first.square().sum() + loss, list(module.parameters()))
        return {"first": first.detach(), **dict(zip(module._flat_weights_names, second, strict=True))}

    assert_all_accurate(gradients(fused_rnn, device), gradients(torch.nn, "cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_with_a_graph_are_accurate(kind: str, dtype: torch.dtype, device: str) -> None:
    def gradients(package: Any, dtype: torch.dtype, device: str, graph: bool = True) -> dict[str, Tensor]:
        module = Case(kind).module(package, dtype, device)
        output = flatten(module(Case(kind).tensors(dtype, device)[0]))[0]
        grad = torch.autograd.grad(output, list(module.parameters()), torch.ones_like(output), create_graph=graph)
        return {name: tensor.detach() for name, tensor in zip(module._flat_weights_names, grad, strict=True)}

    exact = gradients(torch.nn, torch.float64, "cpu")
    # cuDNN does not support second gradients, so on a GPU the peer's gradients are computed without a graph.
    assert_all_accurate(gradients(fused_rnn, dtype, device), exact, gradients(torch.nn, dtype, device, device == "cpu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_second_gradients_of_half_precision_are_summed_in_float32(kind: str, dtype: torch.dtype) -> None:
    """They are computed by the reference, which would round at each step, where the kernels do not."""
    case = Case(kind, time=20)

    def random_like(tensors: list[Tensor]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(5)
        return [torch.randn(tensor.shape, generator=generator).bfloat16().to(tensor.dtype) for tensor in tensors]

    def second(package: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        module, input = case.module(package, dtype), case.tensors(dtype)[0].requires_grad_()
        outputs, weights = flatten(module(input))[:1], list(module.parameters())
        first = torch.autograd.grad(outputs, weights, random_like(outputs), create_graph=True)
        gradients = torch.autograd.grad(first, [input, *weights], random_like(list(first)))
        return dict(zip(["input", *module._flat_weights_names], gradients, strict=True))

    exact = second(torch.nn, torch.float64)
    once_rounded = {name: gradient.to(dtype) for name, gradient in exact.items()}
    assert_all_accurate(second(fused_rnn, dtype), exact, once_rounded)
