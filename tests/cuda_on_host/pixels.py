"""Networks evaluated pixel by pixel by the CUDA kernel, on the CPU."""

import ctypes
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_double, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fused_rnn.functional.pixel_network import Draw, Kind, PixelNetwork, PixelState
from fused_rnn.ops.pixel_network import Node
from fused_rnn.reference.masked_conv2d import MASK_TYPES
from fused_rnn.reference.masked_conv2d import mask as make_mask


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class NodeStruct(Structure):
    _fields_ = [
        ("kind", c_int64), ("whole_row", c_bool), ("inputs", c_int64 * 2),
        *_fields(c_int64, "output from_ to channels convolution"),
    ]  # fmt: skip


class Value(Structure):
    _fields_ = [("data", c_void_p), *_fields(c_int64, "channels rows image_stride row_stride column_stride")]


class Sizes(Structure):
    _fields_ = [
        *_fields(c_int64, "batch height width in_channels out_channels kernel_height kernel_width"),
        *_fields(c_int64, "dilation_height dilation_width data_channels dense_taps"),
        ("own_group", c_bool), ("threads", c_int64),
    ]  # fmt: skip


class Convolution(Structure):
    _fields_ = [
        ("sizes", Sizes), ("weight", c_void_p), *_fields(c_int64, "out_stride in_stride tap_stride"),
        ("bias", c_void_p), ("packed", c_int64),
    ]  # fmt: skip


class DrawStruct(Structure):
    _fields_ = [
        *_fields(c_int64, "distribution channels height levels"), *_fields(c_void_p, "image observed uniforms"),
        ("numbers", c_int64), ("scaled", c_void_p), *_fields(c_double, "factor offset temperature"),
        ("outputs", c_void_p),
    ]  # fmt: skip


class Params(Structure):
    _fields_ = [
        *_fields(c_int64, "batch width groups begin end"), ("nodes", POINTER(NodeStruct)), ("node_count", c_int64),
        ("values", POINTER(Value)), ("convolutions", POINTER(Convolution)), ("packed", c_void_p), ("draw", DrawStruct),
        ("threads", c_int64), ("not_finite", c_void_p),
    ]  # fmt: skip


STRUCTS = (NodeStruct, Value, Sizes, Convolution, DrawStruct, Params)


