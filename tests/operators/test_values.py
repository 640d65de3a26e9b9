"""Recurrent layers on extreme values and lengths, compared with torch.nn."""

from typing import Any

import pytest
import torch
from cases import DTYPES, KINDS, Case, flatten, hx_of, structure_of
from comparing import ACTIVATION, assert_accurate, assert_little_noise
from torch import Tensor

import fused_rnn
from fused_rnn import ops

FORMS = [
    {"hidden_size": 17, "batch": 7, "input_size": 9},
    {"hidden_size": 17, "batch": 7, "input_size": 9, "bidirectional": True, "lengths": (5, 3, 5, 2, 1, 4, 5)},
]


def outputs(case: Case, module: torch.nn.Module, input: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return flatten(module(case.in_form(input)))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_inf_flow_as_in_torch(kind: str, form: dict, dtype: torch.dtype, value: float, device: str) -> None:
    case = Case(kind, **form)
    input = case.tensors(dtype)[0]
    input[1, 0, 3] = value
    results = [
        outputs(case, case.module(package, type, device), input.to(device, type))
        for package, type, device in (
            (fused_rnn, dtype, device), (torch.nn, torch.float64, "cpu"), (torch.nn, dtype, device),
        )
    ]  # fmt: skip
    for ours, exact, peer in zip(*results, strict=True):
        assert_accurate(ours, exact, peer)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_flows_into_gradients_as_in_torch(kind: str, dtype: torch.dtype) -> None:
    case = Case(kind, hidden_size=17, batch=7)
    grads = []
    for package, type in ((fused_rnn, dtype), (torch.nn, torch.float64), (torch.nn, dtype)):
        module = case.module(package, type)
        input = case.tensors(type)[0]
        input[1, 2, 3] = float("nan")
        input.requires_grad_()
        flatten(module(input))[0].sum().backward()
        grads.append([input.grad, *(weight.grad for weight in module.parameters())])
    for ours, exact, peer in zip(*grads, strict=True):
        assert_accurate(ours, exact, peer)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gates_near_one(kind: str) -> None:
    """A gate's derivative is small where the gate is near 1, and rounding the gate to bfloat16 must not lose it."""
    gradients: list[Tensor] = []
    for package, dtype in ((fused_rnn, torch.bfloat16), (torch.nn, torch.float64)):
        module = Case(kind, input_size=1, hidden_size=18).module(package, dtype)
        for name, weight in module.named_parameters():
            torch.nn.init.constant_(weight, 1 if name == "weight_ih_l0" else 0)
        input = torch.full((2, 20, 1), 6, dtype=dtype, requires_grad=True)
        gradients += torch.autograd.grad(module(input)[0].sum(), input)
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=0.02, atol=0)


