"""Which masked convolutions of other packages convert replaces by MaskedConv2d, and how their class changes.

Such a layer is a subclass of torch.nn.Conv2d with a buffer ``mask``. Many programs have one of their own, so what it
computes is found out by running it.
"""

import copy
import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fused_rnn.functional.checks import KERNEL_DEVICES, KERNEL_DTYPES
from fused_rnn.modules import MaskedConv2d
from fused_rnn.modules.masked_weight import describe
from fused_rnn.reference.masked_conv2d import identify, masked_conv2d


def decide(module: nn.Module, cls: type[nn.Module]) -> type[nn.Module] | str | None:
    """Decide what :func:`fused_rnn.convert` does with a module.

    Args:
        module: any module.
        cls: its class, without the subclass that torch.nn.utils.parametrize puts in its place.

    Returns:
        Its new class; or the reason why it is kept; or None if it is no masked convolution of another package.
    """
    mask = module._buffers.get("mask")
    if not isinstance(module, nn.Conv2d) or isinstance(module, MaskedConv2d) or mask is None:
        return None
    for name, value in (("stride", (1, 1)), ("groups", 1), ("padding_mode", "zeros")):
        if getattr(module, name) != value:
            return f"its {name} is {getattr(module, name)!r}, not {value!r}"
    if mask.is_meta:
        return "its mask is on the meta device and has no values"
    try:
        active = (mask != 0).expand(module.out_channels, module.in_channels, *module.kernel_size)
    except RuntimeError:
        return f"its mask of shape {list(mask.shape)} does not fit its weight"
    found = identify(active)
    if found is None or (mask[mask != 0] != 1).any():
        words = _unlike(active) if found is None else "it has other values than 0 and 1"
        return f"its mask is none of MaskedConv2d's: {words}"
    return _obstacle(module, cls, *found) or converted(cls, *found)


def _unlike(active: Tensor) -> str:
    """Return in words why a mask is none of ours."""
    words = describe(active, identify)
    if words is not None:
        return f"it is that of {words}"
    if any(size % 2 == 0 for size in active.shape[2:]):
        return "the kernel's size is even"
    taps = active.flatten(2)
    centre = taps.size(2) // 2
    if not taps[..., :centre].all():
        return "not all taps before the centre are active for all channels"
    if taps[..., centre + 1 :].any():
        return "taps after the centre are active"
    return "at the centre the channels have other groups"


def _obstacle(module: nn.Conv2d, cls: type[nn.Module], mask_type: str, data_channels: int) -> str | None:
    """Return why a layer with one of our masks cannot be replaced, or None if it can."""
    if "forward" in vars(module):
        return "its forward was replaced on the module itself"
    if set(module._modules) - {"parametrizations"}:
        return "it contains other modules"
    tensor = next(module.parameters())
    if tensor.device.type not in KERNEL_DEVICES["masked_conv2d"] or tensor.dtype not in KERNEL_DTYPES:
        return f"MaskedConv2d has no kernel for {tensor.dtype} on {tensor.device}"
    return _difference(module, cls, mask_type, data_channels)


