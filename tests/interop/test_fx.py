"""torch.fx records each module of the package as one node, as it records the modules of torch.nn."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import KINDS, flatten
from comparing import assert_all_accurate, assert_identical
from every_module import NAMES, SHAPES, pair, random
from torch import Tensor, fx, nn
from torch.ao.quantization import QConfigMapping, default_dynamic_qconfig, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn.utils import parametrizations, prune

import fused_rnn
from fused_rnn.modules import (
    GatedActivation,
    GRUCellResetBefore,
    GRUResetBefore,
    MergedDirections,
    Reversed,
    WithDefaults,
)

# The modules that are not in every_module, and the shape of an input for each.
OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "GatedActivation": (lambda: GatedActivation(2), (2, 4, 3, 3)),
    "GRUResetBefore": (lambda: GRUResetBefore(3, 2), (3, 2, 3)),
    "GRUCellResetBefore": (lambda: GRUCellResetBefore(3, 2), (2, 3)),
    "MergedDirections": (lambda: MergedDirections(fused_rnn.LSTM(3, 2, bidirectional=True), "sum"), (3, 2, 3)),
    "Reversed": (lambda: Reversed(fused_rnn.GRU(3, 2)), (3, 2, 3)),
    "WithDefaults": (lambda: WithDefaults(fused_rnn.GRU(3, 2), lengths=torch.tensor([1, 3])), (3, 2, 3)),
}
EVERY_NAME = [*NAMES, *OTHERS]


def module_and_input(name: str) -> tuple[nn.Module, Tensor]:
    if name in OTHERS:
        make, shape = OTHERS[name]
        return make().double(), random(*shape)
    return pair(name)[0], random(*SHAPES[name])


def nodes(graph: fx.Graph) -> list[tuple[str, str]]:
    """Return the operation and the target of each node, without inputs and outputs."""
    return [(node.op, str(node.target)) for node in graph.nodes if node.op not in ("placeholder", "output")]


def tensors(outputs: Any) -> dict[int, Tensor]:
    return dict(enumerate(flatten(outputs)))


def test_every_module_is_tested() -> None:
    classes = {name for name in fused_rnn.modules.__all__ if isinstance(getattr(fused_rnn.modules, name), type)}
    assert {*EVERY_NAME} == classes


@pytest.mark.parametrize("name", EVERY_NAME)
def test_a_module_is_one_node(name: str) -> None:
    module, input = module_and_input(name)
    model = nn.Sequential(nn.Identity(), module)
    traced = fx.symbolic_trace(model)
    assert nodes(traced.graph) == [("call_module", "0"), ("call_module", "1")]
    traced.graph.lint()
    assert_identical(tensors(traced(input)), tensors(model(input)))
    for again in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert_identical(tensors(again(input)), tensors(model(input)))


class Model(nn.Module):
    """A model that calls layers and cells with all their arguments."""

    def __init__(self, package: Any) -> None:
        super().__init__()
        self.lstm = package.LSTM(3, 4, 2)
        self.gru = package.GRU(4, 4, batch_first=True)
        self.lstm_cell = package.LSTMCell(4, 4)
        self.rnn_cell = package.RNNCell(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, input: Tensor, h: Tensor, c: Tensor) -> Tensor:
        output, (h, c) = self.lstm(input, (h, c))
        output, h_n = self.gru(output.transpose(0, 1))
        h, c = self.lstm_cell(output[:, -1], (h[0], c[0]))
        return self.head(self.rnn_cell(h, h_n[0]) + c)


def models() -> tuple[nn.Module, nn.Module, tuple[Tensor, ...]]:
    ours, theirs = Model(fused_rnn).double(), Model(nn).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, (random(5, 2, 3), random(2, 2, 4), random(2, 2, 4))


def test_a_model_has_the_graph_of_torch_nn() -> None:
    ours, theirs, inputs = models()
    traced, expected = fx.symbolic_trace(ours), fx.symbolic_trace(theirs)
    assert traced.code == expected.code
    assert_all_accurate({"": traced(*inputs)}, {"": expected(*inputs)})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "configuration",
    [get_default_qconfig_mapping("x86"), QConfigMapping().set_object_type(nn.Linear, default_dynamic_qconfig)],
    ids=["static", "dynamic"],
)
def test_a_model_can_be_quantized(configuration: QConfigMapping) -> None:
    """The layers of this package stay in floating point and the rest of the model is quantized."""
    ours, _, inputs = models()
    ours, inputs = ours.float().eval(), tuple(input.float() for input in inputs)
    prepared = prepare_fx(copy.deepcopy(ours), configuration, inputs)
    assert torch.equal(prepared(*inputs), ours(*inputs))
    quantized = convert_fx(prepared)
    assert "quantized" in type(quantized.head).__module__
    assert {name: type(module) for name, module in quantized.named_children() if name != "head"} == {
        name: type(module) for name, module in ours.named_children() if name != "head"
    }
    assert (quantized(*inputs) - ours(*inputs)).abs().max() < 0.1  # eight bits


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_masked_convolution_is_not_taken_for_a_convolution() -> None:
    """Neither quantization nor the fusion with a normalisation replaces it by a convolution without a mask."""
    model = nn.Sequential(fused_rnn.MaskedConv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    images = torch.randn(8, 2, 6, 6)
    model(images)  # gives the normalisation its statistics
    model.eval()
    prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), (images,))
    assert torch.equal(prepared(images), model(images))
    quantized = convert_fx(prepared)
    assert type(quantized.get_submodule("0")) is fused_rnn.MaskedConv2d
    assert (quantized(images) - model(images)).abs().max() < 0.1  # eight bits


@pytest.mark.parametrize("name", KINDS)
def test_lengths_and_states_of_every_step(name: str) -> None:
    class WithLengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, _ = pair(name)

        def forward(self, input: Tensor, lengths: Tensor) -> Any:
            options = {"return_states": True} if name == "LSTM" else {}
            return self.layer(input, lengths=lengths, **options)

    model, input, lengths = WithLengths(), random(3, 2, 3), torch.tensor([1, 3])
    traced = fx.symbolic_trace(model)
    assert nodes(traced.graph) == [("call_module", "layer")]
    assert_identical(tensors(traced(input, lengths)), tensors(model(input, lengths)))


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name in NAMES for change in ("parametrized", "pruned", "hook")]
    + [(name, "parametrized") for name in OTHERS if name != "GatedActivation"],
)
def test_changed_modules(name: str, change: str) -> None:
    """Hooks are called once, and weights that are computed from others stay computed."""
    module, input = module_and_input(name)
    inner = getattr(module, "layer", module)
    weight = next(name for name, _ in inner.named_parameters())
    if change == "parametrized":
        parametrizations.weight_norm(inner, weight)
    elif change == "pruned":
        prune.l1_unstructured(inner, weight, amount=0.5)
    else:
        module.register_forward_hook(lambda _module, _args, output: (output[0] * 2, output[1:]))
        module.register_forward_pre_hook(lambda _module, args: (args[0] + 1, *args[1:]))
    model = nn.Sequential(module)
    traced = fx.symbolic_trace(model)
    expected = tensors(model(input)) if change != "hook" else {0: flatten(model(input))[0]}
    actual = tensors(traced(input)) if change != "hook" else {0: flatten(traced(input))[0]}
    assert_identical(actual, expected)


class Doubling(fused_rnn.GRU):
    """A subclass that adds to forward."""

    def forward(self, input: Any, hx: Any = None, lengths: Any = None, *resets: Any, **options: Any) -> Any:
        output, h_n = super().forward(input, hx, lengths, *resets, **options)
        return 2 * output, h_n


class Theirs(nn.GRUCell):
    """A subclass of torch.nn's that adds to forward."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return 2 * super().forward(input, hx)


