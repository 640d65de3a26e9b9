"""The peers of the recurrent layers: fused, torch.nn, cells in a Python loop (torch.nn, reference), ONNX Runtime.

In half precision the peers are only the layers and cells of fused_rnn and torch.nn: ONNX Runtime's operators accept
only float32 on a CPU, and a loop over the reference cell would show no more than a loop over torch.nn's cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from benchmarks.cases import Kind, RecurrentCase
from benchmarks.problem import FUSED, Compute, Outputs, Peer, Problem, torch_peer
from fused_rnn import reference

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

Input = Tensor | PackedSequence
Cell = Callable[[Tensor, Outputs], Tensor | Outputs]
Network = Callable[[Tensor], Outputs]

ONNX_RUNTIME = "ONNX Runtime"
OPSET = 17
IR_VERSION = 8
WEIGHTS_PER_CELL = 4  # weight_ih, weight_hh, bias_ih, bias_hh
STATE_NAMES = ("h", "c")


@dataclass(frozen=True)
class OnnxOperator:
    """The differences between torch.nn's layer and the ONNX operator of the same name.

    Attributes:
        gate_order: For each gate in ONNX's order (i, o, f, g or z, r, n), its index in torch.nn's (i, f, g, o or r, z,
            n).
        attributes: The attributes with which the operator computes the same as torch.nn's layer.
        activation: The activation, where it must be given, once for each direction.
    """

    gate_order: tuple[int, ...]
    attributes: Mapping[str, int] = field(default_factory=dict)
    activation: str | None = None


ONNX_OPERATORS: dict[Kind, OnnxOperator] = {
    "LSTM": OnnxOperator((0, 3, 1, 2)),
    "GRU": OnnxOperator((1, 0, 2), {"linear_before_reset": 1}),  # the reset gate after the product, as in torch.nn
    "RNN": OnnxOperator((0,), activation="Tanh"),
    "RNN_RELU": OnnxOperator((0,), activation="Relu"),
}


def recurrent_problem(case: RecurrentCase, *, compiled: bool = False) -> Problem:
    """Make the data and peers of `case`, the same in every run.

    Args:
        case: The case to compute.
        compiled: Whether torch.compile of the reference cell is a peer; compiling takes longer than measuring.

    Returns:
        The problem, in which every peer has the weights of torch.nn's layer.
    """
    torch.manual_seed(0)
    theirs, ours = make_layers(case)
    weights = list(theirs.parameters())
    leaf, input = make_input(case)
    grad_output = torch.randn(*leaf.shape[:-1], case.directions * case.hidden_size, dtype=leaf.dtype)

    def peer(name: str, network: Callable[[Any], Any], parameters: Sequence[Tensor]) -> Peer:
        return torch_peer(name, lambda: flatten_result(network(input)), [leaf, *parameters], grad_output)

    def cell_loop(name: str, library: Any) -> Peer:
        return peer(name, *_loop_over_modules(getattr(library, f"{case.layer.name}Cell"), case, weights))

    def reference_loop(name: str, step: Callable[..., Any]) -> Peer:
        return peer(name, _loop_over_function(partial(step, **case.layer.options), case, weights), weights)

    peers = []
    if case.form == "cell":
        peers.append(cell_loop(FUSED, fused_rnn))
    else:
        peers += [peer(FUSED, ours, list(ours.parameters())), peer("torch.nn", theirs, weights)]
    if case.form != "packed":
        peers.append(cell_loop("torch.nn cells", nn))
    if case.form != "packed" and case.dtype == "float32":
        step = getattr(reference, f"{case.layer.name.lower()}_cell")
        peers.append(reference_loop("reference cells", step))
        if compiled:
            torch._dynamo.reset()  # the limit of recompilations is meant for a single program, not for a grid of cases
            peers.append(reference_loop("torch.compile", torch.compile(step, dynamic=False)))
    if case.form == "sequence" and case.dtype == "float32" and onnx_is_installed():
        peers.append(_onnx_peer(case, weights, leaf))
    return Problem(
        peers,
        _oracle(case, [leaf, *weights], input, grad_output),
        yardstick=peers[1].name,
        forward_names=("output", *state_names(case)),
        gradient_names=("input", *(name for name, _ in theirs.named_parameters())),
    )


def make_layers(case: RecurrentCase, device: str = "cpu") -> tuple[nn.Module, nn.Module]:
    """Make the layer of torch.nn and ours, with the same weights."""
    sizes = (case.input_size, case.hidden_size, case.num_layers)
    dtype = getattr(torch, case.dtype)
    theirs, ours = (
        getattr(library, case.layer.name)(
            *sizes, bidirectional=case.bidirectional, **case.layer.options, dtype=dtype, device=device
        )
        for library in (nn, fused_rnn)
    )
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def make_input(case: RecurrentCase, device: str = "cpu") -> tuple[Tensor, Input]:
    """Make the leaf tensor, `[time, batch, input_size]` or `[rows, input_size]` if packed, and the layer's argument."""
    input = torch.randn(case.time, case.batch, case.input_size, dtype=getattr(torch, case.dtype), device=device)
    if case.form != "packed":
        input.requires_grad_()
        return input, input
    packed = pack_padded_sequence(input, torch.tensor(case.lengths))
    leaf = packed.data.requires_grad_()
    return leaf, PackedSequence(leaf, packed.batch_sizes)


