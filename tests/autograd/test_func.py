"""torch.func and torch.autograd.forward_ad on all layers and cells: vmap, jvp, and transforms built on them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import KINDS, Case, flatten, hx_of, structure_of
from comparing import assert_accurate, assert_all_accurate
from every_module import NAMES, SHAPES, pair, random, vector
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn.utils.rnn import PackedSequence

import fused_rnn
from fused_rnn import ops, reference
from fused_rnn.autograd.recurrent import RecurrentFunction


def loss(module: torch.nn.Module, weights: dict[str, Tensor], input: Tensor) -> Tensor:
    return vector(lambda input: functional_call(module, weights, (input,)), input).square().sum()


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in module.named_parameters()}


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_inputs(name: str, dim: int, graph: bool) -> None:
    ours, theirs = pair(name)
    inputs = random(4, *SHAPES[name])
    with torch.set_grad_enabled(graph):
        actual = vmap(lambda input: vector(ours, input), in_dims=dim)(inputs.movedim(0, dim))
    expected = torch.stack([vector(theirs, input) for input in inputs])
    assert_accurate(actual, expected)
    if graph:
        gradients = [torch.autograd.grad(out.cos().sum(), list(module.parameters()))
                     for out, module in ((actual, ours), (expected, theirs))]  # fmt: skip
        assert_all_accurate(*(dict(enumerate(gradient)) for gradient in gradients))


@pytest.mark.parametrize("name", NAMES)
def test_nested_vmap(name: str) -> None:
    ours, theirs = pair(name)
    inputs = random(2, 3, *SHAPES[name])
    actual = vmap(vmap(lambda input: vector(ours, input)), in_dims=1, out_dims=1)(inputs)
    assert_accurate(actual, torch.stack([torch.stack([vector(theirs, x) for x in row]) for row in inputs]))


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_over_states(kind: str) -> None:
    """All indices may share the input while each has its own initial states."""
    ours, theirs = (Case(kind, bidirectional=True).module(package, torch.float64) for package in (fused_rnn, torch.nn))
    input, states = random(5, 3, 4), random(7, 2, 3, 6)

    def run(module: torch.nn.Module, state: Tensor) -> Tensor:
        return vector(module, input, hx_of([state, state.cos()][: structure_of(kind).states]))

    actual = vmap(lambda state: run(ours, state))(states)
    assert_accurate(actual, torch.stack([run(theirs, state) for state in states]))


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_over_sequences_with_lengths(kind: str) -> None:
    module = Case(kind, bidirectional=True).module(fused_rnn, torch.float64)
    inputs, lengths = random(4, 5, 3, 4), torch.tensor([[5, 0, 2], [1, 1, 1], [3, 4, 5], [0, 0, 0]])

    def run(input: Tensor, lengths: Tensor) -> Tensor:
        return vector(lambda: module(input, lengths=lengths))

    for shared in (False, True):
        actual = vmap(run, in_dims=(0, None if shared else 0))(inputs, lengths[0] if shared else lengths)
        lengths_of_each = [lengths[0 if shared else i] for i in range(4)]
        expected = torch.stack([run(input, length) for input, length in zip(inputs, lengths_of_each, strict=True)])
        assert_accurate(actual, expected)
        gradients = [torch.autograd.grad(out.sum(), list(module.parameters())) for out in (actual, expected)]
        assert_all_accurate(*(dict(enumerate(gradient)) for gradient in gradients))


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_over_packed_sequences(kind: str) -> None:
    case = Case(kind, bidirectional=True, lengths=(2, 5, 4))
    ours, theirs = (case.module(package, torch.float64) for package in (fused_rnn, torch.nn))
    inputs = random(4, 5, 3, 4)
    batch_sizes = case.in_form(inputs[0])[1]
    rows = torch.stack([case.in_form(input)[0] for input in inputs])

    def run(module: torch.nn.Module, rows: Tensor) -> Tensor:
        return vector(module, PackedSequence(rows, batch_sizes))

    actual = vmap(lambda rows: run(ours, rows))(rows)
    assert_accurate(actual, torch.stack([run(theirs, each) for each in rows]))


def test_vmap_over_inputs_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    forward = ops.recurrent

    def counted(cell: str, input: Tensor, *args: Any) -> Any:
        batches.append(input.shape)
        return forward(cell, input, *args)

    monkeypatch.setattr(ops, "recurrent", counted)
    module = fused_rnn.LSTM(3, 2)
    vmap(module)(torch.randn(7, 5, 2, 3))
    assert batches == [(5, 14, 3)]
    torch.func.vmap(lambda weights, input: functional_call(module, weights, (input,)), in_dims=(0, None))(
        {name: weight.expand(3, *weight.shape) for name, weight in state(module).items()}, torch.randn(5, 2, 3)
    )
    assert batches[1:] == [(5, 2, 3)] * 3


@pytest.mark.parametrize("name", NAMES)
def test_ensemble(name: str) -> None:
    """Models of one structure are vmapped, on a common input or on separate ones, and differentiated together."""
    pairs = [pair(name) for _ in range(3)]
    weights, _ = torch.func.stack_module_state([ours for ours, _ in pairs])
    skeleton = copy.deepcopy(pairs[0][0]).to("meta")
    inputs = random(3, *SHAPES[name])

    def run(weights: dict[str, Tensor], input: Tensor) -> Tensor:
        return loss(skeleton, weights, input)

    for in_dims, inputs_of_each in (((0, None), [inputs[0]] * 3), ((0, 0), list(inputs))):
        actual = vmap(run, in_dims=in_dims)(weights, inputs[0] if in_dims[1] is None else inputs)
        expected = torch.stack(
            [vector(theirs, input).square().sum() for (_, theirs), input in zip(pairs, inputs_of_each, strict=True)]
        )
        assert_accurate(actual, expected)
        gradients = torch.autograd.grad(actual.sum(), list(weights.values()))
        for index, (_, theirs) in enumerate(pairs):
            of_model = torch.autograd.grad(expected[index], list(theirs.parameters()))
            assert_all_accurate(dict(enumerate(gradient[index] for gradient in gradients)), dict(enumerate(of_model)))


@pytest.mark.parametrize("name", NAMES)
def test_per_sample_gradients(name: str) -> None:
    ours, theirs = pair(name)
    inputs = random(4, *SHAPES[name])
    function = grad(lambda weights, input: loss(ours, weights, input), argnums=(0, 1))
    of_weights, of_input = vmap(function, in_dims=(None, 0))(state(ours), inputs)
    for index, input in enumerate(inputs):
        leaf = input.requires_grad_()
        names, leaves = zip(*theirs.named_parameters(), strict=True)
        *expected, expected_input = torch.autograd.grad(vector(theirs, leaf).square().sum(), [*leaves, leaf])
        assert_all_accurate({name: of_weights[name][index] for name in names}, dict(zip(names, expected, strict=True)))
        assert_accurate(of_input[index], expected_input)


@pytest.mark.parametrize("kind", KINDS)
def test_per_sequence_gradients_with_lengths(kind: str) -> None:
    module = Case(kind, bidirectional=True).module(fused_rnn, torch.float64)
    inputs, lengths = random(4, 5, 1, 4), torch.tensor([[5], [0], [2], [5]])

    def of_output(weights: dict[str, Tensor], input: Tensor, lengths: Tensor) -> Tensor:
        return functional_call(module, weights, (input,), {"lengths": lengths})[0].square().sum()

    gradients = vmap(grad(of_output), in_dims=(None, 0, 0))(state(module), inputs, lengths)
    whole = grad(of_output)(state(module), inputs[:, :, 0].transpose(0, 1), lengths[:, 0])
    assert_all_accurate({name: each.sum(0) for name, each in gradients.items()}, whole)
    assert not any(each[1].any() for each in gradients.values())
    assert all(each[0].any() for each in gradients.values())


@pytest.mark.parametrize("name", NAMES)
def test_jvp(name: str) -> None:
    """Outputs and tangents agree with torch.nn's, for tangents of input and weights together."""
    ours, theirs = pair(name)
    primals = (state(ours), random(*SHAPES[name]))
    tangents = ({name: random(*weight.shape) for name, weight in primals[0].items()}, random(*SHAPES[name]))

    def run(module: torch.nn.Module) -> Any:
        return jvp(lambda weights, input: vector(lambda: functional_call(module, weights, (input,))), primals, tangents)

    for actual, expected in zip(run(ours), run(theirs), strict=True):
        assert_accurate(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_jvp_of_packed_sequences(kind: str) -> None:
    case = Case(kind, bidirectional=True, num_layers=2, lengths=(2, 5, 4))
    rows, *rest = case.in_form(random(5, 3, 4))
    tangent = torch.randn_like(rows)
    ours, theirs = (case.module(package, torch.float64) for package in (fused_rnn, torch.nn))

    def run(module: torch.nn.Module, rows: Tensor) -> Tensor:
        return vector(module, PackedSequence(rows, *rest))

    actual: Any = jvp(lambda rows: run(ours, rows), (rows,), (tangent,))
    # torch.nn's packed layers do not support forward mode, so this computes the product by two backward passes.
    expected = torch.autograd.functional.jvp(lambda rows: run(theirs, rows), rows, tangent)
    for ours_of, theirs_of in zip(actual, expected, strict=True):
        assert_accurate(ours_of, theirs_of)


@pytest.mark.parametrize("name", NAMES)
def test_forward_ad(name: str) -> None:
    ours, theirs = pair(name)
    input, tangent = random(*SHAPES[name]), random(*SHAPES[name])
    derivatives = []
    for module in (ours, theirs):
        with forward_ad.dual_level():
            output = vector(module, forward_ad.make_dual(input, tangent))
            derivatives.append(forward_ad.unpack_dual(output).tangent)
            assert output.requires_grad
    assert_accurate(*derivatives)


@pytest.mark.parametrize(
    "transform", [jacrev, jacfwd, hessian, lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))]
)
@pytest.mark.parametrize("name", NAMES)
def test_jacobians_and_hessians(name: str, transform: Callable[..., Any]) -> None:
    ours, theirs = pair(name)
    input = random(*SHAPES[name])
    first = transform in (jacrev, jacfwd)
    exact: Any = torch.autograd.functional.jacobian if first else torch.autograd.functional.hessian
    functions = [
        lambda input, m=module: vector(m, input) if first else vector(m, input).square().sum()
        for module in (ours, theirs)
    ]
    assert_accurate(transform(functions[0])(input), exact(functions[1], input))


