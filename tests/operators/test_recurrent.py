"""A layer of each cell: the operator compared with the reference, and the module with torch.nn."""

from typing import Any

import pytest
import torch
from cases import (
    CELLS,
    DTYPES,
    LAYERS,
    REFERENCES,
    Case,
    Layer,
    batch_sizes,
    check_accuracy,
    layer_inputs,
    shapes_of_layers,
    structure_of,
    tails,
)
from comparing import assert_accurate, assert_all_accurate, differentiate
from layer_sizes import every_plan, whole_blocks
from torch import Tensor

import fused_rnn
from fused_rnn import ops

# Without the types of their arguments, which mypy cannot match with a row of arguments.
recurrent: Any = ops.recurrent
recurrent_backward: Any = ops.recurrent_backward
OPERATOR_CASES = [
    *(Case(kind, **form) for kind in CELLS for form in (
        {}, {"bias": False, "bidirectional": True}, {"bidirectional": True, "lengths": (5, 4, 1)},
        {"time": 9, "batch": 17, "input_size": 7, "hidden_size": 33},
    )),
    Case("LSTM", proj_size=3, bidirectional=True),
    Case("LSTM", proj_size=5, bias=False, lengths=(5, 4, 1)),
]  # fmt: skip


def layer_result(layer: Layer, case: Case, device: str = "cpu") -> dict[str, Tensor]:
    """Return the outputs of an operator or its reference, and all gradients."""
    input, states, weights = layer_inputs(case, device=device)
    inputs = {"input": input, **{f"states[{i}]": state for i, state in enumerate(states)}}
    inputs |= {f"weights[{i}]": weight for i, weight in enumerate(weights)}
    for tensor in inputs.values():
        tensor.requires_grad_()
    outputs = layer(input, states, weights, batch_sizes(case))
    return {**dict(zip(("output", "h_n", "c_n"), outputs, strict=False)), **differentiate(outputs, inputs)}


@pytest.mark.parametrize("case", OPERATOR_CASES, ids=str)
def test_operator_equals_reference(case: Case, device: str) -> None:
    assert_all_accurate(layer_result(LAYERS[case.kind], case, device), layer_result(REFERENCES[case.kind], case))