def _difference(module: nn.Conv2d, cls: Any, mask_type: str, data_channels: int) -> str | None:
    """Run a layer's forward with random weights, and return how it differs from MaskedConv2d, or None if it does not.

    The layer itself is not run: its forward may write to its weight.
    """
    named = [name for name in inspect.signature(cls.forward).parameters.values() if name.kind < name.VAR_POSITIONAL]
    if len(named) > 2:
        return "its forward takes more than an input"
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight = random(module.out_channels, module.in_channels, *module.kernel_size)
    bias = None if module.bias is None else random(module.out_channels)
    size = [taps // 2 * distance + 3 for taps, distance in zip(module.kernel_size, module.dilation, strict=True)]
    input = random(2, module.in_channels, *size)
    down, across = module.dilation
    expected = masked_conv2d(input, weight, bias, mask_type, data_channels, (down, across))
    for training in (True, False):
        try:
            with torch.random.fork_rng(devices=()):
                output = cls.forward(_with_weights(module, cls, weight, bias, training), input.clone())
        except Exception as error:
            return f"its forward fails on a random image: {type(error).__name__}: {error}"
        if not isinstance(output, Tensor):
            return f"its forward returns a {type(output).__name__}"
        if output.shape != expected.shape:
            return f"its output has another size than its input, with padding={module.padding!r}"
        if not torch.allclose(output, expected):
            return "its forward computes something else than a convolution with weight * mask"
    return None


def _with_weights(module: nn.Conv2d, cls: type[nn.Module], weight: Tensor, bias: Tensor | None, training: bool) -> Any:
    """Return a copy of a layer with other weights, on the CPU in float64."""
    double = copy.copy(vars(module))
    double.pop("weight", None)  # torch.nn.utils.weight_norm stores the weight it computes there
    buffers = {
        name: buffer if buffer is None else buffer.detach().cpu().clone() for name, buffer in module._buffers.items()
    }
    floating = {
        name: buffer.double() if buffer is not None and buffer.is_floating_point() else buffer
        for name, buffer in buffers.items()
    }
    parameters = {"weight": nn.Parameter(weight.clone()), "bias": None if bias is None else nn.Parameter(bias)}
    result = object.__new__(cls)
    vars(result).update(
        {**double, "_parameters": parameters, "_buffers": floating, "_modules": {}, "training": training}
    )
    return result


class ConvertedMaskedConv2d(MaskedConv2d):
    """The base of the classes that :func:`converted` makes, which lets pickle make them again."""

    original: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Return how pickle makes the object again: from the class that it had before."""
        reduced = super().__reduce_ex__(max(int(protocol), 2))
        return _new_converted, (self.original, self.mask_type, self.data_channels), *reduced[2:]


_converted: dict[tuple[type[nn.Module], str, int], type[nn.Module]] = {}


def converted(cls: type[nn.Module], mask_type: str, data_channels: int) -> type[nn.Module]:
    """Derive from a masked convolution of another package a class that computes as MaskedConv2d does.

    An instance of it remains an instance of ``cls``, with the same attributes and state_dict.

    Args:
        cls: a subclass of torch.nn.Conv2d.
        mask_type: that of its mask.
        data_channels: that of its mask.

    Returns:
        A class of the same name, always the same one for the same arguments.
    """
    key = (cls, mask_type, data_channels)
    if key not in _converted:
        namespace = {
            "original": cls,
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "forward": MaskedConv2d.forward,
            "_conv_forward": MaskedConv2d._conv_forward,
            # Properties, since the module may have attributes of these names.
            "mask_type": property(lambda self: mask_type),
            "data_channels": property(lambda self: data_channels),
            "activation": property(lambda self: None),
        }
        # cls must be the first base, so that instances have its memory layout: else __class__ cannot be assigned.
        _converted[key] = type(cls.__name__, (cls, ConvertedMaskedConv2d), namespace)
    return _converted[key]


def _new_converted(cls: type[nn.Module], mask_type: str, data_channels: int) -> nn.Module:
    """Return an empty object of the class that :func:`converted` makes, for pickle to fill."""
    return object.__new__(converted(cls, mask_type, data_channels))


def zero_masked_weights(model: nn.Module, layers: list[nn.Module]) -> None:
    """Set the masked entries of converted layers to zero, as the forward of most masked convolutions does.

    A weight that is computed from other parameters, or that another module has too, is left as it is.

    Args:
        model: the model that was converted.
        layers: its converted layers of any kind.
    """
    owners: dict[Tensor | None, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[parameter] = owners.get(parameter, 0) + 1
    for layer in layers:
        if isinstance(layer, ConvertedMaskedConv2d) and owners.get(layer._parameters.get("weight")) == 1:
            layer.zero_masked_weights()
