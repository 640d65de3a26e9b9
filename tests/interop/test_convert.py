"""convert and revert change only the class of a layer, and nothing else of a model."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CELLS, Case, cell_case, flatten, result
from comparing import assert_all_accurate, assert_identical
from conversions import INPUT, NAMES, layer, run
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fused_rnn


class Model(nn.Module):
    """A model with nested layers, tied weights, a layer that is used twice, cells and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 8, 2, dropout=0.5, bidirectional=True))
        self.shared = nn.GRU(16, 16)
        self.again = self.shared
        self.plain = nn.RNN(16, 16, nonlinearity="relu")
        self.cells = nn.ModuleList([nn.LSTMCell(16, 16), nn.GRUCell(16, 16), nn.RNNCell(16, 16)])
        self.cells[1].weight_hh = self.shared.weight_hh_l0
        self.head = nn.Linear(16, 2)

    def forward(self, input: Tensor) -> Tensor:
        output, _ = self.encoder(input)
        output, _ = self.plain(self.again(self.shared(output)[0])[0])
        h, _ = self.cells[0](output[-1])
        return self.head(self.cells[2](output[1], self.cells[1](output[0], h)))


@pytest.fixture
def model() -> Model:
    return Model().double()


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_by_itself_stays_the_same_object(name: str) -> None:
    module = layer(name)
    report = fused_rnn.convert(module)
    assert report.model is module
    assert type(module) is getattr(fused_rnn, name)
    assert str(report).startswith(
        f"replaced 1 of 1 layers\n  (the model itself): torch.nn.{name} -> fused_rnn.{name}\nnotes\n"
    )
    assert str(fused_rnn.revert(module)).endswith(f"fused_rnn.{name} -> torch.nn.{name}")
    assert type(module) is getattr(nn, name)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_missing_in_a_converted_layer(name: str) -> None:
    """A layer of torch.nn has all attributes of ours, so its class can be changed without calling our constructor."""
    assert vars(layer(name)).keys() == vars(layer(name, fused_rnn)).keys()


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
        {"bias": False, "lengths": (2, 5, 4)},
        {"num_layers": 2, "dropout": 0.5},
    ],
    ids=str,
)
def test_a_converted_layer_computes_the_same(kind: str, form: dict[str, Any]) -> None:
    case = Case(kind, **form)
    input, states = case.tensors(torch.float64)
    converted = fused_rnn.convert(case.module(nn, torch.float64)).model
    assert_all_accurate(result(converted, input, states, case.in_form), case.torch_result(torch.float64))
    reverted = fused_rnn.revert(fused_rnn.convert(case.module(nn, torch.float64)).model).model
    assert_identical(result(reverted, input, states, case.in_form), case.torch_result(torch.float64))


@pytest.mark.parametrize("kind", CELLS)
def test_a_converted_cell_computes_the_same(kind: str) -> None:
    module, input, states = cell_case(nn, kind, 3, 4, 8, torch.float64)
    expected = result(module, input, states)
    assert_all_accurate(result(fused_rnn.convert(module).model, input, states), expected)


@pytest.mark.parametrize("name", ["RNN", "RNNCell"])
def test_the_nonlinearity_stays(name: str) -> None:
    module = getattr(nn, name)(4, 8, nonlinearity="relu")
    shown, attributes = repr(module), dict(vars(module))
    fused_rnn.convert(module)
    assert repr(module) == shown
    assert vars(module) == attributes
    assert module.nonlinearity == "relu"


