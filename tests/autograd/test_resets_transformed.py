"""Layers with resets under everything that PyTorch does with a function: transforms, compilers, traces, autocast."""

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CELLS, KINDS, Case, batch_sizes, flatten, hx_of, layer_inputs, structure_of
from comparing import assert_accurate, assert_all_accurate
from segments import RESET_STATES, random_resets, reset_states_of, run_segments
from torch import Tensor, fx, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap

import fused_rnn

FORWARD = torch.ops.fused_rnn.recurrent.default
BACKWARD = torch.ops.fused_rnn.recurrent_backward.default
FORMS: list[dict[str, Any]] = [{}, {"bidirectional": True}, {"bidirectional": True, "lengths": (5, 4, 1)}]


def arguments(case: Case, which: str, dtype: torch.dtype = torch.float64) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return what the operator takes before and after its flags."""
    input, states, weights = layer_inputs(case, dtype)
    sizes, resets = batch_sizes(case), random_resets(case, 0.4)
    if sizes is not None:
        resets = torch.cat([step[:size] for step, size in zip(resets, sizes.tolist(), strict=True)])
    given = (CELLS[case.kind], input, states, weights, sizes, None)
    return given, (resets, *reset_states_of(case, which, dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("which", RESET_STATES)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_operators(kind: str, form: dict[str, Any], which: str, dtype: torch.dtype) -> None:
    given, replaced = arguments(Case(kind, **form), which, dtype)
    torch.library.opcheck(FORWARD, (*given, True, *replaced))
    output, finals, gates, history = FORWARD(*given, True, *replaced)
    grads = (given[0], torch.randn_like(output), [torch.randn_like(final) for final in finals], [None] * len(history))
    torch.library.opcheck(BACKWARD, (*grads, *given[1:], output, gates, history, True, True, True, *replaced))


@pytest.mark.parametrize("which", RESET_STATES[1:])
@pytest.mark.parametrize("kind", KINDS)
def test_operators_with_gradients(kind: str, which: str) -> None:
    given, (resets, *reset_states) = arguments(Case(kind, bidirectional=True), which)
    for tensor in (given[1], *given[2], *given[3], *reset_states):
        tensor.requires_grad_()
    torch.library.opcheck(FORWARD, (*given, True, resets, *reset_states))


def test_gradients_that_are_not_wanted() -> None:
    given, replaced = arguments(Case("LSTM"), "shared")
    output, finals, gates, history = FORWARD(*given, True, *replaced)
    grads: Any = (given[0], torch.ones_like(output), [None] * len(finals), [None] * len(history))
    rest: Any = (*given[1:], output, gates, history)
    _, of_states, _ = BACKWARD(*grads, *rest, False, False, False, *replaced)
    assert [gradient.shape for gradient in of_states] == [(0,)] * 4


@pytest.mark.parametrize(
    ("resets", "reset_states", "error", "message"),
    [
        (torch.zeros(5, 3), [], TypeError, "resets must be bool, got"),
        (torch.zeros(5, 2, dtype=torch.bool), [], ValueError, r"resets must have shape \[5, 3\], got \[5, 2\]"),
        (torch.zeros(5, 3, dtype=torch.bool, device="meta"), [], ValueError, "resets is on meta, but input is on cpu"),
        (None, [torch.zeros(1, 3, 6)] * 2, ValueError, "reset_states are given without resets"),
        (torch.zeros(5, 3, dtype=torch.bool), [torch.zeros(1, 3, 6)], ValueError, "must have 2 tensors, got 1"),
        (torch.zeros(5, 3, dtype=torch.bool), [torch.zeros(1, 2, 6)] * 2, ValueError, "must have shape"),
        (torch.zeros(5, 3, dtype=torch.bool), [torch.zeros(1, 3, 6).double()] * 2, RuntimeError, "has dtype"),
    ],
)  # fmt: skip
def test_what_the_operator_refuses(
    resets: Tensor | None, reset_states: list[Tensor], error: type[Exception], message: str
) -> None:
    input, states, weights = layer_inputs(Case("LSTM"), torch.float32)
    for device in ("cpu", "meta"):
        given = [input.to(device), [s.to(device) for s in states], [w.to(device) for w in weights]]
        others = [state.to(device) for state in reset_states]
        flags: Tensor | None
        if resets is not None and resets.is_meta:
            flags = torch.zeros(5, 3, dtype=torch.bool, device="cpu" if device == "meta" else "meta")
            message = f"resets is on {flags.device}, but input is on {device}"
        else:
            flags = None if resets is None else resets.to(device)
        with pytest.raises(error, match=message):
            FORWARD("lstm", *given, None, None, False, flags, *others)


def test_one_step_has_no_resets() -> None:
    weights = [torch.zeros(18, 4), torch.zeros(18, 6)]
    with pytest.raises(ValueError, match="one step, with h0 of 2 dimensions, has no resets"):
        FORWARD("gru", torch.zeros(3, 4), [torch.zeros(3, 6)], weights, None, None, False, torch.zeros(3).bool())


def layer(kind: str, which: str, **form: Any) -> tuple[Case, nn.RNNBase, Tensor, Any, Tensor, Any]:
    """Return a case, a layer in float64, an input, states, resets and reset states."""
    case = Case(kind, time=4, hidden_size=3, bidirectional=True, **form)
    input, states = case.tensors(torch.float64)
    reset_states = reset_states_of(case, which)
    others = hx_of(reset_states) if reset_states else None
    return case, case.module(fused_rnn, torch.float64), input, hx_of(states), random_resets(case), others


@pytest.mark.parametrize("which", RESET_STATES)
@pytest.mark.parametrize("kind", CELLS)
def test_second_derivatives(kind: str, which: str) -> None:
    _, module, input, hx, resets, others = layer(kind, which)
    tensors = [input, *flatten(hx), *(flatten(others) if others is not None else [])]
    count = structure_of(kind).states
    for tensor in tensors:
        tensor.requires_grad_()

    def run(input: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        replacing = hx_of(states[count:]) if states[count:] else None
        return tuple(flatten(module(input, hx_of(states[:count]), resets=resets, reset_states=replacing)))

    assert gradcheck(run, tensors, rtol=1e-6)
    assert gradgradcheck(run, tensors, rtol=1e-6)


@pytest.mark.parametrize("which", RESET_STATES[1:])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode(kind: str, which: str) -> None:
    case, module, input, hx, resets, others = layer(kind, which)
    tangent = torch.randn_like(input)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(input, tangent)
        output = module(dual, hx, resets=resets, reset_states=others)[0]
        actual = forward_ad.unpack_dual(output).tangent
    oracle = case.module(nn, torch.float64)

    def run(input: Tensor) -> Tensor:
        return run_segments(oracle, case, input, flatten(hx), resets, flatten(others))[0]

    _, expected = torch.autograd.functional.jvp(run, input, tangent)
    assert_accurate(actual, expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_vmap(kind: str, packed: bool) -> None:
    """Each index may have resets, input and reset states of its own."""
    _, module, input, _, _, others = layer(kind, "of every step")
    inputs = torch.randn(4, *input.shape, dtype=torch.float64)
    resets = torch.rand(4, *input.shape[:2]) < 0.4
    sizes = torch.tensor([3, 2, 1, 1])
    rows = torch.cat([3 * t + torch.arange(int(size)) for t, size in enumerate(sizes)])

    def run(input: Tensor, resets: Tensor) -> Tensor:
        given: Any = input
        if packed:
            given = nn.utils.rnn.PackedSequence(input.flatten(0, 1)[rows], sizes)
            resets = resets.flatten()[rows]
        return torch.cat([out.flatten() for out in flatten(module(given, resets=resets, reset_states=others))])

    for in_dims in ((0, 0), (0, None), (None, 0)):
        given = [each if dim == 0 else each[0] for each, dim in zip((inputs, resets), in_dims, strict=True)]
        actual = vmap(run, in_dims=in_dims)(*given)
        expected = torch.stack([
            run(*(each[i] if dim == 0 else each for each, dim in zip(given, in_dims, strict=True))) for i in range(4)
        ])  # fmt: skip
        assert_accurate(actual, expected)
        gradients = [torch.autograd.grad(out.cos().sum(), list(module.parameters())) for out in (actual, expected)]
        assert_all_accurate(*(dict(enumerate(gradient)) for gradient in gradients))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_sample(kind: str) -> None:
    _, module, input, _, resets, _ = layer(kind, "zero")
    weights = {name: weight.detach() for name, weight in module.named_parameters()}

    def loss(weights: Any, input: Tensor, resets: Tensor) -> Tensor:
        return functional_call(module, weights, (input,), {"resets": resets})[0].square().sum()

    actual = vmap(grad(loss), in_dims=(None, 1, 1))(weights, input, resets)
    for index in range(3):
        expected = grad(loss)(weights, input[:, index], resets[:, index])
        assert_all_accurate({name: gradient[index] for name, gradient in actual.items()}, expected)


class Model(nn.Module):
    """A layer of each kind with resets, and a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fused_rnn.LSTM(4, 8, 2, bidirectional=True)
        self.gru, self.rnn, self.cell = fused_rnn.GRU(16, 8), fused_rnn.RNN(8, 8), fused_rnn.GRUCell(8, 6)
        self.initial = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, input: Tensor, resets: Tensor) -> Tensor:
        """Map ``[time, batch, 4]`` to ``[batch, 6]``."""
        output, _ = self.lstm(input, resets=resets)
        output, _ = self.gru(output, resets=resets, reset_states=self.initial.expand(1, input.size(1), 8))
        _, h_n = self.rnn(output, resets=resets)
        return self.cell(h_n[0], reset=resets[0])


