"""What the operators refuse when they are called directly, on a CPU and on the device meta, where they see only shapes.

Each refusal names the argument. A message of ATen, which only happens to stop a wrong call, does not count.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from cases import CELLS, KINDS, structure_of
from torch import Tensor, randn

from fused_rnn import ops

F64 = torch.float64
DEVICES = ["cpu", "meta"]
TIME, BATCH, INPUTS, HIDDEN = 3, 2, 4, 8


def operands(kind: str, *, packed: bool = False) -> dict[str, Any]:
    """Return the arguments of a layer of one direction with biases, each state and weight by its own name."""
    rows = structure_of(kind).gates * HIDDEN
    states = {name: randn(1, BATCH, HIDDEN) for name in ("h0", "c0")[: structure_of(kind).states]}
    weights = {
        "weight_ih": randn(rows, INPUTS), "weight_hh": randn(rows, HIDDEN), "bias_ih": randn(rows),
        "bias_hh": randn(rows),
    }  # fmt: skip
    input = randn(4, INPUTS) if packed else randn(TIME, BATCH, INPUTS)
    return {
        "input": input, **states, **weights, "batch_sizes": torch.tensor([2, 1, 1]) if packed else None,
        "lengths": None,
    }  # fmt: skip


def arguments(kind: str, operands: dict[str, Any], device: str | None = "cpu") -> dict[str, Any]:
    """Return what the operator takes, on ``device`` unless that is None; batch sizes stay on the CPU."""

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) and device else value

    given = {name: value if name == "batch_sizes" else move(value) for name, value in operands.items()}
    states = [given.pop(name) for name in ("h0", "c0") if name in given]
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    weights = [given.pop(name) for name in names if name in given]
    return {"cell": CELLS[kind], "states": states, "weights": weights, **given}


Change = tuple[str, Tensor, str]
LAYER_CHANGES: list[Change] = [
    ("input", randn(TIME, 4), "input must have 3 dimensions"),
    ("input", randn(0, BATCH, INPUTS), "input must have at least one time step"),
    ("input", randn(TIME, 5, INPUTS), "h0 must have input's batch size 5, got 2"),
    ("input", randn(TIME, BATCH, 5), r"weight_ih must have shape \[\d+, 5\], got \[\d+, 4\]"),
    ("input", randn(TIME, BATCH, INPUTS).long(), "input must be float32, float64, bfloat16 or float16, got"),
    ("h0", randn(3, BATCH, HIDDEN), "h0 must have 1 or 2 directions"),
    ("h0", randn(1, BATCH, HIDDEN, dtype=F64), "h0 has dtype"),
    ("h0", randn(1, 1, BATCH, HIDDEN), "h0 must have 3 dimensions"),
    ("h0", randn(1, 3, HIDDEN), "(h0|c0) must have"),
    ("h0", randn(1, BATCH, 0), "the states must not be empty"),
    ("c0", randn(1, BATCH, 7), "h0 and c0 must have the same size without a projection, got 8 and 7"),
    ("c0", randn(1, 3, HIDDEN), "c0 must have shape .* but for the last dimension"),
    ("c0", randn(BATCH, HIDDEN), "c0 must have 3 dimensions"),
    ("c0", randn(1, BATCH, HIDDEN, dtype=F64), "c0 has dtype"),
    ("weight_ih", randn(5, INPUTS), r"weight_ih must have shape \[\d+, 4\], got \[5, 4\]"),
    ("weight_ih", randn(INPUTS), "weight_ih must have 2 dimensions"),
    ("weight_hh", randn(8, 9), r"weight_hh must have shape \[\d+, 8\], got \[8, 9\]"),
    ("weight_hh", randn(8, HIDDEN, dtype=F64), "weight_hh has dtype"),
    ("bias_ih", randn(5), r"bias_ih must have shape \[\d+\], got \[5\]"),
    ("bias_hh", randn(1, 5), "bias_hh must have 1 dimensions"),
    ("bias_hh", randn(5, dtype=torch.float16), "bias_hh has dtype"),
    ("lengths", torch.tensor([3, 2, 1]), r"lengths must be int64 of shape \[batch\] = \[2\]"),
    ("lengths", torch.tensor([3, 2], dtype=torch.int32), "lengths must be int64"),
]
PACKED_CHANGES: list[Change] = [
    ("input", randn(TIME, BATCH, INPUTS), "input must have 2 dimensions"),
    ("batch_sizes", torch.tensor([[2, 1, 1]]), "batch_sizes must be a one-dimensional int64 tensor on the CPU"),
    ("batch_sizes", torch.tensor([2, 1, 1], dtype=torch.int32), "batch_sizes must be a one-dimensional int64"),
    ("batch_sizes", torch.zeros(0, dtype=torch.int64), "(input must have|at least one time step)"),
    ("lengths", torch.tensor([3, 1]), "lengths are for padded input, batch_sizes for packed input"),
]
# What only values show, which are not read where only shapes are computed.
PACKED_VALUES: list[Change] = [
    ("batch_sizes", torch.tensor([1, 2, 1]), "batch_sizes must .* never increase, got 1 before 2"),
    ("batch_sizes", torch.tensor([2, 0, 2]), "batch_sizes must .* never increase, got 0 before 2"),
    ("batch_sizes", torch.tensor([3, 1, 0]), "batch_sizes must lie between 0 and the batch size 2"),
    ("batch_sizes", torch.tensor([2, 2, 1, -1]), "batch_sizes must lie between 0 and the batch size 2"),
    ("batch_sizes", torch.tensor([2, 1]), "input must have as many rows as batch_sizes add up to, 3, got 4"),
    ("batch_sizes", torch.tensor([2, 2, 1]), "input must have as many rows as batch_sizes add up to, 5, got 4"),
]


def refuses(kind: str, given: dict[str, Any], words: str) -> None:
    """Assert that the forward operator refuses its arguments with these words."""
    with pytest.raises(RuntimeError, match=rf"(?s){words}.*refused by fused_rnn::recurrent"):
        ops.recurrent(**given, save_for_backward=True)


def good_backward(kind: str, *, packed: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the operands of a layer, and what the backward operator takes besides them."""
    layer = operands(kind, packed=packed)
    output, finals, gates, history = ops.recurrent(**arguments(kind, layer), save_for_backward=True)
    return layer, {
        "grad_output": output, "grad_final_states": finals, "grad_history": history,
        "output": output, "gates": gates, "history": history,
    }  # fmt: skip