@pytest.mark.parametrize("name", NAMES)
def test_hessian_of_weights(name: str) -> None:
    ours, theirs = pair(name)
    input, weights = random(*SHAPES[name]), state(ours)
    last = next(reversed(weights))

    def of_last(module: torch.nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda weight: loss(module, {**weights, last: weight}, input)

    exact = torch.autograd.functional.hessian(of_last(theirs), weights[last])
    assert_accurate(hessian(of_last(ours))(weights[last]), exact)


@pytest.mark.parametrize("name", NAMES)
def test_batched_gradients(name: str) -> None:
    """torch.autograd.grad(is_grads_batched=True) vmaps only the backward pass."""
    gradients = []
    for module in pair(name):
        torch.manual_seed(1)
        input = random(*SHAPES[name]).requires_grad_()
        output = vector(module, input)
        grads = torch.eye(len(output), dtype=torch.float64)
        leaves = [input, *module.parameters()]
        if module.__class__.__module__.startswith("fused_rnn"):
            gradients.append(torch.autograd.grad(output, leaves, grads, is_grads_batched=True))
        else:
            each = [torch.autograd.grad(output, leaves, row, retain_graph=True) for row in grads]
            gradients.append(tuple(map(torch.stack, zip(*each, strict=True))))
    assert_all_accurate(*(dict(enumerate(gradient)) for gradient in gradients))


@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 0, 2])], ids=str)
def test_jvp_of_every_state(lengths: Tensor | None) -> None:
    module = Case("LSTM", bidirectional=True).module(fused_rnn, torch.float64)
    weights = list(module.parameters())
    input, tangent = random(5, 3, 4), random(5, 3, 4)
    zeros = torch.zeros(2, 3, 6, dtype=torch.float64)

    def ours(input: Tensor) -> Tensor:
        return module(input, lengths=lengths, return_states=True)[2]

    def exact(input: Tensor) -> Tensor:
        return reference.lstm(input, zeros, zeros, weights, None, lengths, return_states=True)[3]

    for actual, expected in zip(jvp(ours, (input,), (tangent,)), jvp(exact, (input,), (tangent,)), strict=True):
        assert_accurate(actual, expected)
    assert_accurate(vmap(ours)(input.expand(2, 5, 3, 4))[1], exact(input))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    """Half precision is computed in float32 and rounded once, also under vmap and in forward mode."""
    module = Case(kind).module(fused_rnn, dtype)
    wide = copy.deepcopy(module).float()
    inputs = torch.randn(4, 5, 3, 4).to(dtype)
    first, second = inputs[0], inputs[1]

    actual: Any = jvp(lambda input: module(input)[1], (first,), (second,))
    expected: Any = jvp(lambda input: wide(input)[1], (first.float(),), (second.float(),))
    for ours, exact in zip(flatten(actual), flatten(expected), strict=True):
        assert torch.equal(ours, exact.to(dtype))
    outputs = vmap(lambda input: module(input)[0])(inputs)
    assert outputs.dtype == dtype
    exact = torch.stack([copy.deepcopy(wide).double()(input.double())[0] for input in inputs])
    assert_accurate(outputs, exact)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_functionalize(name: str, graph: bool) -> None:
    """Changes in place around a layer become new tensors; values, gradients and second gradients stay the same."""
    module, _ = pair(name)
    input = random(*SHAPES[name]).requires_grad_(graph)

    def run(input: Tensor) -> Tensor:
        changed = input * 2
        changed.mul_(3)
        output = vector(module, changed)
        output.add_(1)
        return output.square().sum()

    traced = torch.func.functionalize(run)
    assert torch.equal(traced(input), run(input))
    assert_accurate(grad(traced)(input), grad(run)(input))
    assert_accurate(torch.func.functionalize(grad(run))(input), grad(run)(input))
    batch = random(3, *SHAPES[name])
    assert_accurate(vmap(traced)(batch), vmap(run)(batch))
    assert_accurate(torch.func.functionalize(vmap(run))(batch), vmap(run)(batch))
    if graph:
        leaves = [input, *module.parameters()]
        gradients = [torch.autograd.grad(call(input), leaves, create_graph=True) for call in (traced, run)]
        assert_all_accurate(*(dict(enumerate(gradient)) for gradient in gradients))
        second = [torch.autograd.grad(first[0].square().sum(), leaves[-1])[0] for first in gradients]
        assert_accurate(*second)


def test_functions_have_no_jvp() -> None:
    """torch.compile refuses autograd functions with a jvp, so forward mode uses the reference instead."""
    assert RecurrentFunction.jvp is torch.autograd.Function.jvp
