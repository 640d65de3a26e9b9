"""Masked convolution with an activation and a residual, compared with the same of PyTorch in float64."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from comparing import assert_accurate, assert_all_accurate, assert_identical
from convolution_cases import FUSED, ConvolutionCase, Layout, as_made, channels_last
from torch import Tensor, randn

from fused_rnn import functional, ops

F64 = torch.float64
ACTIVATIONS = (None, "relu", "gated")
SMALL = [
    ConvolutionCase(2, 4, (3, 3), "B", 2, (3, 4), batch=1, activation=activation, residual=residual)
    for activation, residual in (("relu", False), ("relu", True), ("gated", False), ("gated", True), (None, True))
]


@pytest.mark.instruction_sets
@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_float64(case: ConvolutionCase, layout: Layout, device: str) -> None:
    ours = case.result(case.ours, F64, layout, layout, device=device)
    assert_all_accurate(ours, case.result(case.oracle, F64))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", FUSED[2::3], ids=str)
def test_other_dtypes(case: ConvolutionCase, dtype: torch.dtype, device: str) -> None:
    # A sum near zero may be rounded to the other side of it, which switches a gradient of ReLU on or off.
    kept = ["output"] if case.activation == "relu" else None
    results = (
        {name: tensor for name, tensor in result.items() if kept is None or name in kept}
        for result in (
            case.result(case.ours, dtype, channels_last, device=device),
            case.result(case.oracle, F64),
            case.result(case.oracle, dtype),
        )
    )
    assert_all_accurate(*results)


@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_of_relu_is_where_its_output_is_positive(dtype: torch.dtype, layout: Layout, device: str) -> None:
    for residual in (False, True):
        case = ConvolutionCase(20, 24, size=(9, 8), activation="relu", residual=residual)
        plain = replace(case, activation=None, residual=False)
        tensors = {name: tensor.to(device) for name, tensor in case.tensors(dtype).items()}
        added = tensors.pop("residual", None)
        sums = plain.ours(**tensors)
        bias = tensors["bias"].requires_grad_()
        output = case.ours(layout(tensors["input"]), tensors["weight"], bias, added)
        (gradient,) = torch.autograd.grad(output, bias, torch.ones_like(output))
        assert torch.equal(gradient, (sums > 0).sum((0, 2, 3)).to(dtype))


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_gradcheck(case: ConvolutionCase, check: Callable[..., bool], device: str) -> None:
    leaves = [tensor.to(device).requires_grad_() for tensor in case.tensors(F64).values()]
    assert check(case.ours, leaves, rtol=1e-6, atol=1e-8, fast_mode=check is torch.autograd.gradgradcheck)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_any_leaf_may_be_frozen(case: ConvolutionCase) -> None:
    everything = case.result(case.ours, F64)
    for frozen in case.tensors(F64):
        leaves = case.tensors(F64)
        needed = [name for name in leaves if name != frozen]
        for name in needed:
            leaves[name].requires_grad_()
        output = case.ours(**leaves)
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(output.shape, generator=generator).bfloat16().to(F64)
        gradients = torch.autograd.grad(output, [leaves[name] for name in needed], grad)
        assert_identical(
            dict(zip(needed, gradients, strict=True)), {name: everything[f"grad {name}"] for name in needed}
        )


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_transforms(case: ConvolutionCase) -> None:
    """Vmap over images, over weights and over gradients, and forward mode."""
    leaves = case.tensors(F64)
    batches = {name: torch.stack([leaf, 2 * leaf, leaf - 1]) for name, leaf in leaves.items()}
    names = list(leaves)

    def convolve(convolution: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return convolution(**dict(zip(names, tensors, strict=True)))

    for mapped in (["input"], ["input", "residual"], ["weight", "bias"], names):
        dims = tuple(0 if name in mapped else None for name in names)
        given = [batches[name] if name in mapped else leaves[name] for name in names]
        ours = torch.vmap(lambda *tensors: convolve(case.ours, *tensors), dims)(*given)
        for index, output in enumerate(ours):
            tensors = {name: batches[name][index] if name in mapped else leaves[name] for name in names}
            assert_accurate(output, case.oracle(**tensors))
    results = []
    for convolution in (case.ours, case.oracle):
        per_sample = torch.func.vmap(
            torch.func.grad(lambda *t, f=convolution: convolve(f, *t).cos().sum(), tuple(range(len(names))))
        )
        gradients = per_sample(*batches.values())
        tangents = tuple(torch.ones_like(leaf) for leaf in leaves.values())
        tangent = torch.func.jvp(lambda *t, f=convolution: convolve(f, *t), tuple(leaves.values()), tangents)[1]
        results.append({**dict(zip(names, gradients, strict=True)), "tangent": tangent})
    assert_all_accurate(*results)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_derivatives_of_the_operator(case: ConvolutionCase, device: str) -> None:
    """They serve traced and exported models, which call it without the functions above it."""

    def operator(input: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        output, sums = ops.masked_conv2d_fused(
            input, weight, bias, residual, *case.options, case.activation or "none", False
        )
        assert sums.shape == (0,)
        return output

    assert_all_accurate(case.result(operator, F64, device=device), case.result(case.oracle, F64))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_saved(activation: str | None, residual: bool, device: str) -> None:
    """The sums of a gate, and those of a ReLU with a residual; otherwise nothing, or the output itself."""
    case = ConvolutionCase(4, 12, activation=activation, residual=residual)
    tensors = {name: tensor.to(device) for name, tensor in case.tensors(F64).items()}
    added = tensors.get("residual")
    arguments = (tensors["input"], tensors["weight"], tensors["bias"], added, *case.options, activation or "none")
    output, sums = ops.masked_conv2d_fused(*arguments, True)
    if activation == "gated" or (activation == "relu" and residual):
        expected = ops.masked_conv2d(tensors["input"], tensors["weight"], tensors["bias"], *case.options)
        assert torch.equal(sums, expected)
    else:
        assert sums.shape == (0,)
    unsaved, nothing = ops.masked_conv2d_fused(*arguments, False)
    assert torch.equal(unsaved, output)
    assert nothing.shape == (0,)


def test_changes_in_place(device: str) -> None:
    """Only the output of a ReLU without a residual is read by the backward pass, so all others may be changed."""
    for case in SMALL:
        tensors = {name: tensor.to(device) for name, tensor in case.tensors(F64).items()}
        weight = tensors["weight"].requires_grad_()
        gradients: list[Tensor] = []
        for change in (torch.Tensor.mul, torch.Tensor.mul_):
            output = case.ours(**tensors)
            changed = change(output, 3)
            if case.activation == "relu" and not case.residual and change is torch.Tensor.mul_:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    changed.sum().backward()
                continue
            gradients += torch.autograd.grad(changed.sum(), weight)
        assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_nan_is_kept_by_relu_and_stays_in_the_future(device: str) -> None:
    for case in (*SMALL, replace(SMALL[0], in_channels=20, out_channels=36)):
        tensors = {name: tensor.to(device) for name, tensor in case.tensors(F64).items()}
        clean = case.ours(**tensors).flatten(2)
        tensors["input"] = tensors["input"].flatten(2).index_fill(2, torch.tensor([7], device=device), torch.nan)
        tensors["input"] = tensors["input"].unflatten(2, case.size)
        output = case.ours(**tensors).flatten(2)
        assert torch.equal(output[..., :7], clean[..., :7])
        assert output[..., 7:8].isnan().all()


@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize("case", [case for case in FUSED if case.in_channels == 40][::4], ids=str)
def test_same_bits_on_any_number_of_threads(case: ConvolutionCase, layout: Layout) -> None:
    once = case.result(case.ours, torch.float32, layout, layout)
    exact, peer = case.result(case.oracle, F64), case.result(case.oracle, torch.float32)
    assert_accurate(once["output"], exact["output"], peer["output"])
    for threads in (2, 3, min(8, 2 * (os.cpu_count() or 1))):
        torch.set_num_threads(threads)
        assert_identical(case.result(case.ours, torch.float32, layout, layout), once)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*SMALL, ConvolutionCase(4, 8, batch=0, activation="gated", residual=True)], ids=str)
def test_opcheck(case: ConvolutionCase, dtype: torch.dtype, layout: torch.memory_format, device: str) -> None:
    tensors = {name: tensor.to(device) for name, tensor in case.tensors(dtype).items()}
    input, residual = tensors["input"].contiguous(memory_format=layout), tensors.get("residual")
    options = (*case.options, case.activation or "none")
    operators = torch.ops.fused_rnn
    for saves in (False, True):
        arguments = (input, tensors["weight"], tensors["bias"], residual, *options, saves)
        torch.library.opcheck(operators.masked_conv2d_fused.default, arguments)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_compile(case: ConvolutionCase, device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(case.ours, fullgraph=True, backend="aot_eager", dynamic=True)
    expected, actual = (case.result(function, F64, device=device) for function in (case.ours, compiled))
    assert_identical(actual, expected)
    with torch.no_grad():
        tensors = {name: tensor.to(device) for name, tensor in case.tensors(F64).items()}
        assert torch.equal(compiled(**tensors), case.ours(**tensors))


def test_the_same_tensor_as_input_and_residual() -> None:
    case = ConvolutionCase(6, 12, activation="gated")
    input, weight, bias = case.tensors(F64).values()
    input.requires_grad_()
    torch._dynamo.reset()
    for function in (case.ours, torch.compile(case.ours, fullgraph=True, backend="aot_eager")):
        ours, exact = (convolution(input, weight, bias, input) for convolution in (function, case.oracle))
        assert_accurate(ours, exact)
        gradient, exact = (torch.autograd.grad(output.cos().sum(), input)[0] for output in (ours, exact))
        assert_accurate(gradient, exact)


def test_unbatched() -> None:
    for case in SMALL:
        tensors = case.tensors(F64)
        alone = {name: t[0] if name in ("input", "residual") else t for name, t in tensors.items()}
        assert torch.equal(case.ours(**alone), case.ours(**tensors)[0])


def test_autocast(device: str) -> None:
    case = replace(SMALL[3], batch=2)
    tensors = {name: tensor.to(device) for name, tensor in case.tensors(torch.float32).items()}
    with torch.autocast(device, torch.bfloat16):
        output = case.ours(**tensors)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, case.ours(**{name: tensor.bfloat16() for name, tensor in tensors.items()}))


BAD: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "activation": (ValueError, "activation must be None, 'relu' or 'gated', got 'tanh'", {"activation": "tanh"}),
    "odd channels": (
        ValueError,
        "out_channels must be a multiple of 2 \\* data_channels, got out_channels=8 and data_channels=3",
        {"activation": "gated", "data_channels": 3},
    ),
    "size": (RuntimeError, r"Expected residual of size \[2, 8, 5, 5\]", {"residual": randn(2, 8, 5, 4)}),
    "broadcast": (RuntimeError, r"Expected residual of size \[2, 8, 5, 5\]", {"residual": randn(2, 8, 1, 1)}),
    "halves": (
        RuntimeError,
        r"Expected residual of size \[2, 4, 5, 5\]",
        {"residual": randn(2, 8, 5, 5), "activation": "gated"},
    ),
    "rank": (RuntimeError, "Expected residual to be 4D as input is, got 3D", {"residual": randn(8, 5, 5)}),
    "dtype": (
        RuntimeError,
        "Input type .* and residual type .* should be the same",
        {"residual": randn(2, 8, 5, 5).double()},
    ),
    "device": (
        RuntimeError,
        "input is on cpu, but residual is on meta",
        {"residual": randn(2, 8, 5, 5, device="meta")},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name: str) -> None:
    exception, words, changed = BAD[name]
    arguments: dict[str, Any] = {"input": randn(2, 4, 5, 5), "weight": randn(8, 4, 3, 3), **changed}
    with pytest.raises(exception, match=words):
        functional.masked_conv2d(**arguments)
    with pytest.raises(exception, match=words):
        functional.masked_conv2d(**{**arguments, "weight": randn(8, 4, 3, 3, requires_grad=True)})


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["activation", "odd channels", "size", "broadcast", "halves", "dtype"])
def test_errors_of_the_operator(name: str, device: str) -> None:
    exception, words, changed = BAD[name]
    words = words.replace("None", "'none'")
    residual = changed.get("residual")
    options = ("A", changed.get("data_channels", 1), (1, 1), changed.get("activation", "none"), True)
    tensors = [
        None if tensor is None else tensor.to(device)
        for tensor in (randn(2, 4, 5, 5), randn(8, 4, 3, 3), None, residual)
    ]
    call: Any = ops.masked_conv2d_fused
    with pytest.raises(exception, match=words):
        call(*tensors, *options)


def test_residuals_are_not_broadcast_in_forward_mode() -> None:
    """There the reference computes the result, which refuses them, too."""
    input, weight, residual = randn(2, 4, 5, 5), randn(8, 4, 3, 3), randn(1, 8, 1, 1)
    with pytest.raises(RuntimeError, match=r"Expected residual of size \[2, 8, 5, 5\]"):
        torch.func.jvp(
            lambda x: functional.masked_conv2d(x, weight, residual=residual), (input,), (torch.ones_like(input),)
        )