def run_backward(kind: str, layer: dict[str, Any], rest: dict[str, Any], device: str = "cpu") -> Any:
    moved: dict[str, Any] = {
        name: value.to(device) if isinstance(value, Tensor) else [tensor.to(device) for tensor in value]
        for name, value in rest.items()
    }
    given = arguments(kind, layer, device)
    return ops.recurrent_backward(**given, **moved, input_grad=True, state_grad=True, weight_grad=True)


def ids(value: Any) -> str | None:
    if not isinstance(value, Tensor):
        return None
    return (
        f"{value.tolist() if value.dim() == 1 and not value.is_floating_point() else list(value.shape)}-{value.dtype}"
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("kind", "name", "value", "words"),
    [(kind, *change) for kind in KINDS for change in LAYER_CHANGES if change[0] in operands(kind)],
    ids=ids,
)
def test_a_layer_that_does_not_fit(kind: str, name: str, value: Tensor, words: str, device: str) -> None:
    layer, rest = good_backward(kind)
    ops.recurrent(**arguments(kind, layer, device), save_for_backward=True)
    run_backward(kind, layer, rest, device)
    refuses(kind, arguments(kind, {**layer, name: value}, device), words)
    with pytest.raises(RuntimeError, match=words):
        run_backward(kind, {**layer, name: value}, rest, device)


