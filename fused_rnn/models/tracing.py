"""Turns the network of a model into the list of operations that is evaluated pixel by pixel."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, fx, nn

from fused_rnn import functional
from fused_rnn.functional.pixel_network import Kind, PixelNetwork
from fused_rnn.modules import GatedActivation, MaskedConv2d


class Sees(IntEnum):
    """Which pixels a value depends on."""

    ROWS_ABOVE = 0
    PIXELS_BEFORE = 1
    ITSELF = 2


@dataclass(frozen=True)
class Value:
    """What the network computes at every pixel."""

    position: int
    channels: int
    sees: Sees


class Tracer(fx.Tracer):
    """Traces the code of modules, except those that :class:`Translator` knows and those of torch.nn."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Return whether the call of a module is one operation."""
        return isinstance(module, (MaskedConv2d, GatedActivation)) or super().is_leaf_module(module, name)


def trace(network: nn.Module, channels: int, groups: int, shape: tuple[int, int, int], *args: Any) -> PixelNetwork:
    """Return the operations of a network.

    Args:
        network: a module that maps images ``[batch, channels, height, width]`` to the parameters of distributions. It
            may consist of :class:`fused_rnn.MaskedConv2d`, :class:`fused_rnn.GatedActivation`, ReLU, sums, products,
            torch.cat and chunk along the channels, and, where images are not involved, of anything.
        channels: the number of channels of an image.
        groups: how many groups of channels, such as colours, are drawn one after the other.
        shape: batch, height and width of the images.
        args: the network's further arguments, such as a condition.

    Returns:
        The operations. Their last one computes the output of the network.

    Raises:
        ValueError: the network contains something that cannot be evaluated pixel by pixel, or sees pixels that are not
            known yet.
    """
    translator = Translator(network, channels, groups, shape)
    return translator.translate(args)


