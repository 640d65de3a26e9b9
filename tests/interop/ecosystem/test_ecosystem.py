"""Converted models of other packages compute and learn the same as the originals, in float64."""

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import assert_accurate, assert_identical
from models import PROBLEMS, Problem, recurrent_ppo
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


def convert(problem: Problem, model: nn.Module) -> Any:
    return fused_rnn.convert(model, subclasses=problem.subclasses, keep_isinstance=problem.keep_isinstance)


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
    report = convert(problem, model)
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


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)
def test_a_converted_model_can_be_copied_saved_and_reverted(make: Callable[[], Problem]) -> None:
    problem = make()
    model = problem.model.double().eval()
    classes, state = [type(module) for module in model.modules()], model.state_dict()
    convert(problem, model)
    assert model.state_dict().keys() == state.keys()
    model.load_state_dict(state)

    def results(model: nn.Module) -> dict[Any, Tensor]:
        torch.manual_seed(0)
        return {i: out.detach() for i, out in enumerate(flatten(problem.run(model)))}

    # Copied before the model has run, since some models keep their last results, which cannot be copied.
    copies = [copy.deepcopy(model)]
    if problem.picklable:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies.append(torch.load(file, weights_only=False))
    expected = results(model)
    for copied in copies:
        assert_identical(results(copied), expected)
    fused_rnn.revert(model)
    assert [type(module) for module in model.modules()] == classes
    for name, value in results(model).items():
        assert_accurate(expected[name], value, name=str(name))


@pytest.mark.parametrize("name", ["LSTMModule", "GRUModule"])
def test_the_report_says_what_torchrl_needs(name: str) -> None:
    problem = next(make for make in PROBLEMS if make.__name__ == f"torchrl_{name[:-6].lower()}")()
    note = f"torchrl asks whether it is a torch.nn.{name[:-6]}: convert with keep_isinstance=True"
    assert note in str(fused_rnn.convert(problem.model))
    with pytest.raises(TypeError, match="mask"):
        problem.run(problem.model)


def test_recurrent_ppo_learns_and_is_saved(tmp_path: Path) -> None:
    """A converted policy learns, and its file is loaded into one that is not converted."""
    torch.set_default_dtype(torch.float32)  # that of the package's buffers
    algorithm = recurrent_ppo()
    fused_rnn.convert(algorithm.policy)
    before = [weight.clone() for weight in algorithm.policy.parameters()]
    algorithm.learn(64)
    assert not any(map(torch.equal, before, algorithm.policy.parameters()))
    algorithm.save(tmp_path / "policy.zip")
    other = recurrent_ppo()
    other.set_parameters(str(tmp_path / "policy.zip"))
    assert_identical(dict(other.policy.named_parameters()), dict(algorithm.policy.named_parameters()))