def test_a_subclass_is_traced_but_for_what_it_inherits() -> None:
    model, input = nn.Sequential(Doubling(3, 2)).double(), random(5, 2, 3)
    traced = fx.symbolic_trace(model)
    assert ("call_module", "0") not in nodes(traced.graph)
    assert_identical(tensors(traced(input)), tensors(model(input)))
    converted = fused_rnn.convert(nn.Sequential(Theirs(3, 2)).double(), subclasses=True).model
    traced = fx.symbolic_trace(converted)
    assert_identical(tensors(traced(input[0])), tensors(converted(input[0])))


@pytest.mark.parametrize("name", NAMES)
def test_a_module_by_itself(name: str) -> None:
    """Of a module that is itself what is traced, the function of the same name is the node."""
    module, input = module_and_input(name)
    traced = fx.symbolic_trace(module)
    functions = [target for operation, target in nodes(traced.graph) if operation == "call_function"]
    assert len(functions) == 1
    assert_identical(tensors(traced(input)), tensors(module(input)))


def test_a_constant_input_with_traced_states() -> None:
    class Start(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = fused_rnn.LSTMCell(3, 2)

        def forward(self, h: Tensor, c: Tensor) -> Any:
            return self.cell(torch.ones(4, 3), (h, c))

    model, states = Start(), (torch.randn(4, 2), torch.randn(4, 2))
    assert_identical(tensors(fx.symbolic_trace(model)(*states)), tensors(model(*states)))