class Translator:
    """Goes through the graph of a network, and appends an operation for each node that depends on the images.

    Nodes that do not depend on them, such as the projection of a condition, are computed on the way.
    """

    def __init__(self, network: nn.Module, channels: int, groups: int, shape: tuple[int, int, int]) -> None:
        self.module, self.shape = network, shape
        self.network = PixelNetwork(groups)
        self.images = Value(self.network.add_value(channels), channels, Sees.ITSELF)
        self.known: dict[fx.Node, Any] = {}

    @torch.no_grad()
    def translate(self, args: tuple[Any, ...]) -> PixelNetwork:
        """Return the operations, given the arguments of the network after the images."""
        tracer = Tracer()
        graph = tracer.trace(self.module)
        inputs = iter((self.images, *args))
        for node in graph.nodes:
            if node.op == "placeholder":
                self.known[node] = next(inputs, None)
            elif node.op == "get_attr":
                self.known[node] = operator.attrgetter(node.target)(self.module)
            elif node.op == "output":
                return self._finished(self._value(node.args[0]))
            else:
                self.known[node] = self._call(node)
        raise AssertionError("a graph ends with its output")

    def _finished(self, output: Any) -> PixelNetwork:
        """Check the output, and make sure that the last operation computes it."""
        if not isinstance(output, Value):
            raise ValueError(f"the network must return one tensor that depends on the images, got {type(output)}")
        if output.sees == Sees.ITSELF:
            raise ValueError("the network's output sees the very pixel that it should predict")
        if not self.network.nodes or self.network.nodes[-1].output != output.position:
            self._copies([(output, 0, output.channels)])
        return self.network

    def _value(self, argument: Any) -> Any:
        """Return what an argument of a node stands for."""
        return fx.node.map_arg(argument, lambda node: self.known[node])

    def _call(self, node: fx.Node) -> Any:
        """Compute a node that does not depend on the images, or append the operations of one that does."""
        args, kwargs = self._value(node.args), self._value(node.kwargs)
        target: Any = node.target
        if node.op == "call_module":
            target = self.module.get_submodule(target)
        elif node.op == "call_method":
            target = getattr(Tensor, target)
        flat: list[Any] = []
        fx.node.map_aggregate((args, kwargs), flat.append)
        if not any(isinstance(value, Value) for value in flat):
            return target(*args, **kwargs)
        # A chunk of a value is a tuple, of which the graph takes items.
        if target is operator.getitem and isinstance(args[0], list):
            return args[0][args[1]]
        if isinstance(target, nn.Module):
            translated = self._module(target, *args, **kwargs)
        else:
            translated = self._function(target, args, kwargs)
        if translated is None:
            raise ValueError(f"{_name(node, target)} cannot be evaluated pixel by pixel")
        if _is_in_place(node, target):
            self.known[node.args[0]] = translated  # type: ignore[index]
        return translated

    def _module(self, module: nn.Module, input: Any, residual: Any = None) -> Value | None:
        """Append the operations of a module; return None if it is unknown."""
        if isinstance(module, MaskedConv2d):
            # The images may reach it only as the residual.
            is_known = not isinstance(input, Value)
            output = module(input) if is_known else self._activated(module, self._convolution(module, input))
            return output if residual is None else self._both(Kind.ADD, output, residual)
        if isinstance(module, GatedActivation):
            return self._gate(input, module.data_channels)
        if isinstance(module, nn.ReLU):
            return self._each(Kind.RELU, input)
        if isinstance(module, nn.Identity):
            return input
        if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d)):
            if module.training and module.p > 0:
                raise ValueError("the model is in training mode, in which dropout is random: call model.eval() first")
            return input
        return None

    def _function(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Append the operations of a function or method; return None if it is unknown."""
        if function in (operator.add, operator.iadd, torch.add, Tensor.add, Tensor.add_) and not kwargs:
            return self._both(Kind.ADD, *args)
        if function in (operator.mul, operator.imul, torch.mul, Tensor.mul, Tensor.mul_) and not kwargs:
            return self._both(Kind.MULTIPLY, *args)
        if function in (torch.relu, nn.functional.relu, Tensor.relu, Tensor.relu_):
            return self._each(Kind.RELU, args[0])
        if function is functional.gated_activation:
            return self._gate(*args, **kwargs)
        if function in (torch.cat, torch.concat):
            return self._concatenated(*args, **kwargs)
        if function in (torch.chunk, Tensor.chunk):
            return self._chunks(*args, **kwargs)
        if function in (nn.functional.dropout, nn.functional.dropout2d) and not kwargs.get("training", True):
            return args[0]
        return None

    def _convolution(self, layer: MaskedConv2d, input: Value) -> Value:
        """Append a masked convolution, which decides what its output sees."""
        groups, mask_type = self.network.groups, layer.mask_type
        if layer.data_channels not in (1, groups) and groups != 1:
            raise ValueError(
                f"{layer} has data_channels={layer.data_channels}, but images are drawn in {groups} groups of channels"
            )
        # The pixel itself may be read by type B if it has been shut out by an earlier layer, and, where channels are
        # drawn one after the other, only in groups.
        separates = layer.data_channels == groups or input.sees == Sees.ROWS_ABOVE
        leaks = {
            "A": False,
            "B": input.sees == Sees.ITSELF or not separates,
            "vertical_A": False,
            "vertical_B": input.sees != Sees.ROWS_ABOVE,
        }
        if leaks[mask_type]:
            raise ValueError(f"{layer} sees pixels or channels that are not known yet, when its output is needed")
        above = input.sees == Sees.ROWS_ABOVE or mask_type == "vertical_A"
        down, across = layer.dilation
        position = self.network.add_convolution(
            input.position, layer.weight, layer.bias, mask_type, layer.data_channels, (down, across), above
        )
        return Value(position, layer.out_channels, Sees.ROWS_ABOVE if above else Sees.PIXELS_BEFORE)

    def _activated(self, layer: MaskedConv2d, sums: Value) -> Value:
        if layer.activation == "relu":
            return self._each(Kind.RELU, sums)
        return self._gate(sums, layer.data_channels) if layer.activation == "gated" else sums

    def _append(self, kind: Kind, inputs: tuple[Value, ...], channels: int, details: tuple[int, ...] = ()) -> Value:
        """Append an operation that computes each pixel from the same pixel of its inputs."""
        sees = _sees(inputs)
        positions = [input.position for input in inputs]
        output = self.network.add_value(channels)
        self.network.add(kind, positions, output, sees == Sees.ROWS_ABOVE, details)
        return Value(output, channels, sees)

    def _each(self, kind: Kind, input: Value) -> Value:
        return self._append(kind, (input,), input.channels)

    def _both(self, kind: Kind, a: Any, b: Any) -> Value:
        """Append a sum or a product, of which one side may be a number or a tensor without images."""
        if not isinstance(a, Value):
            a, b = b, a
        if not isinstance(b, Value):
            batch, height, width = self.shape
            constant = torch.as_tensor(b, dtype=self.weight.dtype, device=self.weight.device)
            size = (1,) * (4 - constant.dim()) + tuple(constant.shape)
            if len(size) != 4 or any(
                n not in (1, m) for n, m in zip(size, (batch, a.channels, height, width), strict=True)
            ):
                raise ValueError(
                    f"a tensor of shape {list(constant.shape)} does not fit the value that it is combined with"
                )
            expanded = constant.view(size).expand(batch, a.channels, -1, -1)
            b = Value(self.network.add_constant(expanded), a.channels, Sees.ROWS_ABOVE)
        if a.channels != b.channels:
            raise ValueError(f"values of {a.channels} and {b.channels} channels cannot be combined")
        return self._append(kind, (a, b), a.channels)

    @property
    def weight(self) -> Tensor:
        """One of the network's weights, which has the dtype and the device of all values."""
        return next(self.module.parameters())

    def _gate(self, input: Value, data_channels: int = 1) -> Value:
        groups = self.network.groups
        if data_channels != groups and groups != 1 and input.sees != Sees.ROWS_ABOVE:
            raise ValueError(
                f"a gate has data_channels={data_channels}, but images are drawn in {groups} groups of channels"
            )
        return self._append(Kind.GATE, (input,), input.channels // 2, (0, 0, data_channels))

    def _concatenated(self, inputs: list[Value], dim: int = 0) -> Value | None:
        if dim not in (1, -3) or not all(isinstance(input, Value) for input in inputs):
            return None
        return self._copies([(input, 0, input.channels) for input in inputs])

    def _chunks(self, input: Value, chunks: int, dim: int = 0) -> list[Value] | None:
        if dim not in (1, -3):
            return None
        size = -(-input.channels // chunks)
        begins = range(0, input.channels, size)
        return [self._copies([(input, begin, min(size, input.channels - begin))]) for begin in begins]

    def _copies(self, parts: list[tuple[Value, int, int]]) -> Value:
        """Append a copy of some channels of each value, one after the other."""
        if self.network.groups > 1:
            raise ValueError("torch.cat and chunk would change the groups to which channels belong")
        sees = _sees([input for input, _, _ in parts])
        channels = sum(count for _, _, count in parts)
        output, at = self.network.add_value(channels), 0
        for input, begin, count in parts:
            self.network.add(Kind.COPY, (input.position,), output, sees == Sees.ROWS_ABOVE, (begin, at, count))
            at += count
        return Value(output, channels, sees)


def _sees(inputs: Sequence[Value]) -> Sees:
    """Return which pixels an operation sees that reads the same pixel of its inputs."""
    sees = max(input.sees for input in inputs)
    if sees == Sees.ITSELF:
        raise ValueError("only a masked convolution may read the images, which are not known yet at the pixel")
    return sees


def _is_in_place(node: fx.Node, target: Any) -> bool:
    """Whether a node changes its first argument, so that whoever reads that later means the result."""
    if isinstance(target, nn.Module):
        return bool(getattr(target, "inplace", False))
    return target in (operator.iadd, operator.imul, Tensor.add_, Tensor.mul_, Tensor.relu_) or bool(
        node.kwargs.get("inplace", False)
    )


def _name(node: fx.Node, target: Any) -> str:
    """Describe a node in an error message."""
    if isinstance(target, nn.Module):
        return f"{node.target}: {target}"
    return f"{node.name}: {getattr(target, '__name__', target)}"
