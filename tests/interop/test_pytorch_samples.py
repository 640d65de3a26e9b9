"""The samples with which PyTorch tests its own recurrent layers and cells, run on ours."""

from functools import partial
from typing import Any

import pytest
import torch
from cases import flatten
from comparing import assert_accurate, assert_all_accurate, differentiate
from conversions import NAMES
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import fused_rnn

OURS: dict[type, type] = {getattr(torch.nn, name): getattr(fused_rnn, name) for name in NAMES}
INFOS = [info for info in module_db if info.module_cls in OURS]


# Importing PyTorch's samples forbids setting flags such as torch.backends.cudnn.enabled, which other tests do.
vars(torch.backends)["__allow_nonbracketed_mutation_flag"] = True


def samples(info: Any, training: bool) -> list[Any]:
    """Return the samples of a module, with packed sequences if there are any."""
    kwargs = {"with_packed_sequence": True} if info.module_cls in (torch.nn.GRU, torch.nn.RNN) else {}
    return list(info.module_inputs_func(info, "cpu", torch.float64, True, training, **kwargs))


def leaves(value: Any) -> list[Tensor]:
    """Return the tensors in the arguments of a sample that require a gradient."""
    if isinstance(value, PackedSequence):
        value = value.data
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, tuple | list) else []


def result(module: torch.nn.Module, sample: Any) -> dict[str, Tensor]:
    """Return all outputs of a module, and the gradients of arguments and parameters."""
    args, kwargs = sample.forward_input.args, sample.forward_input.kwargs
    outputs = flatten(module(*args, **kwargs))
    inputs = {f"argument {i}": leaf for i, leaf in enumerate(leaves(args))} | dict(module.named_parameters())
    return {**{f"out{i}": out.detach() for i, out in enumerate(outputs)}, **differentiate(outputs, inputs)}


def test_every_module_has_samples() -> None:
    assert {info.module_cls for info in INFOS} == OURS.keys()
    assert all(len(samples(info, True)) >= 2 for info in INFOS)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_samples(info: Any, training: bool) -> None:
    torch.manual_seed(0)
    for sample in samples(info, training):
        constructor = sample.constructor_input
        theirs, ours = (
            cls(*constructor.args, **constructor.kwargs, dtype=torch.float64).train(training)
            for cls in (info.module_cls, OURS[info.module_cls])
        )
        ours.load_state_dict(theirs.state_dict())
        assert_all_accurate(result(ours, sample), result(theirs, sample))
        args, kwargs = sample.forward_input.args, sample.forward_input.kwargs
        if sample.reference_fn is not None and isinstance(args[0], Tensor):  # it runs our module on a batch of one
            expected = flatten(sample.reference_fn(ours, *args, **kwargs))
            for out, other in zip(flatten(ours(*args, **kwargs)), expected, strict=True):
                assert_accurate(out, other)


@pytest.mark.parametrize("info", [info for info in INFOS if info.module_error_inputs_func], ids=lambda info: info.name)
def test_error_samples(info: Any) -> None:
    errors = list(info.module_error_inputs_func(info, "cpu", torch.float32, False, False))
    assert errors
    for error in errors:
        constructor, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
        build = partial(OURS[info.module_cls], *constructor.args, **constructor.kwargs)
        in_forward = error.error_on is ModuleErrorEnum.FORWARD_ERROR
        failing = partial(build(), *given.args, **given.kwargs) if in_forward else build
        with pytest.raises(error.error_type, match=error.error_regex):
            failing()
