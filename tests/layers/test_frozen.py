"""``freeze``: layers whose weights are packed once give the results of ordinary ones, and are never stale."""

import io
import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from cases import CELLS, DTYPES, KINDS, Case, class_of, flatten, hx_of
from comparing import assert_all_accurate, assert_identical
from torch import Tensor, nn

import fused_rnn
from fused_rnn.modules import MergedDirections, Reversed, WithDefaults

CASES = [
    case for kind in CELLS for case in (
        Case(kind), Case(kind, 1, 1, 64, 257), Case(kind, 7, 33, 20, 100, bias=False),
        Case(kind, 9, 2, 31, 65, 2, True),
        Case(kind, 1, 5, 3, 1), Case(kind, 4, 50, 9, 40, batch_first=True), Case(kind, unbatched=True, num_layers=3),
        Case(kind, 9, 6, 31, 65, 2, True, lengths=(9, 2, 7, 1, 1, 5)), Case(kind, batch=0), Case(kind, 3, 1, 600, 20),
    )
]  # fmt: skip
CASES += [
    Case("LSTM", 6, 3, 20, 40, 2, True, proj_size=33), Case("LSTM", 1, 2, 5, 70, proj_size=3),
    Case("LSTM", 5, 3, 31, 40, proj_size=17, lengths=(5, 1, 2)),
]  # fmt: skip
NAMES = [f"{kind}{suffix}" for kind in KINDS for suffix in ("", "Cell")]


@pytest.fixture(autouse=True)
def inference() -> Any:
    with torch.inference_mode():
        yield


