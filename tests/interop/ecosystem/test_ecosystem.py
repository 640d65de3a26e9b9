"""Converted models of other packages compute and learn the same as the originals, in float64."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from comparing import assert_accurate
from models import PROBLEMS, Problem
from torch import Tensor, nn

import fused_rnn

pytestmark = pytest.mark.ecosystem


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    """Make models create their states and masks in float64, too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def flatten(outputs: Any) -> list[Tensor]:
    """Return the floating-point tensors in the results of a model."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    outputs = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for out in outputs for tensor in flatten(out)] if isinstance(outputs, (list, tuple)) else []


def train(problem: Problem, model: nn.Module) -> dict[str, Tensor]:
    """Return the outputs of a model in training, all gradients, and the parameters after three optimizer steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    results: dict[str, Tensor] = {}
    for step in range(3):
        torch.manual_seed(step)
        outputs = flatten(problem.run(model))
        optimizer.zero_grad()
        torch.stack([out.square().mean() for out in outputs]).sum().backward()
        if step == 0:
            results |= {f"output {i}": out.detach() for i, out in enumerate(outputs)}
            grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
            results |= {f"grad {name}": grad.clone() for name, grad in grads.items()}
        optimizer.step()
    return results | {f"trained {name}": weight.detach() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)
def test_a_converted_model_learns_the_same(make: Callable[[], Problem]) -> None:
    problem = make()
    model = problem.model.double().train()
    original = copy.deepcopy(model)
    report = fused_rnn.convert(model, subclasses=problem.subclasses)
    assert len(report.replaced) == problem.layers, str(report)
    assert not report.kept, str(report)
    actual, expected = train(problem, model), train(problem, original)
    assert actual.keys() == expected.keys()
    layers = {f"{place}." if place else "" for layer in report.replaced for place in layer.names}
    for kind in ("grad ", "trained "):
        names = [name for name in expected if name.startswith(kind)]
        converted = [name for name in names if any(name.startswith(f"{kind}{layer}") for layer in layers)]
        assert converted
        for name in converted:
            assert_accurate(actual[name], expected[name], name=name)
        if rest := [name for name in names if name not in converted]:
            # Compared together, since some gradients are only rounding errors, such as of a bias before a
            # normalisation.
            ours, theirs = (torch.cat([results[name].flatten() for name in rest]) for results in (actual, expected))
            assert_accurate(ours, theirs, name=f"{kind}of all other layers")
    outputs = [name for name in expected if name.startswith("output ")]
    assert outputs
    for name in outputs:
        assert_accurate(actual[name], expected[name], name=name)
