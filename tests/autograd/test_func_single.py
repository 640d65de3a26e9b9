"""torch.func on one weight or one bias alone, the fewest tensors that a transform can be given, and on no index."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import KINDS, flatten
from comparing import assert_accurate
from every_module import NAMES, SHAPES, pair, random, vector
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils.rnn import PackedSequence

import fused_rnn

Function = Callable[..., Tensor]


def functions(name: str) -> list[tuple[str, Tensor, Function, Function]]:
    """Return, for each parameter of a module, its name, its value, and two functions of a value for it and an input.

    The functions return a number; the first one calls our module and the second one the oracle.
    """
    ours, theirs = pair(name)
    weights = {key: weight.detach() for key, weight in ours.named_parameters()}

    def function_of(module: torch.nn.Module, key: str) -> Function:
        def function(weight: Tensor, input: Tensor) -> Tensor:
            given = {**weights, key: weight}
            return vector(lambda input: functional_call(module, given, (input,)), input).square().sum()

        return function

    return [(key, weight, function_of(ours, key), function_of(theirs, key)) for key, weight in weights.items()]


def each_gradient(function: Function, weights: list[Tensor], inputs: list[Tensor]) -> Tensor:
    """Return the gradient of each weight for each input, by plain autograd: an oracle of every transform."""
    gradients = []
    for weight, input in zip(weights, inputs, strict=True):
        leaf = weight.detach().requires_grad_()
        gradients.append(torch.autograd.grad(function(leaf, input), leaf)[0])
    return torch.stack(gradients)


@pytest.mark.parametrize("name", NAMES)
def test_per_sample_gradients_of_one_parameter(name: str) -> None:
    inputs = random(4, *SHAPES[name])
    for key, weight, ours, theirs in functions(name):
        actual = vmap(grad(ours), in_dims=(None, 0))(weight, inputs)
        assert_accurate(actual, each_gradient(theirs, [weight] * 4, list(inputs)), name=key)
        in_chunks = vmap(grad(ours), in_dims=(None, 0), chunk_size=3)(weight, inputs)
        assert_accurate(in_chunks, actual, name=key)


@pytest.mark.parametrize("name", NAMES)
def test_several_values_of_one_parameter(name: str) -> None:
    """All indices share every other weight, and the input or not."""
    inputs = random(3, *SHAPES[name])
    for key, weight, ours, theirs in functions(name):
        values = torch.stack([weight, weight.cos(), weight.sin()])
        actual = vmap(grad(ours), in_dims=(0, None))(values, inputs[0])
        assert_accurate(actual, each_gradient(theirs, list(values), [inputs[0]] * 3), name=key)
        actual = vmap(grad(ours), in_dims=(0, 0))(values, inputs)
        assert_accurate(actual, each_gradient(theirs, list(values), list(inputs)), name=key)
        leaf = values.requires_grad_()
        (outer,) = torch.autograd.grad(vmap(ours, in_dims=(0, 0))(leaf, inputs).sum(), leaf)
        assert_accurate(outer, actual, name=key)


@pytest.mark.parametrize("name", NAMES)
def test_nested_vmap_and_jacobian_of_one_parameter(name: str) -> None:
    inputs = random(2, *SHAPES[name])
    for key, weight, ours, theirs in functions(name):
        values = torch.stack([weight, weight.cos(), weight.sin()])
        actual = vmap(vmap(grad(ours), in_dims=(None, 0)), in_dims=(0, None))(values, inputs)
        expected = torch.stack([each_gradient(theirs, [value] * 2, list(inputs)) for value in values])
        assert_accurate(actual, expected, name=key)
        jacobian: Any = jacrev(lambda weight, ours=ours: torch.stack([ours(weight, input) for input in inputs]))(weight)
        assert_accurate(jacobian, expected[0], name=key)


FORMS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], tuple[Any, dict[str, Any]]]]] = {
    "unbatched": ((5, 3), lambda input: (input, {})),
    "one step": ((1, 2, 3), lambda input: (input, {})),
    "no batch": ((5, 0, 3), lambda input: (input, {})),
    "lengths": ((5, 2, 3), lambda input: (input, {"lengths": torch.tensor([5, 0])})),
    "packed": ((6, 3), lambda input: (PackedSequence(input, torch.tensor([3, 2, 1])), {})),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_per_sample_gradients_of_one_parameter_in_every_form(kind: str, form: str) -> None:
    shape, arrange = FORMS[form]
    module = getattr(fused_rnn, kind)(3, 2, bidirectional=True).double()
    weights = {key: weight.detach() for key, weight in module.named_parameters()}
    inputs = random(4, *shape)
    for key, weight in weights.items():

        def function(weight: Tensor, input: Tensor, key: str = key) -> Tensor:
            given, options = arrange(input)
            outputs = flatten(functional_call(module, {**weights, key: weight}, (given,), options))
            return torch.cat([out.flatten() for out in outputs]).square().sum()

        actual = vmap(grad(function), in_dims=(None, 0))(weight, inputs)
        assert_accurate(actual, each_gradient(function, [weight] * 4, list(inputs)), name=key)


@pytest.mark.parametrize("name", NAMES)
def test_no_index_at_all(name: str) -> None:
    """With no samples, or no values of a parameter, results are empty and gradients of what is shared are zero."""
    module, _ = pair(name)
    inputs = random(0, *SHAPES[name]).requires_grad_()
    output = vmap(lambda input: vector(module, input))(inputs)
    assert output.shape == (0, *vector(module, random(*SHAPES[name])).shape)
    for gradient, leaf in zip(
        torch.autograd.grad(output.sum(), [inputs, *module.parameters()]), [inputs, *module.parameters()], strict=True
    ):
        assert torch.equal(gradient, torch.zeros_like(leaf))
    for _, weight, ours, _ in functions(name):
        assert vmap(grad(ours), in_dims=(None, 0))(weight, inputs).shape == (0, *weight.shape)
        none = weight.expand(0, *weight.shape)
        assert vmap(grad(ours), in_dims=(0, None))(none, random(*SHAPES[name])).shape == (0, *weight.shape)