def model_inputs(time: int, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(time)
    return torch.randn(time, batch, 4, generator=generator), torch.rand(time, batch, generator=generator) < 0.3


SHAPES = ((5, 3), (9, 2), (2, 7))


def gradients(model: nn.Module, output: Tensor) -> dict[Any, Tensor]:
    """Return the output and the gradients of the parameters."""
    found = torch.autograd.grad(output.sum(), list(model.parameters()))
    return {"output": output, **dict(enumerate(found))}


def test_compile() -> None:
    torch._dynamo.reset()
    model = Model()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in SHAPES:
        given = model_inputs(*shape)
        ours, expected = (gradients(model, function(*given)) for function in (compiled, model))
        assert_all_accurate(ours, {name: tensor.double() for name, tensor in expected.items()}, expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool) -> None:
    model = Model().eval()
    dims = {0: torch.export.Dim("time"), 1: torch.export.Dim("batch")}
    shapes = {"input": dims, "resets": dims}
    program = torch.export.export(model, model_inputs(5, 3), dynamic_shapes=shapes, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for shape in SHAPES:
        assert torch.equal(loaded(*model_inputs(*shape)), model(*model_inputs(*shape)))


def test_trace() -> None:
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced: Any = torch.jit.trace(model, model_inputs(5, 3))
    for shape in SHAPES:
        given = model_inputs(*shape)
        ours, expected = gradients(traced, traced(*given)), gradients(model, model(*given))
        assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_symbolic_trace() -> None:
    model = nn.Sequential(fused_rnn.GRU(4, 8))

    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = model[0]

        def forward(self, input: Tensor, resets: Tensor) -> Tensor:
            return self.gru(input, resets=resets)[0]

    caller = Caller()
    traced = fx.symbolic_trace(caller)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["gru"]
    assert torch.equal(traced(*model_inputs(5, 3)), caller(*model_inputs(5, 3)))


def test_autocast() -> None:
    """The reset states are converted, too."""
    module, (input, resets) = fused_rnn.LSTM(4, 8), model_inputs(5, 3)
    others = (torch.randn(1, 3, 8), torch.randn(1, 3, 8))
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(input, resets=resets, reset_states=others)
        cell = fused_rnn.GRUCell(4, 8)(input[0], others[0][0], reset=resets[0], reset_states=others[1][0])
    assert output.dtype == cell.dtype == torch.bfloat16
    low = module.bfloat16()
    expected, _ = low(input.bfloat16(), resets=resets, reset_states=tuple(state.bfloat16() for state in others))
    assert torch.equal(output, expected)


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_has_no_resets(dynamo: bool, tmp_path: Path) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    model = Model().eval()
    with pytest.raises(Exception, match="resets cannot be exported to ONNX"):
        torch.onnx.export(model, model_inputs(5, 3), str(tmp_path / "model.onnx"), dynamo=dynamo)