def outputs(module: nn.Module, case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return all outputs of a layer by name, without gradients."""
    input, states = case.tensors(dtype)
    return {f"out {i}": value for i, value in enumerate(flatten(module(case.in_form(input), hx_of(states))))}


def frozen(case: Case, dtype: torch.dtype, as_dtype: torch.dtype | None = None) -> Any:
    with torch.inference_mode(False):
        module: Any = case.module(fused_rnn, dtype).eval()
    return fused_rnn.freeze(module, as_dtype)


def make(name: str, *sizes: int) -> Any:
    """Return a layer or cell, made outside of inference mode, as a model that was loaded."""
    with torch.inference_mode(False):
        return getattr(fused_rnn, name)(*(sizes or (4, 8))).eval()


def call(module: nn.Module, *args: Any) -> Tensor:
    """Return the first output for a fixed input."""
    shape = (3, 4) if isinstance(module, nn.RNNCellBase) else (5, 3, 4)
    return flatten(module(torch.randn(shape, generator=torch.Generator().manual_seed(0)), *args))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_torch_nn(case: Case, dtype: torch.dtype) -> None:
    exact, peer = (outputs(case.module(nn, each), case, each) for each in (torch.float64, dtype))
    assert_all_accurate(outputs(frozen(case, dtype), case, dtype), exact, peer)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_has_the_bits_of_the_ordinary_layer_where_that_packs(kind: str, dtype: torch.dtype) -> None:
    for case in (Case(kind, 7, 33, 20, 100, 2, True), Case(kind, 1, 64, 31, 65), Case(kind, 20, 4, 64, 300)):
        module = frozen(case, dtype)
        assert_identical(outputs(module, case, dtype), outputs(case.module(fused_rnn, dtype), case, dtype))


@pytest.mark.parametrize("as_dtype", [None, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_on_any_number_of_threads_and_in_pieces(kind: str, as_dtype: torch.dtype | None) -> None:
    for case in (Case(kind, 7, 1, 200, 200), Case(kind, 6, 3, 700, 150), Case(kind, 5, 16, 64, 257)):
        results = {}
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            module = frozen(case, torch.float32, as_dtype)
            for called in (1, 2, 3):  # the packed weights are laid out for another number of threads
                torch.set_num_threads(called)
                results[threads, called] = outputs(module, case, torch.float32)
        for result in results.values():
            assert_identical(result, results[1, 1])
        input, states = case.tensors(torch.float32)
        pieces, hx = [], hx_of(states)
        for step in input.split(1):
            output, hx = module(step, hx)
            pieces.append(output)
        assert torch.equal(torch.cat(pieces), results[1, 1]["out 0"])


@pytest.mark.parametrize("kind", CELLS)
def test_bfloat16_is_float32_with_rounded_weights(kind: str) -> None:
    for case in (Case(kind, 7, 33, 21, 101, 2, True), Case(kind, 1, 1, 64, 64), Case(kind, 5, 2, 1100, 33)):
        with torch.inference_mode(False), torch.no_grad():
            modules: list[Any] = [case.module(fused_rnn, torch.float32).eval() for _ in range(2)]
            module, rounded = modules
            for weight, other in zip(module.parameters(), rounded.parameters(), strict=True):
                weight.mul_(1 + 2**-10)  # the weights of a case are exact in bfloat16
                other.copy_(weight.bfloat16() if weight.dim() == 2 else weight)
        expected = outputs(rounded.freeze(), case, torch.float32)
        assert_identical(outputs(module.freeze(torch.bfloat16), case, torch.float32), expected)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str, dtype: torch.dtype) -> None:
    for batch, input_size, hidden_size in ((None, 4, 6), (1, 64, 257), (40, 20, 33), (0, 3, 2)):
        with torch.inference_mode(False):
            torch.manual_seed(0)
            ours, theirs = (class_of(package, kind, cell=True)(input_size, hidden_size) for package in (fused_rnn, nn))
            theirs.load_state_dict(ours.eval().bfloat16().to(dtype).state_dict())
        rows = () if batch is None else (batch,)
        input = torch.randn(*rows, input_size).bfloat16()
        states = [torch.randn(*rows, hidden_size).bfloat16() for _ in range(2 if kind == "LSTM" else 1)]
        modules = ((ours.freeze(), dtype), (deepcopy(theirs).double(), torch.float64), (theirs.to(dtype), dtype))
        results = [
            dict(enumerate(flatten(module(input.to(each), hx_of([state.to(each) for state in states])))))
            for module, each in modules
        ]
        assert_all_accurate(*results)
        assert flatten(ours(input.to(dtype)))[0].shape == (*rows, hidden_size)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_resets_and_states_of_every_step(kind: str) -> None:
    case = Case(kind, 9, 20, 31, 65, 2, True)
    module, ordinary = frozen(case, torch.float32), case.module(fused_rnn, torch.float32).eval()
    input, states = case.tensors(torch.float32)
    resets = torch.rand(9, 20, generator=torch.Generator().manual_seed(0)) < 0.3
    options: list[dict[str, Any]] = [
        {"lengths": torch.arange(20) % 10}, {"resets": resets}, {"resets": resets, "reset_states": hx_of(states)},
        {"resets": resets, "lengths": [9, 0] * 10},
    ]  # fmt: skip
    options += [{"return_states": True}, {"return_states": True, "lengths": [9, 0] * 10}] if kind == "LSTM" else []
    for option in options:
        results = [dict(enumerate(flatten(layer(input, hx_of(states), **option)))) for layer in (module, ordinary)]
        assert_identical(*results)


def test_a_reset_of_a_cell() -> None:
    for name in ("LSTMCell", "GRUCell", "RNNCell"):
        cell = make(name)
        input, reset = torch.randn(20, 4), torch.arange(20) % 2 == 0
        state = torch.randn(20, 8)
        states = (state, state) if name == "LSTMCell" else state
        expected = cell(input, states, reset=reset, reset_states=states)
        assert_identical(
            dict(enumerate(flatten(cell.freeze()(input, states, reset=reset, reset_states=states)))),
            dict(enumerate(flatten(expected))),
        )


@pytest.mark.parametrize("name", NAMES)
def test_visible_and_undone(name: str) -> None:
    module = make(name)
    text = repr(module)
    assert module.freeze() is module
    assert repr(module) == text.replace(")", ", frozen)")
    assert repr(fused_rnn.freeze(module, torch.int8)) == text.replace(")", ", frozen=torch.int8)")
    assert module.eval()._frozen is not None
    assert {*module.state_dict()} == {*make(name).state_dict()}
    for undo in (
        module.unfreeze, module.train, lambda: module.load_state_dict(module.state_dict()),
        lambda: module.load_state_dict(module.state_dict(), assign=True),
        lambda: fused_rnn.unfreeze(nn.Sequential(module)), lambda: nn.Sequential(module).train(),
    ):  # fmt: skip
        module.eval().freeze()
        with torch.inference_mode(False), torch.no_grad():
            undo()
        assert repr(module) == text
        assert module.unfreeze() is module


@pytest.mark.parametrize("as_dtype", [None, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_copies_are_frozen_with_weights_of_their_own(name: str, as_dtype: torch.dtype | None) -> None:
    module = make(name).freeze(as_dtype)
    expected = call(module)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    with torch.inference_mode(False), torch.no_grad():
        copies = [deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)]
        for weight in module.parameters():
            weight.zero_()
    for copied in copies:
        assert repr(copied) == repr(module)
        assert torch.equal(call(copied), expected)
        assert torch.equal(call(copied), expected)
    with pytest.raises(RuntimeError, match=f"of the frozen {name} was written to"):
        call(module)
    assert not torch.equal(call(module.freeze(as_dtype)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_weight_is_an_error(name: str) -> None:
    def write_in_place(module: Any, weight: str) -> None:
        with torch.no_grad():
            getattr(module, weight).add_(1)

    def step(module: Any, weight: str) -> None:
        parameter = getattr(module, weight)
        parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD([parameter], 0.1).step()

    def replace_data(module: Any, weight: str) -> None:
        getattr(module, weight).data = torch.zeros_like(getattr(module, weight))

    changes = {
        write_in_place: "written to", step: "written to",
        replace_data: "written to",
        lambda module, weight: setattr(module, weight, nn.Parameter(getattr(module, weight).detach())): "replaced",
        lambda module, weight: object.__setattr__(module, weight, getattr(module, weight).detach()): "replaced",
        lambda module, weight: module.to(torch.float64): "written to",
    }  # fmt: skip
    for change, how in changes.items():
        for weight in [name for name, _ in make(name).named_parameters()]:
            module = make(name).freeze()
            call(module)
            with torch.inference_mode(False):
                change(module, weight)
            with pytest.raises(RuntimeError, match=f"of the frozen {name} was {how}"):
                call(module)
    module = make(name).freeze()
    others = {key: torch.zeros_like(value) for key, value in module.named_parameters()}
    shape = (3, 4) if isinstance(module, nn.RNNCellBase) else (5, 3, 4)
    with pytest.raises(RuntimeError, match="replaced"):
        torch.func.functional_call(module, others, torch.randn(shape))
    call(module)
    module.to(torch.float32)  # which changes nothing
    call(module)


def test_a_written_list_of_weights_is_an_error() -> None:
    module = make("LSTM").freeze()
    module._flat_weights[0] = module._flat_weights[0].detach().clone()
    with pytest.raises(RuntimeError, match="weight_ih_l0 of the frozen LSTM was replaced"):
        call(module)


def test_what_pytorch_cannot_see() -> None:
    """As the documentation says: a write through ``.data`` is not noticed, and the packed weights stay."""
    module = make("GRU").freeze()
    before = call(module)
    module.weight_hh_l0.data.zero_()
    assert torch.equal(call(module), before)
    assert not torch.equal(call(module.freeze()), before)


def test_weights_of_inference_mode() -> None:
    """They have no version, so that only a replaced one is noticed."""
    module: Any = fused_rnn.GRU(4, 8).eval()
    assert module.weight_ih_l0.is_inference()
    assert torch.equal(call(module.freeze()), call(module))
    module.weight_ih_l0 = nn.Parameter(torch.zeros(24, 4))
    with pytest.raises(RuntimeError, match="replaced"):
        call(module)


@pytest.mark.parametrize("name", NAMES)
def test_no_gradients(name: str) -> None:
    module = make(name).freeze()
    with torch.inference_mode(False):
        with pytest.raises(RuntimeError, match=f"a frozen {name} computes no gradients"):
            call(module)
        module.requires_grad_(False)
        output = call(module)
        assert not output.requires_grad
        shape = (3, 4) if isinstance(module, nn.RNNCellBase) else (5, 3, 4)
        with pytest.raises(RuntimeError, match="computes no gradients, but its input or a state requires one"):
            module(torch.randn(shape, requires_grad=True))
        with torch.no_grad():
            assert not module.requires_grad_()(torch.randn(shape, requires_grad=True))[0].requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_no_autocast_and_no_transforms(name: str) -> None:
    module = make(name).freeze()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match=rf"a frozen {name} .* autocast"):
        call(module)
    shape = (3, 4) if isinstance(module, nn.RNNCellBase) else (5, 3, 4)
    with torch.inference_mode(False), torch.no_grad():
        module.requires_grad_(False)
        with pytest.raises(NotImplementedError, match=f"a frozen {name} has no derivatives and no vmap"):
            torch.func.vmap(module)(torch.randn(2, *shape))
        with pytest.raises(NotImplementedError, match=f"a frozen {name} has no derivatives and no vmap"):
            torch.func.jvp(lambda input: flatten(module(input))[0], (torch.randn(shape),), (torch.randn(shape),))


def test_what_cannot_be_frozen() -> None:
    module = make("LSTM")
    for dtype in (torch.float16, torch.float32, torch.float64, torch.uint8):
        for freeze in (module.freeze, lambda dtype: fused_rnn.freeze(make("LSTM"), dtype)):
            with pytest.raises(ValueError, match=r"dtype must be None, torch.bfloat16 or torch.int8"):
                freeze(dtype)
    for dtype, as_dtype in (
        (torch.float64, torch.int8),
        (torch.float64, torch.bfloat16),
        (torch.float16, torch.bfloat16),
    ):
        with pytest.raises(ValueError, match=rf"a LSTM of {dtype} cannot be frozen as {as_dtype}"):
            make("LSTM").to(dtype).freeze(as_dtype)
    with pytest.raises(RuntimeError, match="a LSTM in training mode cannot be frozen"):
        make("LSTM").train().freeze()
    with pytest.raises(ValueError, match=r"model has no recurrent layer or cell of fused_rnn"):
        fused_rnn.freeze(nn.Sequential(nn.LSTM(4, 8)).eval())
    with pytest.raises(NotImplementedError, match="only a GRU on the CPU can be frozen"):
        fused_rnn.GRU(4, 8, device="meta").eval().freeze()
    with pytest.raises(ValueError, match="a layer without hidden units cannot be frozen"):
        make("LSTMCell", 4, 0).freeze()
    with torch.inference_mode(False):
        parametrized = torch.nn.utils.parametrizations.weight_norm(make("GRU"), "weight_hh_l0")
        with pytest.raises(ValueError, match=r"weight_hh_l0 of the .* is not an initialized parameter of its own"):
            parametrized.freeze()
        module.weight_hh_l0.data[3, 3] = float("nan")
    module.freeze()
    with pytest.raises(ValueError, match="weight_hh_l0 of the LSTM is not finite"):
        module.freeze(torch.int8)


def test_a_model_is_frozen_as_a_whole_or_not_at_all() -> None:
    model = nn.ModuleDict({"a": make("LSTM"), "b": make("GRUCell").double(), "c": nn.LSTM(4, 8)}).eval()
    with pytest.raises(ValueError, match=r"a GRUCell of torch.float64 cannot be frozen as torch.int8"):
        fused_rnn.freeze(model, torch.int8)
    assert "frozen" not in repr(model)
    assert fused_rnn.freeze(model) is model
    assert repr(model).count("frozen") == 2
    assert fused_rnn.unfreeze(model) is model
    assert "frozen" not in repr(model)


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_those_of_the_ordinary_layer(name: str) -> None:
    ordinary, module = make(name), make(name).freeze()
    is_cell = name.endswith("Cell")
    shape = (3, 4) if is_cell else (5, 3, 4)
    state = torch.zeros(3, 8) if is_cell else torch.zeros(1, 3, 8)

    def hx(value: Tensor) -> Any:
        return (value, value) if name.startswith("LSTM") else value

    bad: list[tuple[Any, ...]] = [
        (torch.randn(*shape[:-1], 5),), (torch.randn(2, 2, 2, 2),), (torch.randn(shape, dtype=torch.float64),),
        (torch.randn(shape), hx(state[..., :-1])), (torch.randn(shape), hx(state.double())),
        (torch.randn(shape), hx(torch.zeros(2, *state.shape))), (torch.zeros(shape, dtype=torch.int64),),
        (torch.randn(shape), hx(state[..., :2, :])),
    ]  # fmt: skip
    if not is_cell:
        bad += [(torch.randn(0, 3, 4),), (torch.randn(shape), hx(state), [5, 6, 1]), (torch.randn(shape), None, [1])]
    for arguments in bad:
        with pytest.raises(Exception) as expected:  # noqa: PT011  (any exception of the ordinary layer)
            ordinary(*arguments)
        with pytest.raises(expected.type) as raised:
            module(*arguments)
        assert str(raised.value).splitlines()[0] == str(expected.value).splitlines()[0]


@pytest.mark.parametrize("as_dtype", [None, torch.int8], ids=str)
def test_what_is_compiled_exported_or_traced_is_the_ordinary_layer(as_dtype: torch.dtype | None) -> None:
    with torch.inference_mode(False), torch.no_grad():
        module, input = make("LSTM"), torch.randn(5, 20, 4)
        expected = module(input)[0]
        module.freeze(as_dtype)
        assert torch.equal(torch.export.export(module, (input,)).module()(input)[0], expected)
        assert torch.equal(torch.compile(module, fullgraph=True, backend="eager")(input)[0], expected)
        assert torch.equal(torch.jit.trace(module, input, check_trace=False)(input)[0], expected)
        assert torch.equal(module(input)[0], expected) == (as_dtype is None)
        assert isinstance(torch.fx.symbolic_trace(nn.Sequential(module)), torch.fx.GraphModule)


def test_converted_layers() -> None:
    class Mine(nn.LSTM):
        """A subclass, which convert derives a class from."""

    with torch.inference_mode(False), torch.no_grad():
        for cls, options in ((nn.LSTM, {}), (nn.LSTM, {"keep_isinstance": True}), (Mine, {"subclasses": True})):
            model = nn.Sequential(cls(4, 8)).eval()
            expected = call(model[0])
            fused_rnn.convert(model, **options)
            fused_rnn.freeze(model)
            assert "frozen" in repr(model)
            torch.testing.assert_close(call(model[0]), expected)
            assert torch.equal(call(deepcopy(model)[0]), call(model[0]))
            fused_rnn.revert(model)
            assert type(model[0]) is cls
            assert "frozen" not in repr(model)
            assert "_frozen" not in vars(model[0])


def test_layers_around_layers() -> None:
    with torch.inference_mode(False), torch.no_grad():
        for wrap in (
            lambda: Reversed(fused_rnn.GRU(4, 8)),
            lambda: WithDefaults(fused_rnn.GRU(4, 8), lengths=torch.tensor([5, 2, 0])),
            lambda: MergedDirections(fused_rnn.GRU(4, 8, bidirectional=True), "sum"),
        ):  # fmt: skip
            model = wrap().eval()
            expected = call(model)
            torch.testing.assert_close(call(fused_rnn.freeze(model)), expected)
            assert "frozen" in repr(model)


@pytest.mark.parametrize("dynamo", [True, False])
def test_export_to_onnx(dynamo: bool, tmp_path: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = str(tmp_path / "model.onnx")
    with torch.inference_mode(False), torch.no_grad():
        module, input = make("GRU"), torch.randn(5, 3, 4)
        expected = module(input)[0]
        module.freeze(torch.int8)
        torch.onnx.export(module, (input,), path, dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    output = session.run(None, {session.get_inputs()[0].name: input.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(output), expected)


def test_explained() -> None:
    input = torch.randn(5, 3, 4)
    assert "frozen" not in fused_rnn.explain(make("GRU"), input)
    assert fused_rnn.explain(make("GRU").freeze(), input).endswith(", weights frozen as torch.float32")
    assert fused_rnn.explain(make("GRU").freeze(torch.int8), input).endswith(", weights frozen as torch.int8")
