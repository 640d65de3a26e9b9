"""MaskedConv2d as a module; the errors of function, module and operator; the operators under compile and export."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from convolution_cases import ConvolutionCase, channels_last
from torch import Tensor, randn

from fused_rnn import MaskedConv2d, functional

F64 = torch.float64


def test_state_dict_of_conv2d() -> None:
    dense = torch.nn.Conv2d(3, 9, 5, padding="same")
    layer = MaskedConv2d(3, 9, 5, "A", 3)
    layer.load_state_dict(dense.state_dict())
    assert list(layer.state_dict()) == list(dense.state_dict())
    with torch.no_grad():
        dense.weight *= ConvolutionCase(3, 9, (5, 5), "A", 3).mask()
    input = randn(2, 3, 8, 8)
    torch.testing.assert_close(layer(input), dense(input))


def test_copies() -> None:
    layer, input = MaskedConv2d(3, 9, 5, "B", 3, dilation=2), randn(2, 3, 8, 8)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert torch.equal(clone(input), layer(input))
        with torch.no_grad():
            clone.weight.zero_()
        assert torch.equal(layer.weight != 0, layer.mask)


@pytest.mark.parametrize(
    ("args", "taps"),
    [
        ((8, 16, 3, "A"), 4),
        ((8, 16, 3, "B"), 5),
        ((8, 16, (3, 5), "A", 3), 8),
        ((8, 16, 1, "A"), 1),
        ((8, 16, (3, 5), "vertical_A"), 5),
        ((8, 16, (3, 5), "vertical_B"), 10),
        ((8, 16, (1, 5), "vertical_A"), 1),
    ],
)
def test_initialisation(args: tuple[Any, ...], taps: int) -> None:
    layer = MaskedConv2d(*args)
    bound = 1 / math.sqrt(8 * taps)
    assert not layer.weight[~layer.mask].any()
    before = torch.cat([layer.weight[layer.mask], layer.bias]).detach()  # type: ignore[list-item]
    assert before.abs().max() <= bound
    for part in before.split([len(before) - 16, 16]):
        assert len(part) == 0 or part.abs().max() > 0.8 * bound
    layer.reset_parameters()
    after = torch.cat([layer.weight[layer.mask], layer.bias])  # type: ignore[list-item]
    assert (after != before).all()
    assert not layer.weight[~layer.mask].any()


def test_repr() -> None:
    assert repr(MaskedConv2d(1, 2, 3)) == "MaskedConv2d(1, 2, kernel_size=(3, 3), mask_type='A')"
    layer = MaskedConv2d(3, 6, (3, 5), "B", 3, bias=False, dilation=(1, 2))
    options = "mask_type='B', data_channels=3, dilation=(1, 2), bias=False"
    assert repr(layer) == f"MaskedConv2d(3, 6, kernel_size=(3, 5), {options})"
    assert "mask_type='vertical_A'" in repr(MaskedConv2d(1, 2, 3, "vertical_A"))


def test_dtype_device_and_memory_format() -> None:
    assert MaskedConv2d(2, 4, 3, dtype=F64)(randn(1, 2, 3, 3, dtype=F64)).dtype == F64
    layer = MaskedConv2d(2, 4, 3, device="meta")
    assert layer(randn(5, 2, 3, 3, device="meta")).shape == (5, 4, 3, 3)
    layer = MaskedConv2d(2, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert layer(randn(5, 2, 3, 3)).is_contiguous(memory_format=torch.channels_last)


def test_changed_weights_are_seen() -> None:
    layer, input = MaskedConv2d(2, 4, 3), randn(1, 2, 5, 5)
    before = layer(input)
    layer.weight.data.mul_(2)
    layer.bias.data.mul_(2)  # type: ignore[union-attr]
    assert torch.equal(layer(input), 2 * before)


def test_changed_input_is_noticed_in_backward() -> None:
    layer, input = MaskedConv2d(2, 4, 3), randn(1, 2, 5, 5)
    output = layer(input)
    input.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_autocast(device: str) -> None:
    layer, input = MaskedConv2d(2, 4, 3, device=device), randn(1, 2, 5, 5, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = layer(input)
        assert layer.double()(input.double()).dtype == F64
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"mask_type": "C"}, "mask_type must be 'A', 'B', 'vertical_A' or 'vertical_B', got 'C'"),
    ({"mask_type": "vertical_B", "data_channels": 2}, "data_channels must be 1 with mask_type 'vertical_B', .* got 2"),
    ({"mask_type": "a"}, "mask_type"),
    ({"kernel_size": 2}, "kernel_size .* odd"),
    ({"kernel_size": (3, 4)}, "kernel_size .* odd"),
    ({"kernel_size": 0}, "kernel_size .* positive"),
    ({"kernel_size": -3}, "kernel_size .* positive"),
    ({"kernel_size": (3, 3, 3)}, "kernel_size must be two"),
    ({"dilation": 0}, "dilation .* positive"),
    ({"dilation": (1, -1)}, "dilation .* positive"),
    ({"data_channels": 0}, "data_channels must be positive"),
    ({"data_channels": 5}, "data_channels .* must not exceed .* in_channels=4"),
    ({"in_channels": 6, "data_channels": 5}, "data_channels .* must not exceed .* out_channels=4"),
    ({"in_channels": 0}, "in_channels"),
    ({"out_channels": -1}, "out_channels"),
]


@pytest.mark.parametrize(("changed", "words"), BAD_ARGUMENTS, ids=str)
def test_constructor_errors(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaskedConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **changed})


run = functional.masked_conv2d
Call = Callable[[Tensor, Tensor, Tensor], Any]
ERRORS: dict[str, tuple[type[Exception], str, Call]] = {
    "mask_type": (ValueError, "mask_type must be 'A', .* got 'X'", lambda x, w, b: run(x, w, b, "X")),
    "vertical": (ValueError, "data_channels must be 1 with", lambda x, w, b: run(x, w, b, "vertical_A", 3)),
    "even kernel": (ValueError, "kernel_size must be odd", lambda x, w, b: run(x, w[..., :2], b)),
    "no kernel": (ValueError, "kernel_size must be odd", lambda x, w, b: run(x, w[..., :0], b)),
    "no group": (ValueError, "data_channels must be positive", lambda x, w, b: run(x, w, b, "A", 0)),
    "negative groups": (ValueError, "data_channels must be positive", lambda x, w, b: run(x, w, b, "A", -1)),
    "many groups": (ValueError, "must not exceed in_channels", lambda x, w, b: run(x, w, b, "A", 4)),
    "dilation": (RuntimeError, "non-positive dilation is not supported", lambda x, w, b: run(x, w, b, "A", 1, 0)),
    "3 dilations": (RuntimeError, "list of 2 values", lambda x, w, b: run(x, w, b, "A", 1, (1, 1, 1))),  # type: ignore[arg-type]
    "2-D input": (RuntimeError, r"Expected 3D \(unbatched\) or 4D", lambda x, w, b: run(x[0, 0], w, b)),
    "5-D input": (RuntimeError, r"Expected 3D \(unbatched\) or 4D", lambda x, w, b: run(x[None], w, b)),
    "3-D weight": (RuntimeError, "Expected 4D weight", lambda x, w, b: run(x, w[0], b)),
    "no outputs": (RuntimeError, "weight to be at least 1 at dimension 0", lambda x, w, b: run(x, w[:0], b[:0])),
    "channels": (RuntimeError, "to have 3 channels, but got 2 channels", lambda x, w, b: run(x[:, :2], w, b)),
    "no rows": (RuntimeError, "height and width", lambda x, w, b: run(x[:, :, :0], w, b)),
    "no columns": (RuntimeError, "height and width", lambda x, w, b: run(x[..., :0], w, b)),
    "bias size": (RuntimeError, "bias to be 1-dimensional with 4 elements", lambda x, w, b: run(x, w, b[:3])),
    "bias rank": (RuntimeError, "bias to be 1-dimensional with 4 elements", lambda x, w, b: run(x, w, b[None])),
    "input dtype": (RuntimeError, "not the same dtype", lambda x, w, b: run(x.double(), w, b)),
    "weight dtype": (RuntimeError, "not the same dtype", lambda x, w, b: run(x, w.half(), b)),
    "bias dtype": (RuntimeError, "not the same dtype", lambda x, w, b: run(x, w, b.double())),
    "device": (RuntimeError, "not at the same device", lambda x, w, b: run(x, w.to("meta"), b)),
    "integers": (NotImplementedError, "input.*int64", lambda x, w, b: run(x.long(), w.long(), b.long())),
    "complex": (
        NotImplementedError,
        "input.*complex64",
        lambda x, w, b: run(x + 0j, w + 0j, b + 0j),
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    exception, words, call = ERRORS[name]
    with pytest.raises(exception, match=words):
        call(randn(2, 3, 5, 5), randn(4, 3, 3, 3), randn(4))


CASES = [
    ConvolutionCase(bias=False),
    ConvolutionCase(3, 5, data_channels=3, dilation=(1, 2)),
    ConvolutionCase(mask_type="vertical_B"),
    ConvolutionCase(batch=0),
]
DTYPES = [F64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(case: ConvolutionCase, dtype: torch.dtype, layout: torch.memory_format, device: str) -> None:
    tensors = {name: tensor.to(device) for name, tensor in case.tensors(dtype).items()}
    input, weight, bias = tensors["input"], tensors["weight"], tensors.get("bias")
    input, weight = input.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
    operators = torch.ops.fused_rnn
    torch.library.opcheck(operators.masked_conv2d.default, (input, weight, bias, *case.options))
    grad = torch.randn_like(case.ours(input, weight))
    for wanted in ((True, True, True), (False, True, False), (True, False, False)):
        arguments = (grad, input, weight, *case.options, *wanted)
        torch.library.opcheck(operators.masked_conv2d_backward.default, arguments)


def test_compile_without_graph_breaks(device: str) -> None:
    layer = MaskedConv2d(3, 8, 3, "B", 3, device=device)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for images in (randn(2, 3, 5, 6, device=device), channels_last(randn(3, 3, 7, 8, device=device))):
        expected, actual = layer(images), compiled(images)
        assert torch.equal(actual, expected)
        assert actual.stride() == expected.stride()
        weights = list(layer.parameters())
        grads = [torch.autograd.grad(output.square().sum(), weights) for output in (expected, actual)]
        assert all(map(torch.equal, *grads))
        with torch.no_grad():
            assert torch.equal(compiled(images), expected)


def test_export_with_dynamic_batch() -> None:
    layer = MaskedConv2d(3, 8, 3, "B")
    exported = torch.export.export(layer, (randn(4, 3, 5, 5),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    input = randn(7, 3, 5, 5)
    assert torch.equal(exported.module()(input), layer(input))