def state_names(case: RecurrentCase) -> list[str]:
    """The names of the final states: `h_n`, and `c_n` where the cell has a second state."""
    return [f"{name}_n" for name in STATE_NAMES[: case.layer.states]]


def flatten_result(result: tuple[Any, ...]) -> Outputs:
    """(output, h_n) or (output, (h_n, c_n)) or (output, h_n, c_n), packed or not, as a flat tuple of tensors."""
    output, *states = result
    if isinstance(output, PackedSequence):
        output = output.data
    if isinstance(states[0], tuple):
        states = list(states[0])
    return (output, *states)


def _oracle(case: RecurrentCase, leaves: Sequence[Tensor], input: Input, grad_output: Tensor) -> Peer:
    """The reference layers, one after another, in float64, from the same (rounded) weights and input."""
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    batch_sizes = input.batch_sizes if isinstance(input, PackedSequence) else None
    zeros = torch.zeros(case.directions, case.batch, case.hidden_size, dtype=torch.float64)
    initial = (zeros,) * case.layer.states
    layer_weights = case.directions * WEIGHTS_PER_CELL

    def compute() -> Outputs:
        output, *weights = doubles
        finals = []
        for first in range(0, len(weights), layer_weights):
            weights_of_layer = weights[first : first + layer_weights]
            (output, *_), final = reference.recurrent(case.layer.cell, output, initial, weights_of_layer, batch_sizes)
            finals.append(final)
        return (output, *(torch.cat(states) for states in zip(*finals, strict=True)))

    return torch_peer("reference in float64", compute, doubles, grad_output.double())


# Loops over cells in Python. Weights are in the order of torch.nn: by layer, then by direction.


def _loop_over_function(cell: Callable[..., Any], case: RecurrentCase, weights: Sequence[Tensor]) -> Network:
    """The network of `case` as a loop over `cell(input, *states, *weights)`."""

    def bind(cell_weights: Sequence[Tensor]) -> Cell:
        return lambda input, states: cell(input, *states, *cell_weights)

    return partial(_run_cells, case, [bind(cell_weights) for cell_weights in _by_cell(weights)])


def _loop_over_modules(
    cell_class: Callable[..., nn.Module], case: RecurrentCase, weights: Sequence[Tensor]
) -> tuple[Network, list[Tensor]]:
    """The network of `case` as a loop over modules with copies of `weights`, and the modules' parameters."""
    cells: list[Cell] = []
    parameters: list[Tensor] = []
    for cell_weights in _by_cell(weights):
        module = cell_class(cell_weights[0].shape[1], case.hidden_size, **case.layer.options).to(cell_weights[0].dtype)
        for parameter, weight in zip(module.parameters(), cell_weights, strict=True):
            parameter.data.copy_(weight)
        cells.append(module if case.layer.states > 1 else _with_single_state(module))
        parameters.extend(module.parameters())
    return partial(_run_cells, case, cells), parameters


def _with_single_state(module: nn.Module) -> Cell:
    return lambda input, states: module(input, *states)