@pytest.mark.instruction_sets
# At scales between these some sums of large terms would be near zero, so that rounding errors would decide their gates.
@pytest.mark.parametrize("scale", [30.0, 1e8, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_saturated_gates(kind: str, scale: float, device: str) -> None:
    case = Case(kind, hidden_size=17, batch=7)
    input = case.tensors(torch.float32)[0] * scale
    results = [
        outputs(case, case.module(package, dtype, device), input.to(device, dtype))
        for package, dtype, device in (
            (fused_rnn, torch.float32, device), (torch.nn, torch.float64, "cpu"), (torch.nn, torch.float32, device),
        )
    ]  # fmt: skip
    for ours, exact, peer in zip(*results, strict=True):
        assert_accurate(ours, exact, peer)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("kind", KINDS)
def test_small_values_keep_their_relative_accuracy(kind: str, device: str) -> None:
    case = Case(kind, hidden_size=17, batch=7, bias=False)
    input = case.tensors(torch.float32)[0] * 1e-20
    ours, exact = (
        outputs(case, case.module(package, dtype, device), input.to(device, dtype))[0].cpu().double()
        for package, dtype, device in ((fused_rnn, torch.float32, device), (torch.nn, torch.float64, "cpu"))
    )
    torch.testing.assert_close(ours / exact.abs().max(), exact / exact.abs().max(), atol=2e-6, rtol=0)


@pytest.mark.instruction_sets
def test_sigmoid_of_an_lstm_falls_to_zero() -> None:
    """An LSTM whose gates are the sigmoid of its input, where that is subnormal or too small for float32."""
    input = -torch.cat([torch.linspace(80, 120, 4001), torch.tensor([1e4, 1e30, float("inf")])]).view(1, -1, 1)
    state = torch.zeros_like(input)
    weights = [torch.ones(4, 1), torch.zeros(4, 1)]
    _, _, gates, _ = ops.recurrent("lstm", input, [state, state], weights, None, None, True)
    ours, exact = gates[0, :, 0].double(), input.flatten().double().sigmoid()
    # Where e^88.72 is still finite, the error is relative; from there on torch's float32 is zero, too.
    finite = input.flatten() > -88.72
    assert (~finite).sum() > 1000
    torch.testing.assert_close(ours[finite], exact[finite], rtol=1e-5, atol=2e-45)
    assert (ours[input.flatten() < -88.73] == 0).all()


@pytest.mark.instruction_sets
# The gates' sums: of the gate that multiplies the state, which is then 1 or 1e-30.
@pytest.mark.parametrize("gate", [200.0, -69.0])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gradients_of_gates_are_finite_beside_large_states(kind: str, gate: float, device: str) -> None:
    """A gradient times a state overflows here, but not a gradient times the derivative of a gate, times the state."""
    case = Case(kind, time=1, batch=2, hidden_size=17)
    results = []
    for package, dtype, place in ((fused_rnn, torch.float32, device), (torch.nn, torch.float64, "cpu")):
        module = case.module(package, dtype, place)
        weights = dict(module.named_parameters())
        bias_ih, bias_hh = (weights[f"bias_{of}_l0"].detach().view(-1, 17) for of in ("ih", "hh"))
        with torch.no_grad():
            for weight in weights.values():
                weight.zero_()
            # Of an LSTM the forget gate; of a GRU the reset gate beside a large recurrent part of its candidate, or
            # the update gate beside a large h.
            bias_ih[0 if kind == "GRU" and gate < 0 else 1] = gate
            if kind == "GRU" and gate < 0:
                bias_hh[2] = 1e30
                bias_ih[1] = -200
        states = [torch.full((1, 2, 17), 1e30, dtype=dtype, device=place) for _ in range(structure_of(kind).states)]
        if kind == "LSTM" or gate < 0:
            states[0].zero_()
        input = case.tensors(dtype, place)[0]
        outputs = flatten(module(input, hx_of(states)))
        gradients = torch.autograd.grad(outputs[-1], [*module.parameters()], torch.full_like(outputs[-1], 1e10))
        results.append([output.cpu() for output in (*outputs, *gradients)])
    for ours, exact in zip(*results, strict=True):
        assert torch.isfinite(ours).all()
        assert_accurate(ours, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_more_steps_than_65535(kind: str, device: str) -> None:
    case = Case(kind, time=70_000, batch=1, input_size=1, hidden_size=2)
    ours, exact = (
        outputs(case, case.module(package, torch.float64, device), case.tensors(torch.float64, device)[0])
        for package, device in ((fused_rnn, device), (torch.nn, "cpu"))
    )
    for actual, expected in zip(ours, exact, strict=True):
        assert_accurate(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_cell_state_is_not_rounded_at_each_step(dtype: torch.dtype, device: str) -> None:
    """The state c grows by so little in a step that it would remain 1 if it were rounded to half precision."""
    steps = 2048 if dtype == torch.float16 else 512
    on: dict[str, Any] = {"dtype": dtype, "device": device}
    step = 2.0**-12 if dtype == torch.float16 else 2.0**-8
    weights = [torch.zeros(4, 1, **on), torch.zeros(4, 1, **on)]
    # i, f and o are 1; g is tanh of its bias, which for so small a number is equal to it.
    biases = [torch.tensor([50.0, 50.0, step, 50.0], **on), torch.zeros(4, **on)]
    c0 = torch.ones(1, 1, 1, **on)
    _, (_, c_n) = fused_rnn.functional.lstm(
        torch.zeros(steps, 1, 1, **on), (torch.zeros_like(c0), c0), weights + biases
    )
    assert c_n.item() == pytest.approx(1 + steps * step, rel=1e-2)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("kind", KINDS)
def test_long_sums_have_little_noise(kind: str) -> None:
    case = Case(kind, time=3, batch=8, input_size=1500, hidden_size=1500)
    ours, exact = case.result(fused_rnn, torch.float32), case.torch_result(torch.float64)
    assert_little_noise(ours, exact, case.torch_result(torch.float32))


@pytest.mark.instruction_sets
def test_tanh_of_an_rnn_and_sigmoid_of_an_lstm_have_the_stated_error() -> None:
    """The layers multiply by one and zero, so that their output and gates are tanh and sigmoid of the input."""
    input = torch.linspace(-20, 20, 100_003).view(1, -1, 1)
    state = torch.zeros_like(input)
    output, *_ = ops.recurrent("rnn_tanh", input, [state], [torch.ones(1, 1), torch.zeros(1, 1)], None, None, False)
    weights = [torch.ones(4, 1), torch.zeros(4, 1)]
    _, _, gates, _ = ops.recurrent("lstm", input, [state, state], weights, None, None, True)
    assert (output.double() - input.double().tanh()).abs().max() <= ACTIVATION
    assert (gates[..., :1].double() - input.double().sigmoid()).abs().max() <= ACTIVATION