@pytest.mark.parametrize(
    ("device", "name", "value", "words"),
    [
        *(("cpu", *change) for change in PACKED_CHANGES + PACKED_VALUES),
        *(("meta", *change) for change in PACKED_CHANGES),
    ],
    ids=ids,
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_layer_that_does_not_fit(kind: str, name: str, value: Tensor, words: str, device: str) -> None:
    layer, rest = good_backward(kind, packed=True)
    ops.recurrent(**arguments(kind, layer, device), save_for_backward=True)
    refuses(kind, arguments(kind, {**layer, name: value}, device), words)
    with pytest.raises(RuntimeError, match=words):
        run_backward(kind, {**layer, name: value}, rest, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_number_of_tensors(kind: str, device: str) -> None:
    given = arguments(kind, operands(kind), device)
    states, weights = given["states"], given["weights"]
    refuses(
        kind, {**given, "states": states + states}, rf"{CELLS[kind]} has {len(states)} states, got {2 * len(states)}"
    )
    for count in (0, 1, 5 + (kind == "LSTM")):
        refuses(kind, {**given, "weights": (weights * 2)[:count]}, f"weights must be .* got {count} tensors")
    two = [state.expand(2, *state.shape[1:]) for state in states]
    refuses(kind, {**given, "states": two, "weights": weights[:3]}, "weights must be .* got 3 tensors")


@pytest.mark.parametrize("name", ["h0", "weight_hh", "lengths"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_devices(kind: str, name: str) -> None:
    layer = {**operands(kind), "lengths": torch.tensor([3, 1])}
    for device, other in (("cpu", "meta"), ("meta", "cpu")):
        moved = {key: value if value is None else value.to(device) for key, value in layer.items()}
        moved[name] = layer[name].to(other)
        given = arguments(kind, moved, None)
        refuses(kind, given, f"{name} is on {other}, but input is on {device}")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_cell(kind: str, device: str) -> None:
    with pytest.raises(ValueError, match="cell must be one of lstm, gru, rnn_tanh, rnn_relu, got 'elman'"):
        ops.recurrent(**{**arguments(kind, operands(kind), device), "cell": "elman"}, save_for_backward=False)


def changed(value: Any, change: Any) -> Any:
    return change(value) if isinstance(value, Tensor) else [change(tensor) for tensor in value]


SAVED = {
    "grad_output": "grad_output", "grad_final_states": "a tensor of grad_final_states",
    "grad_history": "a tensor of grad_history", "output": "output", "gates": "gates", "history": "a tensor of history",
}  # fmt: skip
NAMES = [(kind, name) for kind in KINDS for name in SAVED if structure_of(kind).states > 1 or "history" not in name]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_gradients_and_saved_values_that_do_not_fit(kind: str, name: str, packed: bool, device: str) -> None:
    layer, rest = good_backward(kind, packed=packed)
    value, words = rest[name], SAVED[name]
    for change, message in (
        (lambda tensor: tensor[:1, :1], "must have shape"),
        (lambda tensor: tensor.unsqueeze(0), "must have shape"),
        (lambda tensor: tensor.double(), "has dtype .* but must have"),
        (lambda tensor: tensor.half(), "has dtype .* but must have"),
        (lambda tensor: tensor.long(), "has dtype .* but must have"),
    ):
        with pytest.raises(RuntimeError, match=f"^{words} {message}"):
            run_backward(kind, layer, {**rest, name: changed(value, change)}, device)
    if isinstance(value, Sequence):
        with pytest.raises(RuntimeError, match="grad_final_states, grad_history and history must have"):
            run_backward(kind, layer, {**rest, name: [*value, rest["output"]]}, device)
    other = "meta" if device == "cpu" else "cpu"
    elsewhere = {**{key: changed(item, lambda tensor: tensor.to(device)) for key, item in rest.items()}}
    elsewhere[name] = changed(value, lambda tensor: tensor.to(other))
    with pytest.raises(RuntimeError, match=f"^{words} is on {other}, but input is on {device}"):
        ops.recurrent_backward(
            **arguments(kind, layer, device), **elsewhere, input_grad=True, state_grad=True, weight_grad=True
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_saves_more_than_it_returns(kind: str, dtype: torch.dtype) -> None:
    """Gradients have the dtype of what they belong to: the output's is half precision, the history's is float32."""
    layer = {name: value if value is None else value.to(dtype) for name, value in operands(kind).items()}
    output, finals, gates, history = ops.recurrent(**arguments(kind, layer), save_for_backward=True)
    rest = {
        "grad_output": output, "grad_final_states": finals, "grad_history": history,
        "output": output, "gates": gates, "history": history,
    }  # fmt: skip
    run_backward(kind, layer, rest)
    for name in ("grad_output", *["grad_history"] * (len(history) > 0)):
        wrong = torch.float32 if name == "grad_output" else dtype
        with pytest.raises(RuntimeError, match=f"{name} has dtype .* but must have"):
            run_backward(kind, layer, {**rest, name: changed(rest[name], lambda tensor, wrong=wrong: tensor.to(wrong))})


CONVOLUTION_CHANGES: list[tuple[str, Any, type[Exception], str]] = [
    ("input", randn(3, 5, 5), RuntimeError, r"Expected 3D \(unbatched\) or 4D \(batched\) input to masked_conv2d"),
    ("input", randn(2, 3, 5, 5).double(), RuntimeError, r"Input type .* and weight type .* should be the same"),
    ("input", randn(2, 4, 5, 5), RuntimeError, "to have 3 channels, but got 4 channels instead"),
    ("input", randn(2, 3, 0, 5), RuntimeError, "Expected input to have height and width"),
    ("input", randn(2, 3, 5, 5).long(), NotImplementedError, "input must be float32, float64, bfloat16 or float16"),
    ("weight", randn(4, 3, 3), RuntimeError, "Expected 4D weight for masked_conv2d"),
    ("weight", randn(4, 3, 2, 3), ValueError, "kernel_size must be odd"),
    ("weight", randn(0, 3, 3, 3), RuntimeError, "expected weight to be at least 1 at dimension 0"),
    ("weight", randn(4, 3, 3, 3).half(), RuntimeError, r"Input type .* and weight type .* should be the same"),
    ("data_channels", 0, ValueError, "data_channels must be positive"),
    ("data_channels", 4, ValueError, "data_channels must not exceed in_channels and out_channels"),
    ("dilation", (0, 1), RuntimeError, "non-positive dilation is not supported"),
]
BIASES: list[tuple[str, Any, type[Exception], str]] = [
    ("bias", randn(3), RuntimeError, "expected bias to be 1-dimensional with 4 elements"),
    ("bias", randn(4, 1), RuntimeError, "expected bias to be 1-dimensional with 4 elements"),
    ("bias", randn(4).double(), RuntimeError, r"Input type .* and bias type .* should be the same"),
]
GRADIENTS: list[tuple[str, Any, type[Exception], str]] = [
    ("grad_output", randn(2, 4, 5, 6), RuntimeError, r"Expected grad_output of size \[2, 4, 5, 5\]"),
    ("grad_output", randn(1, 4, 5, 5), RuntimeError, r"Expected grad_output of size \[2, 4, 5, 5\]"),
    ("grad_output", randn(2, 4, 5), RuntimeError, r"Expected grad_output of size \[2, 4, 5, 5\]"),
    ("grad_output", randn(2, 4, 5, 5).double(), RuntimeError, r"Input type .* and grad_output type .* should be the"),
    ("grad_output", randn(2, 4, 5, 5).half(), RuntimeError, r"Input type .* and grad_output type .* should be the"),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "value", "error", "words"), CONVOLUTION_CHANGES + BIASES + GRADIENTS, ids=ids)
def test_a_masked_convolution_that_does_not_fit(
    name: str, value: Any, error: type[Exception], words: str, device: str
) -> None:
    def move(given: dict[str, Any]) -> dict[str, Any]:
        return {key: item.to(device) if isinstance(item, Tensor) else item for key, item in given.items()}

    layer: dict[str, Any] = {
        "input": randn(2, 3, 5, 5), "weight": randn(4, 3, 3, 3), "mask_type": "A", "data_channels": 1,
        "dilation": (1, 1),
    }  # fmt: skip
    forward = {**layer, "bias": randn(4)}
    backward = {
        **layer, "grad_output": randn(2, 4, 5, 5), "input_grad": True, "weight_grad": True, "bias_grad": True,
    }  # fmt: skip
    for function, good in ((ops.masked_conv2d, forward), (ops.masked_conv2d_backward, backward)):
        function(**move(good))
        if name in good:
            with pytest.raises(error, match=words):
                function(**move({**good, name: value}))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["weight", "bias", "grad_output"])
def test_a_masked_convolution_on_two_devices(name: str, device: str) -> None:
    other = "meta" if device == "cpu" else "cpu"
    tensors = {"weight": randn(4, 3, 3, 3), "bias": randn(4), "grad_output": randn(2, 4, 5, 5)}
    on = {key: tensor.to(other if key == name else device) for key, tensor in tensors.items()}
    input = randn(2, 3, 5, 5, device=device)
    call: Any = partial(ops.masked_conv2d, input, on["weight"], on["bias"], "A", 1, (1, 1))
    if name == "grad_output":
        call = partial(ops.masked_conv2d_backward, on[name], input, on["weight"], "A", 1, (1, 1), True, True, True)
    with pytest.raises(RuntimeError, match=f"input is on {device}, but {name} is on {other}"):
        call()


def test_an_unknown_type_of_mask() -> None:
    with pytest.raises(ValueError, match=r"mask_type must be .* got ''"):
        ops.masked_conv2d(randn(2, 3, 5, 5), randn(4, 3, 3, 3), None, "", 1, (1, 1))