def test_a_model(model: Model) -> None:
    untouched, before = copy.deepcopy(model), dict(model.named_modules(remove_duplicate=False))
    report = fused_rnn.convert(model)
    assert dict(model.named_modules(remove_duplicate=False)) == before
    assert [layer.names for layer in report.replaced] == [
        ("encoder.1",),
        ("shared", "again"),
        ("plain",),
        ("cells.0",),
        ("cells.1",),
        ("cells.2",),
    ]
    assert report.kept == ()
    assert [type(layer.module) for layer in report.replaced] == [
        fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.RNN, fused_rnn.LSTMCell, fused_rnn.GRUCell, fused_rnn.RNNCell,
    ]  # fmt: skip
    steps = []
    for each in (model, untouched):
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(each.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            each(INPUT).square().sum().backward()
            optimizer.step()
        grads = {f"grad {name}": weight.grad for name, weight in each.named_parameters() if weight.grad is not None}
        steps.append({"output": each(INPUT).detach(), **grads, **dict(each.named_parameters())})
    assert len(steps[0]) == 1 + 2 * len(list(model.parameters()))
    assert_all_accurate(*steps)


def test_the_state_dict_stays(model: Model) -> None:
    def tensors() -> tuple[list[tuple[str, int]], list[int], Any]:
        state: Any = model.state_dict()
        parameters = [id(weight) for weight in model.parameters()]
        return [(name, tensor.data_ptr()) for name, tensor in state.items()], parameters, state._metadata

    before = tensors()
    fused_rnn.convert(model)
    assert tensors() == before
    fused_rnn.revert(model)
    assert tensors() == before


def test_revert_is_exact(model: Model) -> None:
    def everything() -> list[tuple[str, type, dict[str, Any]]]:
        return [(name, type(module), dict(vars(module))) for name, module in model.named_modules()]

    before = everything()
    fused_rnn.convert(model)
    assert everything() != before
    fused_rnn.revert(model)
    for (*names, attributes), (*expected_names, expected) in zip(everything(), before, strict=True):
        assert names == expected_names
        assert attributes.keys() == expected.keys()
        assert all(attributes[name] is expected[name] for name in expected)


@pytest.mark.parametrize("name", NAMES)
def test_state_of_the_module_stays(name: str) -> None:
    module = layer(name).eval().bfloat16()
    next(module.parameters()).requires_grad_(False)
    module.note = "mine"  # type: ignore[assignment]
    fused_rnn.convert(module)
    assert not module.training
    assert module.note == "mine"
    assert [weight.requires_grad for weight in module.parameters()] == [False, True, True, True]
    assert {weight.dtype for weight in module.parameters()} == {torch.bfloat16}
    assert (
        fused_rnn.convert(layer(name).to("meta"))
        .model.state_dict()["bias_ih" if "Cell" in name else "bias_ih_l0"]
        .is_meta
    )


@pytest.mark.parametrize("name", NAMES)
def test_hooks_stay_and_can_be_removed(name: str) -> None:
    module, calls = layer(name), []

    def note(event: str) -> Callable[..., None]:
        return lambda *_, **__: calls.append(event)

    handles = [
        module.register_forward_pre_hook(note("before")),
        module.register_forward_hook(note("after"), with_kwargs=True),
        module.register_full_backward_hook(note("backward")),
        module.register_full_backward_pre_hook(note("before backward")),
        module.register_state_dict_pre_hook(note("before state_dict")),
        module.register_state_dict_post_hook(note("state_dict")),
        module.register_load_state_dict_pre_hook(note("before load")),
        module.register_load_state_dict_post_hook(note("load")),
    ]
    events = [
        "before",
        "after",
        "before backward",
        "backward",
        "before state_dict",
        "state_dict",
        "before load",
        "load",
    ]
    fused_rnn.convert(module)
    for expected in (events, []):
        flatten(module((INPUT[0] if "Cell" in name else INPUT).requires_grad_()))[0].sum().backward()
        module.load_state_dict(module.state_dict())
        assert calls == expected
        calls.clear()
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_parametrized_layers(name: str) -> None:
    module = layer(name)
    weight = "weight_hh" if "Cell" in name else "weight_hh_l0"
    parametrizations.weight_norm(module, weight)
    copied, expected, state = copy.deepcopy(module), run(module), list(module.state_dict())
    assert f"torch.nn.{name} -> fused_rnn.{name}" in str(fused_rnn.convert(module))
    assert isinstance(module, getattr(fused_rnn, name))
    assert not isinstance(copied, getattr(fused_rnn, name))
    assert list(module.state_dict()) == state
    assert_all_accurate(run(module), expected)
    with torch.no_grad():
        for each in (module, copied):
            getattr(each.parametrizations, weight).original0.mul_(2)
    assert_all_accurate(run(module), run(copied))
    fused_rnn.revert(module)
    assert_identical(run(module), run(copied))
    parametrize.remove_parametrizations(module, weight)
    assert type(module) is getattr(nn, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_pruned_and_normalised_layers(name: str) -> None:
    """Pruning and the old weight_norm replace a parameter by an ordinary tensor, using hooks."""
    weight = "weight_hh" if "Cell" in name else "weight_hh_l0"
    for change in (
        lambda module: prune.l1_unstructured(module, weight, amount=0.5),
        lambda module: nn.utils.weight_norm(module, weight),
    ):
        module = change(layer(name))
        expected = run(module)
        assert_all_accurate(run(fused_rnn.convert(module).model), expected)
        assert_identical(run(fused_rnn.revert(module).model), expected)


class Ours(fused_rnn.GRU):
    """A subclass of one of our layers."""


def lazy() -> nn.Module:
    class Lazy(nn.modules.lazy.LazyModuleMixin, nn.GRUCell):
        pass

    module = Lazy(4, 8)
    module.weight_ih = nn.parameter.UninitializedParameter()
    return module


def patched() -> nn.Module:
    module = nn.LSTM(4, 8)
    module.forward = lambda *_: None  # type: ignore[method-assign, assignment]
    return module


KEPT = [
    (lambda: nn.RNNBase("RNN_TANH", 4, 8), "torch.nn.RNNBase has no counterpart"),
    (lambda: nn.RNNCellBase(4, 8, True, 1), "torch.nn.RNNCellBase has no counterpart"),
    (lazy, "not initialized yet"),
    (patched, "forward was replaced on the module itself"),
    (lambda: torch.ao.nn.quantized.dynamic.LSTM(4, 8), "torch.ao.nn.quantized.dynamic.modules.rnn.LSTM has no counter"),
    (lambda: torch.ao.nn.quantized.dynamic.RNNCell(4, 8), "dynamic.modules.rnn.RNNCell has no counterpart"),
    (lambda: torch.ao.nn.quantizable.LSTM(4, 8), "torch.ao.nn.quantizable.modules.rnn.LSTM has no counterpart"),
    (lambda: torch.jit.script(nn.LSTM(4, 8)), "compiled by torch.jit"),
]


@pytest.mark.parametrize(("make", "reason"), KEPT, ids=[reason for _, reason in KEPT])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_is_kept_and_why(make: Callable[[], nn.Module], reason: str) -> None:
    module = make()
    cls, report = type(module), fused_rnn.convert(nn.Sequential(module), subclasses=True)
    assert type(module) is cls
    assert report.replaced == ()
    assert report.kept[0].names == ("0",)
    assert reason in str(report)


def test_our_own_layers() -> None:
    """Layers of this package are not reported by convert, and are reverted by revert, too."""
    model = nn.Sequential(fused_rnn.LSTM(4, 8), Ours(8, 8), nn.Linear(8, 8))
    report = fused_rnn.convert(model)
    assert (report.replaced, report.kept) == ((), ())
    report = fused_rnn.revert(model)
    assert type(model[0]) is nn.LSTM
    assert type(model[1]) is Ours
    assert "Ours is a subclass of a layer of this package" in str(report)


def test_a_model_can_be_saved(model: Model) -> None:
    fused_rnn.convert(model.eval())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_identical({"": torch.load(file, weights_only=False)(INPUT)}, {"": model(INPUT)})


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_model_notices(name: str, calls: list[str]) -> None:
    """Code that was compiled before the conversion must not continue to use the old class."""
    module = layer(name).eval()
    compiled: Any = torch.compile(module, backend="eager")
    input = INPUT[0] if "Cell" in name else INPUT
    expected = flatten(compiled(input))
    fused_rnn.convert(compiled)
    actual = flatten(compiled(input))
    assert_all_accurate(dict(enumerate(actual)), dict(enumerate(expected)))
    assert calls != []


def test_optimizer_state_stays(model: Model) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    model(INPUT).sum().backward()
    optimizer.step()
    fused_rnn.convert(model)
    for weight in model.parameters():
        assert (weight in optimizer.state) == (weight.grad is not None)
        assert weight in set(optimizer.param_groups[0]["params"])