def _by_cell(weights: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return [weights[start : start + WEIGHTS_PER_CELL] for start in range(0, len(weights), WEIGHTS_PER_CELL)]


def _run_cells(case: RecurrentCase, cells: Sequence[Cell], input: Tensor) -> Outputs:
    """Run cells over `input` `[time, batch, input_size]`; the output is `[time, batch, directions * hidden_size]`."""
    initial = (input.new_zeros(case.batch, case.hidden_size),) * case.layer.states
    finals: list[Outputs] = []
    layer_output = input
    for layer in range(case.num_layers):
        steps = layer_output.unbind(0)
        outputs = []
        for direction in range(case.directions):
            cell = cells[layer * case.directions + direction]
            states: Outputs = initial
            hidden = []
            for step in reversed(steps) if direction else steps:
                new = cell(step, states)
                states = new if isinstance(new, tuple) else (new,)
                hidden.append(states[0])
            outputs.append(torch.stack(hidden[::-1] if direction else hidden))
            finals.append(states)
        layer_output = outputs[0] if case.directions == 1 else torch.cat(outputs, dim=-1)
    return (layer_output, *(torch.stack(states) for states in zip(*finals, strict=True)))


# ONNX Runtime runs the same network as an ONNX model with the same weights. It supports only inference.


def onnx_is_installed() -> bool:
    """Whether onnx and onnxruntime, which the extra `bench` installs, are installed."""
    return find_spec("onnx") is not None and find_spec("onnxruntime") is not None


def _onnx_peer(case: RecurrentCase, weights: Sequence[Tensor], input: Tensor) -> Peer:
    """A session with the same number of threads as torch. It exists only while it is timed, since its threads spin."""
    return Peer(ONNX_RUNTIME, lambda _: onnx_session(onnx_model(case, weights), input), modes=("forward",), alone=True)


def onnx_session(model: bytes, input: Tensor) -> Compute:
    """The call of a model for one input, in a new session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"input": input.detach().numpy()}

    def compute() -> Outputs:
        return tuple(torch.from_numpy(value) for value in session.run(None, feed))

    return compute


def onnx_model(case: RecurrentCase, weights: Sequence[Tensor]) -> bytes:
    """The network in the form of torch's exporter: one operator per layer, after which the directions are joined."""
    from onnx import TensorProto, helper

    states = STATE_NAMES[: case.layer.states]
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = [_constant("shape", torch.tensor([0, 0, -1]))]
    layer_input = "input"
    layer_weights = len(weights) // case.num_layers
    for layer in range(case.num_layers):
        stacked = _stack_directions(case, weights[layer * layer_weights : (layer + 1) * layer_weights])
        names = [f"{name}{layer}" for name in ("W", "R", "B")]
        constants += [_constant(name, tensor) for name, tensor in zip(names, stacked, strict=True)]
        results = [f"raw{layer}", *(f"{state}{layer}" for state in states)]
        nodes.append(helper.make_node(case.layer.name, [layer_input, *names], results, **_onnx_attributes(case)))
        layer_input = f"output{layer}"
        # [time, directions, batch, hidden] -> [time, batch, directions * hidden]
        nodes.append(helper.make_node("Transpose", [results[0]], [f"transposed{layer}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"transposed{layer}", "shape"], [layer_input]))
    for state in states:
        parts = [f"{state}{layer}" for layer in range(case.num_layers)]
        nodes.append(helper.make_node("Concat", parts, [f"{state}_n"], axis=0))
    outputs = [layer_input, *state_names(case)]
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [case.time, case.batch, case.input_size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def _onnx_attributes(case: RecurrentCase) -> dict[str, Any]:
    operator = ONNX_OPERATORS[case.kind]
    attributes: dict[str, Any] = {"hidden_size": case.hidden_size, **operator.attributes}
    attributes["direction"] = "bidirectional" if case.bidirectional else "forward"
    if operator.activation is not None:
        attributes["activations"] = [operator.activation] * case.directions
    return attributes


def _constant(name: str, tensor: Tensor) -> TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(tensor.detach().numpy(), name)


def _stack_directions(case: RecurrentCase, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX's W `[directions, gates * hidden, input]`, R `[.., hidden]` and B `[directions, 2 * gates * hidden]`."""

    def reorder(tensor: Tensor) -> Tensor:
        order = ONNX_OPERATORS[case.kind].gate_order
        gates = tensor.detach().chunk(len(order))
        return torch.cat([gates[gate] for gate in order])

    directions = [[reorder(weight) for weight in cell_weights] for cell_weights in _by_cell(weights)]
    return (
        torch.stack([weight_ih for weight_ih, _, _, _ in directions]),
        torch.stack([weight_hh for _, weight_hh, _, _ in directions]),
        torch.stack([torch.cat(biases) for _, _, *biases in directions]),
    )