@pytest.mark.parametrize("form", [{}, {"bidirectional": True}, {"bidirectional": True, "lengths": (5, 4, 1)}], ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_inputs_of_size_zero(kind: str, form: dict[str, Any], device: str) -> None:
    """torch.nn's layers do not take inputs of size 0, but operators and cells do: only the biases are added."""

    def without_inputs(layer: Layer) -> Layer:
        def run(input: Tensor, states: Any, weights: list[Tensor], *sizes: Any) -> tuple[Tensor, ...]:
            narrowed = [weight[:, :0] if index % 4 == 0 else weight for index, weight in enumerate(weights)]
            return layer(input[..., :0], states, narrowed, *sizes)

        return run

    ours, definition = (without_inputs(layers[kind]) for layers in (LAYERS, REFERENCES))
    assert_all_accurate(layer_result(ours, Case(kind, **form), device), layer_result(definition, Case(kind, **form)))


@pytest.mark.parametrize("case", OPERATOR_CASES, ids=str)
def test_outputs_do_not_depend_on_saving(case: Case, device: str) -> None:
    input, states, weights = layer_inputs(case, device=device)
    arguments = (CELLS[case.kind], input, states, weights, batch_sizes(case), None)
    output, finals, gates, history = recurrent(*arguments, False)
    saving, saving_finals, saved_gates, saved_history = recurrent(*arguments, True)
    assert all(saved.shape == (0,) for saved in (gates, *history))
    directions, rows, size = 2 if case.bidirectional else 1, output[..., 0].numel(), case.hidden_size
    assert saved_gates.shape == (directions, rows, structure_of(case.kind).sums * size)
    assert [values.shape for values in saved_history] == [(directions, rows, size)] * len(states[1:])
    assert all(map(torch.equal, (output, *finals), (saving, *saving_finals)))


def test_an_lstm_saves_its_gates_and_c(device: str) -> None:
    input, (h0, c0), weights = layer_inputs(Case("LSTM"), device=device)
    output, (_, c_n), gates, (cells,) = recurrent("lstm", input, (h0, c0), weights, None, None, True)
    i, f, g, o = gates.view(5, 3, 4, 6).unbind(2)
    c = cells.view(5, 3, 6)
    assert_accurate(c, f * torch.cat((c0, c[:-1])) + i * g, name="cells")
    assert_accurate(output, o * c.tanh(), name="output")
    assert_accurate(c_n, c[-1:], name="c_n")


def test_a_gru_saves_its_gates(device: str) -> None:
    input, (h0,), weights = layer_inputs(Case("GRU"), device=device)
    output, _, gates, _ = recurrent("gru", input, (h0,), weights, None, None, True)
    r, z, n, hn = gates.view(5, 3, 4, 6).unbind(2)
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    h = torch.cat((h0, output[:-1]))
    assert_accurate(hn, (h @ weight_hh.T + bias_hh)[..., 12:], name="W_hn h + b_hn")
    assert_accurate(n, torch.tanh((input @ weight_ih.T + bias_ih)[..., 12:] + r * hn), name="n")
    assert_accurate(output, (1 - z) * n + z * h, name="output")


@pytest.mark.parametrize("kind", ["RNN", "RNN_RELU"])
def test_a_plain_network_saves_its_output(kind: str, device: str) -> None:
    input, states, weights = layer_inputs(Case(kind), device=device)
    output, _, gates, _ = recurrent(CELLS[kind], input, states, weights, None, None, True)
    assert torch.equal(gates.view(5, 3, 6), output)


@pytest.mark.parametrize(
    "wanted", [(False, False, False), (True, False, False), (False, True, False), (False, False, True)]
)
@pytest.mark.parametrize("kind", CELLS)
def test_backward_computes_what_is_wanted(kind: str, wanted: tuple[bool, bool, bool], device: str) -> None:
    input, states, weights = layer_inputs(Case(kind), device=device)
    arguments = (input, states, weights, None, None)
    output, finals, gates, history = recurrent(CELLS[kind], *arguments, True)
    grads: Any = (torch.ones_like(output), [None] * len(finals), [None] * len(history))

    def backward(input_grad: bool, state_grad: bool, weight_grad: bool) -> list[Tensor]:
        of_input, of_states, of_weights = recurrent_backward(
            CELLS[kind], *grads, *arguments, output, gates, history, input_grad, state_grad, weight_grad
        )
        assert len(of_weights) == (len(weights) if weight_grad else 0)
        assert (of_input.shape == (0,)) != input_grad
        assert all((gradient.shape == (0,)) != state_grad for gradient in of_states)
        return [of_input, *of_states, *of_weights]

    complete = backward(True, True, True)
    input_grad, state_grad, weight_grad = wanted
    needed = [input_grad, *[state_grad] * len(states), *[weight_grad] * len(weights)]
    expected = [gradient for gradient, need in zip(complete, needed, strict=True) if need]
    actual = [gradient for gradient in backward(*wanted) if gradient.shape != (0,)]
    assert all(map(torch.equal, actual, expected))
    assert len(actual) == len(expected)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_relu_of_what_is_not_finite(value: float, dtype: torch.dtype, device: str) -> None:
    """As in torch.nn, an infinite gradient does not pass a ReLU that is zero, and NaN passes."""
    case = Case("RNN_RELU", hidden_size=21)
    results = []
    for package, where in ((fused_rnn, device), (torch.nn, "cpu")):
        module, (input, _) = case.module(package, dtype, where), case.tensors(dtype, where)
        input[2, 1, 0] = value
        output, _ = module(input.requires_grad_())
        grad = torch.ones_like(output)
        grad[0, 2, 0] = value
        results.append((output.cpu(), *(g.cpu() for g in torch.autograd.grad(output, [input], grad))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("case", [case for kind in CELLS for case in shapes_of_layers(kind)], ids=str)
def test_equals_torch(case: Case, device: str) -> None:
    assert_all_accurate(case.result(fused_rnn, torch.float64, device), case.torch_result(torch.float64))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for kind in CELLS for case in tails(kind)], ids=str)
def test_tails_equal_torch(case: Case, dtype: torch.dtype, device: str) -> None:
    check_accuracy(case, dtype, device)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", [case for kind in CELLS for case in shapes_of_layers(kind)], ids=str)
def test_accuracy(case: Case, dtype: torch.dtype, device: str) -> None:
    check_accuracy(case, dtype, device)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("kind", CELLS)
def test_more_rows_than_are_differentiated_at_once(kind: str) -> None:
    """In bfloat16 the input's gradient is computed in parts of 4096 rows."""
    check_accuracy(
        Case(kind, time=300, batch=15, input_size=3, hidden_size=2, bidirectional=True), torch.bfloat16, "cpu"
    )


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for kind in CELLS for case in every_plan(kind)], ids=str)
def test_every_plan_equals_torch(case: Case, dtype: torch.dtype) -> None:
    check_accuracy(case, dtype, "cpu")


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for kind in CELLS for case in whole_blocks(kind)], ids=str)
def test_sums_of_whole_blocks_equal_torch(case: Case, dtype: torch.dtype) -> None:
    check_accuracy(case, dtype, "cpu")
