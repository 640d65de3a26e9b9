"""Weights that are put in the place of a parameter by other ways than assignment are used, as torch.nn uses them."""

import copy
from typing import Any

import pytest
import torch
from cases import KINDS, flatten
from comparing import assert_all_accurate, assert_identical, differentiate
from every_module import NAMES, SHAPES, pair, random
from torch import Tensor

from fused_rnn.modules import GRUCellResetBefore, GRUResetBefore


def results(module: Any, input: Tensor, *weights: Tensor) -> dict[Any, Tensor]:
    """Return the outputs of a module and the gradients of ``weights``."""
    outputs = flatten(module(input))
    return {**dict(enumerate(outputs)), **differentiate(outputs, dict(enumerate(weights)))}


def first_weight(module: torch.nn.Module) -> tuple[str, Tensor]:
    """Return the name of a module's first weight, and another weight in its place, which requires a gradient."""
    name, _ = next(module.named_parameters())
    return name, (2 * module.get_parameter(name)).detach().requires_grad_()


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_on_the_object_hides_the_parameter(name: str) -> None:
    """Meta-learning puts updated weights on a module by object.__setattr__."""
    ours, theirs = pair(name)
    input = random(*SHAPES[name])
    before = flatten(ours(input))[0]
    weight, fast = first_weight(ours)
    for module in (ours, theirs):
        object.__setattr__(module, weight, fast)
    actual = results(ours, input, fast)
    assert_all_accurate(actual, results(theirs, input, fast))
    assert not torch.equal(actual[0], before)
    object.__delattr__(ours, weight)
    assert_identical({"": flatten(ours(input))[0]}, {"": before})


@pytest.mark.parametrize(
    ("module", "shape"), [(GRUResetBefore(3, 2), (3, 2, 3)), (GRUCellResetBefore(3, 2), (2, 3))], ids=["layer", "cell"]
)
def test_also_where_there_is_no_kernel(module: torch.nn.Module, shape: tuple[int, ...]) -> None:
    module, doubled, input = copy.deepcopy(module).double(), copy.deepcopy(module).double(), random(*shape)
    name = next(name for name, _ in module.named_parameters() if name.startswith("weight_ih"))
    with torch.no_grad():
        doubled.get_parameter(name).mul_(2)
    expected = dict(enumerate(flatten(doubled(input))))
    object.__setattr__(module, name, 2 * module.get_parameter(name))
    assert_identical(dict(enumerate(flatten(module(input)))), expected)


@pytest.mark.parametrize("kind", [*KINDS, "GRUResetBefore"])
def test_a_write_to_the_list_of_weights_is_used(kind: str) -> None:
    ours, theirs = pair(kind) if kind in KINDS else (GRUResetBefore(3, 2, 2, bidirectional=True).double(), None)
    input, (name, fast) = random(3, 2, 3), first_weight(ours)
    index = ours._flat_weights_names.index(name)
    if theirs is None:
        theirs = copy.deepcopy(ours)
        setattr(theirs, name, torch.nn.Parameter(fast.detach()))
        expected = results(theirs, input, theirs.get_parameter(name))
    else:
        theirs._flat_weights[index] = fast
        expected = results(theirs, input, fast)
    ours._flat_weights[index] = fast
    assert_all_accurate(results(ours, input, fast), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_of_weights_counts_no_more_after_a_later_change(kind: str) -> None:
    """As in torch.nn, a weight that is replaced by its name makes the list anew."""
    ours, theirs = pair(kind)
    input = random(3, 2, 3)
    for module in (ours, theirs):
        module._flat_weights[1] = 2 * module.weight_hh_l0.detach()
        object.__setattr__(module, "weight_ih_l0", 3 * module.weight_ih_l0.detach())
    assert_all_accurate(dict(enumerate(flatten(ours(input)))), dict(enumerate(flatten(theirs(input)))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_another_length_is_refused(kind: str) -> None:
    ours, _ = pair(kind)
    del ours._flat_weights[-1]
    with pytest.raises(RuntimeError, match="incorrect number of RNN parameters: 15 for 4"):
        ours(random(3, 2, 3))
