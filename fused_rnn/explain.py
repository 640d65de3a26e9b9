"""Tells which kernels run a layer, and why."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fused_rnn import _C
from fused_rnn.functional.autocast import computed_dtype
from fused_rnn.functional.masked_conv1d import as_row
from fused_rnn.modules import GRU, LSTM, RNN, MaskedConv1d, MaskedConv2d


def explain(module: LSTM | GRU | RNN | MaskedConv1d | MaskedConv2d, input: Tensor | PackedSequence) -> str:
    """Tell which kernels run a layer for an input, forward and backward, and why.

    On a GPU a recurrent layer runs in persistent kernels, which keep the recurrent weights on the chip over all steps,
    in one of two ways: thread blocks exchange the hidden values within clusters ("cluster") or through the L2 cache
    ("grid"). Otherwise it runs on the stepwise path: one product and one pointwise kernel for each step. The hidden
    size may be padded with zeros, which changes no result. A masked convolution runs in kernels of our own in half
    precision and, but on GPUs of compute capability 9.0, in float32 that may be rounded to tf32; otherwise in torch's
    own convolutions over rectangles of active taps, so that a masked tap is not computed there either.

    Args:
        module: the layer.
        input: the input of the layer, of which only shape, dtype and device matter, and whether autocast is enabled.

    Returns:
        A text of one or more lines.

    Raises:
        TypeError: ``module`` is no layer of this package.
        NotImplementedError: ``input`` is on a GPU, but this package was built without CUDA.

    Example:
        >>> import torch, fused_rnn
        >>> print(fused_rnn.explain(fused_rnn.LSTM(4, 8), torch.randn(5, 3, 4)))  # doctest: +ELLIPSIS
        LSTM on cpu, torch.float32: kernels for ...
    """
    if not isinstance(module, (LSTM, GRU, RNN, MaskedConv1d, MaskedConv2d)):
        raise TypeError(
            f"module must be a fused_rnn.LSTM, GRU, RNN, MaskedConv1d or MaskedConv2d, got {type(module).__name__}"
        )
    data: Tensor = input.data if isinstance(input, PackedSequence) else input
    dtype = computed_dtype(data)
    head = f"{type(module).__name__} on {data.device}, {dtype}"
    if data.device.type != "cuda":
        frozen = getattr(module, "_frozen", None)
        weights = "" if frozen is None else f", weights frozen as {frozen.dtype or dtype}"
        return f"{head}: kernels for {_C.build_info()['cpu_capability']}{weights}"
    if not hasattr(_C, "cuda_plan"):
        raise NotImplementedError("input is on a GPU, and fused_rnn was built without CUDA kernels")
    if isinstance(module, (MaskedConv1d, MaskedConv2d)):
        return "\n".join([f"{head}:", *_describe_convolution(module, data, dtype)])
    if isinstance(input, PackedSequence):
        time, batch = len(input.batch_sizes), int(input.batch_sizes[0])
    else:
        time, batch = (data.size(0), 1) if data.dim() == 2 else data.shape[:2]
        if module.batch_first and data.dim() == 3:
            time, batch = batch, time
    problem = {
        "cell": module.mode.lower(),  # torch.nn's modes are the names of our cells in capitals
        "element_bytes": dtype.itemsize,
        "batch": batch,
        "hidden_size": module.hidden_size,
        "directions": 2 if module.bidirectional else 1,
        "projected": module.proj_size > 0,
        "time": time,
        "device": data.device.index or 0,
    }
    plans = {backward: _C.cuda_plan(**problem, backward=backward) for backward in (False, True)}  # type: ignore[arg-type]
    lines = [
        f"  {'backward' if backward else 'forward'}: {_describe(plan, module.hidden_size)}"
        for backward, plan in plans.items()
    ]
    return "\n".join([f"{head}:", *lines])


def _describe_convolution(module: MaskedConv1d | MaskedConv2d, input: Tensor, dtype: torch.dtype) -> list[str]:
    weight, rank = module.weight, module.weight.dim()
    images = input if input.dim() == rank else input.unsqueeze(0)
    if isinstance(module, MaskedConv1d):
        images, weight = images.unsqueeze(2), as_row(weight)
    down, across = (1, *module.dilation)[-2:]
    passes = _C.cuda_masked_conv2d_plan(
        images.shape,
        weight.shape,
        module.mask_type,
        module.data_channels,
        dilation_height=down,
        dilation_width=across,
        element_bytes=dtype.itemsize,
        device=input.device.index or 0,
    )
    return [f"  {name}: {_describe_pass(plan)}" for name, plan in passes.items()]


def _describe_pass(plan: dict[str, Any]) -> str:
    if "rectangles" in plan:
        count = plan["rectangles"]
        convolutions = f"{count} convolution{'' if count == 1 else 's'} of torch"
        return f"{convolutions} over rectangles of active taps, since {plan['reason']}"
    blocks = f"{plan['blocks']} blocks of {plan['shared_bytes']} bytes of shared memory"
    if "mma_channels" in plan:
        tiles = f"tiles of {plan['mma_channels']} channels"
        return f"a kernel that multiplies active taps only, whose warps multiply by themselves, in {tiles} on {blocks}"
    if "rows" not in plan:
        return f"a kernel for first layers, which multiplies all active taps and channels at once, on {blocks}"
    tiles = f"tiles of {plan['rows']} x 8 pixels and {plan['channels']} channels"
    return f"a kernel that multiplies active taps only, in {tiles} on {blocks}"


def _describe(plan: dict[str, Any], hidden_size: int) -> str:
    if plan["path"] == "stepwise":
        return f"stepwise, since {plan['reason']}"
    padded = f"padded to hidden size {plan['hidden_size']}, " if plan["hidden_size"] != hidden_size else ""
    estimate = f", about {plan['microseconds']:.1f} us a step" if "microseconds" in plan else ""
    return (
        f"{plan['path']}, {padded}{plan['groups']} groups of {plan['blocks']} blocks for each direction, of "
        f"{plan['units']} hidden units and {plan['sequences']} sequences each, {plan['shared_bytes']} bytes of shared "
        f"memory a block{', one direction after the other' if plan['launches'] > 1 else ''}{estimate}"
    )