class Pixels:
    """The kernel in a library that :func:`cuda_on_host.build.build` made."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        sizes = (c_int64 * len(STRUCTS))()
        self.library.pixel_struct_sizes(sizes)
        assert list(sizes) == [ctypes.sizeof(struct) for struct in STRUCTS], "the structs here are not those of C++"
        self.library.evaluate_pixel_network.restype = c_char_p
        self.library.most_pixel_nodes.restype = c_int64

    def state_type(self, multiprocessors: int = 132) -> type[PixelState]:
        """Return a class like PixelState whose networks the kernel evaluates, with so many multiprocessors."""

        class State(OnHost):
            pixels = self
            gpu = multiprocessors

        return State


class OnHost(PixelState):
    """A network in the memory that the kernel works on, which is NaN wherever it has nothing to read."""

    pixels: Pixels
    gpu: int

    def __init__(self, network: PixelNetwork, batch: int, height: int, width: int) -> None:
        super().__init__(network, batch, height, width)
        for value, tensor in enumerate(self.values):
            if value not in network.constants:
                tensor.fill_(torch.nan)
        self.convolutions = [node for node in network.nodes if node.kind == Kind.CONVOLUTION]
        weights = [self.packed_weight(node) for node in self.convolutions]
        self.begins = [sum(weight.numel() for weight in weights[:index]) for index in range(len(weights))]
        self.packed = torch.cat([weight.flatten() for weight in weights])
        assert self.packed.data_ptr() % 16 == 0

    def packed_weight(self, node: Node) -> Tensor:
        """Return a weight as the kernel reads it, ``[taps, in_channels, groups, width]``; NaN where it is masked."""
        weight = self.network.parameters[node.details[0]]
        mask_type, groups = MASK_TYPES[node.details[2]], node.details[3]
        out, channels, height, kernel_width = weight.shape
        mask = make_mask(out, channels, (height, kernel_width), mask_type, groups)
        spoilt = weight.masked_fill(~mask, torch.nan).flatten(2)
        taps = int(mask.flatten(2).any(0).any(0).sum()) if groups == 1 else height * kernel_width // 2 + 1
        parts = max(groups, self.network.groups)
        per_vector, most = 16 // weight.element_size(), -(-out // parts)
        width = -(-most // per_vector) * per_vector
        packed = torch.full((taps, channels, parts, width), torch.nan, dtype=weight.dtype)
        for part in range(parts):
            begin, end = (-(-index * out // parts) for index in (part, part + 1))
            packed[:, :, part, : end - begin] = spoilt[begin:end, :, :taps].permute(2, 1, 0)
        return packed

    def advance(self, steps: int, outputs: Tensor | None = None, draw: Draw | None = None) -> None:
        """Compute the next steps with the kernel."""
        end = self.step + steps
        assert end <= self.steps
        if self.batch == 0:
            self.step = end
            return
        not_finite = torch.zeros(1, dtype=torch.int64)
        nodes = (NodeStruct * len(self.network.nodes))(*map(self.node, self.network.nodes))
        values = (Value * len(self.values))(*map(self.value, self.values))
        convolutions = (Convolution * max(1, len(self.convolutions)))(*map(self.convolution, range(len(self.begins))))
        params = Params(
            batch=self.batch, width=self.width, groups=self.network.groups, begin=self.step, end=end, nodes=nodes,
            node_count=len(nodes), values=values, convolutions=convolutions, packed=self.packed.data_ptr(),
            draw=self.draw(outputs, draw), not_finite=not_finite.data_ptr(),
        )  # fmt: skip
        is_double = self.packed.dtype == torch.float64
        error = self.pixels.library.evaluate_pixel_network(c_bool(is_double), byref(params), c_int(self.gpu))
        if error is not None:
            raise RuntimeError(error.decode())
        if not_finite.item():
            raise ValueError("the network's output is NaN or infinite, so no pixel can be drawn from it")
        self.step = end

    def node(self, node: Node) -> NodeStruct:
        """Return a node as the kernel has it."""
        is_convolution = node.kind == Kind.CONVOLUTION
        from_, to, channels = (*node.details, 0, 0, 0)[:3]
        index = self.convolutions.index(node) if is_convolution else -1
        return NodeStruct(node.kind, node.whole_row, node.inputs, node.output, from_, to, channels, index)

    def value(self, value: Tensor) -> Value:
        """Return a value as the kernel has it."""
        _, rows, columns, channels = value.shape
        broadcast = columns == 1
        margin = 0 if broadcast else (columns - self.width) // 2
        data = value.data_ptr() + margin * channels * value.element_size()
        return Value(data, channels, rows, rows * columns * channels, columns * channels, 0 if broadcast else channels)

    def convolution(self, index: int) -> Convolution:
        """Return a convolution as the kernel has it."""
        weight_at, bias_at, mask_type, groups, down, across = self.convolutions[index].details
        out, channels, height, width = self.network.parameters[weight_at].shape
        centre = height // 2 * width + width // 2
        name = MASK_TYPES[mask_type]
        vertical = {"vertical_A": height // 2 * width, "vertical_B": (height // 2 + 1) * width}
        sizes = Sizes(
            width=self.width, in_channels=channels, out_channels=out, kernel_height=height, kernel_width=width,
            dilation_height=down, dilation_width=min(across, self.width), data_channels=groups,
            dense_taps=vertical.get(name, centre + (name == "B" and groups == 1)), own_group=name == "B",
        )  # fmt: skip
        bias = None if bias_at < 0 else self.network.parameters[bias_at].data_ptr()
        return Convolution(sizes=sizes, bias=bias, packed=self.begins[index])

    def draw(self, outputs: Tensor | None, draw: Draw | None) -> DrawStruct:
        """Return how pixels are drawn as the kernel has it."""
        made = DrawStruct()
        if draw is not None:
            made.distribution, made.channels, made.height = draw.distribution, draw.image.size(1), self.height
            made.levels, made.numbers = draw.scaled.numel(), draw.uniforms.size(4)
            made.image, made.uniforms = draw.image.data_ptr(), draw.uniforms.data_ptr()
            made.observed = None if draw.observed is None else draw.observed.data_ptr()
            made.scaled = draw.scaled.data_ptr()
            made.factor, made.offset, made.temperature = draw.factor, draw.offset, draw.temperature
        if outputs is not None:
            made.outputs, made.height = outputs.data_ptr(), outputs.size(2)
        return made
