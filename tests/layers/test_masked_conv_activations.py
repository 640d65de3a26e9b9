"""MaskedConv2d and MaskedConv1d with an activation and a residual, wherever a layer can be used."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from comparing import assert_accurate, assert_identical
from torch import Tensor, fx, nn

import fused_rnn
from fused_rnn import GatedActivation, MaskedConv1d, MaskedConv2d, reference
from fused_rnn.models import AutoregressiveImageModel, Categorical

F64 = torch.float64
Layer = MaskedConv1d | MaskedConv2d
FORMS = [
    (name, activation, groups) for name in ("MaskedConv1d", "MaskedConv2d")
    for activation in (None, "relu", "gated") for groups in (1, 2)
]  # fmt: skip


def pair(name: str, activation: str | None, groups: int, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return a layer with an activation, and one without that has the same weights."""
    size: Any = 2 if name == "MaskedConv1d" else (3, 5)
    layer = getattr(fused_rnn, name)
    ours, plain = (layer(4, 20, size, "B", groups, activation=given, dtype=dtype) for given in (activation, None))
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def images(layer: Layer, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, channels, *((7,) if isinstance(layer, MaskedConv1d) else (5, 6)), dtype=dtype)


def activated(layer: Layer, sums: Tensor, data_channels: int) -> Tensor:
    if layer.activation == "relu":
        return sums.relu()
    if layer.activation == "gated":
        gate = GatedActivation(data_channels)
        return gate(sums) if sums.dim() == 4 else gate(sums.unsqueeze(-1)).squeeze(-1)
    return sums


@pytest.mark.parametrize(("name", "activation", "groups"), FORMS)
def test_same_bits_as_separate_layers(name: str, activation: str | None, groups: int) -> None:
    ours, plain = pair(name, activation, groups)
    input = images(ours, 4)
    expected = activated(ours, plain(input), groups)
    assert torch.equal(ours(input), expected)
    residual = torch.randn_like(expected)
    assert torch.equal(ours(input, residual), expected + residual)
    assert torch.equal(ours(input[0], residual=residual[0]), (expected + residual)[0])


@pytest.mark.parametrize(("name", "activation", "groups"), FORMS)
def test_gradients_are_those_of_separate_layers(name: str, activation: str | None, groups: int) -> None:
    ours, plain = pair(name, activation, groups, F64)
    input = images(ours, 4, F64).requires_grad_()
    residual = torch.randn_like(activated(ours, plain(input), groups)).requires_grad_()
    results = []
    for output, layer in ((ours(input, residual), ours), (activated(ours, plain(input), groups) + residual, plain)):
        results.append(torch.autograd.grad(output.cos().sum(), [input, residual, *layer.parameters()]))
    for gradient, exact in zip(*results, strict=True):
        assert_accurate(gradient, exact)


@pytest.mark.parametrize(("name", "activation", "groups"), FORMS)
def test_steps(name: str, activation: str | None, groups: int) -> None:
    """Each step gives the bits of the whole, activation included."""
    layer, _ = pair(name, activation, groups)
    input = images(layer, 4)
    whole = layer(input).flatten(2)
    state = layer.init_state(*(3, 7) if name == "MaskedConv1d" else (3, 5, 6))
    steps = [layer.step(pixel, state) for pixel in input.flatten(2).unbind(2)]
    assert torch.equal(torch.stack(steps, 2), whole)


@pytest.mark.parametrize(("name", "activation", "groups"), FORMS)
def test_copies_and_repr(name: str, activation: str | None, groups: int) -> None:
    layer, _ = pair(name, activation, groups)
    input, file = images(layer, 4), io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert torch.equal(clone(input), layer(input))
    assert (f"activation={activation!r}" in repr(layer)) == (activation is not None)


class Block(nn.Module):
    """A residual block, whose last convolution adds its input."""

    def __init__(self, data_channels: int = 1) -> None:
        super().__init__()
        self.gate = MaskedConv2d(4, 16, 3, "B", data_channels, activation="gated")
        self.inner = MaskedConv2d(8, 8, 1, "B", data_channels, activation="relu")
        self.last = MaskedConv2d(8, 4, 3, "B", data_channels)

    def forward(self, input: Tensor) -> Tensor:
        return self.last(self.inner(self.gate(input)), residual=input)


def test_fx() -> None:
    block, input = Block(), torch.randn(2, 4, 5, 6)
    traced = fx.symbolic_trace(block)
    names = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert names == ["gate", "inner", "last"]
    assert torch.equal(traced(input), block(input))
    alone = fx.symbolic_trace(block.gate)
    assert torch.equal(alone(input), block.gate(input))


def test_trace() -> None:
    block, input = Block().double(), torch.randn(2, 4, 5, 6, dtype=F64)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(block, (input,)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for other in (input, torch.randn(3, 4, 7, 4, dtype=F64)):
        results = []
        for model in (block, loaded):
            output, weights = model(other), dict(model.named_parameters())
            gradients = torch.autograd.grad(output.cos().sum(), list(weights.values()))
            results.append({"output": output, **dict(zip(weights, gradients, strict=True))})
        assert_identical(*results)


def test_export() -> None:
    block, input = Block(), torch.randn(2, 4, 5, 6)
    exported = torch.export.export(block, (input,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    other = torch.randn(5, 4, 5, 6)
    assert torch.equal(exported.module()(other), block(other))
    program = exported.run_decompositions(fused_rnn.onnx.decomposition_table())
    assert not any("fused_rnn" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(other), block(other))


def test_drawing() -> None:
    """A model whose layers have activations and residuals draws what it predicts."""

    class Model(AutoregressiveImageModel):
        def __init__(self) -> None:
            blocks = [Block(2), Block(2)]
            network = nn.Sequential(MaskedConv2d(2, 4, 3, "A", 2), *blocks, MaskedConv2d(4, 10, 1, "B", 2))
            super().__init__(network, Categorical(5, channels=2))

    model = Model().double().eval()
    uniforms = torch.rand(3, 4, 5, 2, 1, dtype=F64, generator=torch.Generator().manual_seed(5))
    drawn = model.sample(3, (4, 5), generator=torch.Generator().manual_seed(5))
    assert torch.equal(drawn, reference.sample(model, uniforms))


def test_a_subclass_with_the_arguments_of_torch() -> None:
    class Scaled(MaskedConv2d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
            return super()._conv_forward(input, 2 * weight, bias)

    layer, input = Scaled(4, 8, 3, "B", bias=False), torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(input), 2 * super(Scaled, layer)._conv_forward(input, layer.weight, None))


@pytest.mark.parametrize("layer", [MaskedConv1d, MaskedConv2d])
def test_errors(layer: Any) -> None:
    with pytest.raises(ValueError, match="activation must be None, 'relu' or 'gated', got 'tanh'"):
        layer(4, 8, 3, "B", activation="tanh")
    words = "out_channels must be a multiple of 2 \\* data_channels, got out_channels=6 and data_channels=2"
    with pytest.raises(ValueError, match=words):
        layer(4, 6, 3, "B", 2, activation="gated")
    made = layer(4, 8, 3, "B")
    with pytest.raises(RuntimeError, match=r"Expected residual to be \dD as input is, got 2D instead"):
        made(images(made, 4), torch.randn(3, 4))
