"""Layers and inputs for the tests of all recurrent cells, made in the same way for ours and for torch.nn's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from comparing import assert_all_accurate, differentiate
from on_gpu import cudnn, float32_precision, paths
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn import autograd, ops, reference

KINDS = ("LSTM", "GRU", "RNN")
CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh", "RNN_RELU": "rnn_relu"}
"""The cell of each kind of layer. Tests that depend on the cell use all of these, others use KINDS."""
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Sizes near those of vectors and tiles, and one just above a power of two.
SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 257)
# Shapes for cells: the batch (None for unbatched), the input size and the hidden size.
CELL_SHAPES: list[tuple[int | None, int, int]] = [(3, 4, 6), (None, 4, 6), (0, 4, 6), (1, 1, 1), (5, 300, 2)]
CELL_SHAPES += [shape for size in SIZES for shape in ((size, 5, 9), (2, size, size), (None, 6, size))]


Layer = Callable[..., tuple[Tensor, ...]]
"""``(input, states, weights, batch_sizes, lengths, return_states) -> (output, *finals, *states of every step)``."""


def reference_layer(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    return_states: bool = False,
) -> tuple[Tensor, ...]:
    """Compute by the reference what :func:`fused_rnn.autograd.recurrent` does."""
    (output, *state_sequences), finals = reference.recurrent(cell, input, states, weights, batch_sizes, lengths)
    return output, *finals, *(state_sequences if return_states else ())


LAYERS: dict[str, Layer] = {kind: partial(autograd.recurrent, cell) for kind, cell in CELLS.items()}
"""One layer of each kind, computed by the operator."""
REFERENCES: dict[str, Layer] = {kind: partial(reference_layer, cell) for kind, cell in CELLS.items()}
"""One layer of each kind, computed by the reference."""


def class_of(package: Any, kind: str, cell: bool = False) -> Callable[..., Any]:
    """Return the constructor of a layer or a cell of ``package``, which is fused_rnn or torch.nn."""
    name, _, nonlinearity = kind.partition("_")
    cls = getattr(package, f"{name}Cell" if cell else name)
    return partial(cls, nonlinearity=nonlinearity.lower()) if nonlinearity else cls


def structure_of(kind: str) -> ops.Cell:
    """Return the structure of the cell of ``kind``."""
    return ops.CELLS[CELLS[kind]]


def hx_of(states: Sequence[Tensor]) -> Any:
    """Return states in the form that a module takes: a single tensor, or a tuple."""
    return tuple(states) if len(states) > 1 else states[0]


@dataclass(frozen=True)
class Case:
    """A layer, and the shape of an input for it."""

    kind: str
    time: int = 5
    batch: int = 3
    input_size: int = 4
    hidden_size: int = 6
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    proj_size: int = 0
    batch_first: bool = False
    dropout: float = 0.0
    lengths: tuple[int, ...] | None = None
    """The lengths of packed sequences, sorted or not; None for padded input."""
    unbatched: bool = False
    seed: int = 0
    """Of the weights."""

    def __str__(self) -> str:
        changed = {k: v for k, v in vars(self).items() if k != "kind" and v != getattr(Case, k)}
        return "-".join([self.kind, *(f"{name}={value}" for name, value in changed.items())]).replace(" ", "")

    def module(self, package: Any, dtype: torch.dtype, device: str = "cpu") -> torch.nn.RNNBase:
        """Return the layer of ``package``, fused_rnn or torch.nn, with weights that are exact in bfloat16."""
        kwargs = {"proj_size": self.proj_size} if self.proj_size else {}
        torch.manual_seed(self.seed)
        module = class_of(package, self.kind)(
            self.input_size, self.hidden_size, self.num_layers, bias=self.bias, batch_first=self.batch_first,
            dropout=self.dropout, bidirectional=self.bidirectional, **kwargs,
        )  # fmt: skip
        return module.bfloat16().to(device, dtype)

    def tensors(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return a padded input and initial states, with values that are exact in bfloat16."""
        generator = torch.Generator().manual_seed(2)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).bfloat16().to(device, dtype)

        rows = self.num_layers * (2 if self.bidirectional else 1)
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)[: structure_of(self.kind).states]
        states = tuple(random(rows, self.batch, size) for size in sizes)
        input = random(self.time, self.batch, self.input_size)
        if self.unbatched:
            return input[:, 0], tuple(state[:, 0] for state in states)
        return input.transpose(0, 1).contiguous() if self.batch_first else input, states

    def in_form(self, input: Tensor) -> Tensor | PackedSequence:
        """Return the padded input, or its packed form if the case has ``lengths``."""
        if self.lengths is None:
            return input
        return pack_padded_sequence(input, torch.tensor(self.lengths), self.batch_first, enforce_sorted=False)

    def result(self, package: Any, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
        """Return all outputs and all gradients of the layer of ``package``, computed on ``device``."""
        return result(self.module(package, dtype, device), *self.tensors(dtype, device), self.in_form)

    @cache  # noqa: B019  (cases live as long as the tests do)
    def torch_result(self, dtype: torch.dtype, device: str = "cpu", with_cudnn: bool = True) -> dict[str, Tensor]:
        """Return the result of torch.nn, which is the oracle in float64 on the CPU, and the peer in other dtypes."""
        if device == "cpu":
            return self.result(torch.nn, dtype)
        with cudnn(with_cudnn), float32_precision("ieee"):
            return self.result(torch.nn, dtype, device)

    def peers(self, dtype: torch.dtype, device: str) -> dict[str, dict[str, Tensor]]:
        """Return the results of torch.nn on ``device``, on a GPU both with cuDNN and without."""
        if device == "cpu":
            return {"torch.nn": self.torch_result(dtype)}
        return {name: self.torch_result(dtype, device, name == "cuDNN") for name in ("cuDNN", "torch.nn alone")}

    def paths(self, dtype: torch.dtype) -> dict[str, str]:
        """Return the path of each pass on a GPU."""
        return paths(self.kind, dtype, self.time, self.batch, self.hidden_size, 2 if self.bidirectional else 1)


def comparable(kind: str, dtype: torch.dtype, results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what may be compared of results in ``dtype``: of ReLU in half precision the outputs alone.

    Where a rounding moves a sum across zero, a whole gradient appears or disappears, in ours and in the peer's.
    """
    if kind != "RNN_RELU" or dtype.itemsize > 2:
        return results
    return {name: tensor for name, tensor in results.items() if not name.startswith("grad")}


def check_accuracy(case: Case, dtype: torch.dtype, device: str, peer_dtype: torch.dtype | None = None) -> None:
    """Assert that our layer is as accurate as each peer of torch.nn on the same device, by ``assert_accurate``.

    A layer of one unit has gradients of a single number, in which the peer's error may be zero by chance. So several
    such layers are compared together.
    """
    cases = [replace(case, seed=seed) for seed in range(8 if case.hidden_size == 1 else 1)]
    _check_results([each.result(fused_rnn, dtype, device) for each in cases], cases, dtype, device, peer_dtype)


def check_result(
    ours: dict[str, Tensor], case: Case, dtype: torch.dtype, device: str, peer_dtype: torch.dtype | None = None
) -> None:
    """Assert that a result of our layer is as accurate as each peer of torch.nn on the same device."""
    _check_results([ours], [case], dtype, device, peer_dtype)


def _check_results(
    ours: list[dict[str, Tensor]], cases: list[Case], dtype: torch.dtype, device: str, peer_dtype: torch.dtype | None
) -> None:
    exact = [case.torch_result(torch.float64) for case in cases]
    peers = [case.peers(peer_dtype or dtype, device) for case in cases]
    for name in peers[0]:
        compared = (ours, exact, [results[name] for results in peers])
        stacked = ({key: torch.stack([each[key] for each in results]) for key in results[0]} for results in compared)
        of_dtype = (comparable(cases[0].kind, dtype, results) for results in stacked)
        assert_all_accurate(*of_dtype, note=f" (beside {name})")


def result(
    module: torch.nn.Module,
    input: Tensor,
    states: tuple[Tensor, ...],
    in_form: Callable[[Tensor], Any] = lambda input: input,
) -> dict[str, Tensor]:
    """Return all outputs of a layer or cell, and the gradients of input, states and parameters."""
    input = input.detach().requires_grad_()
    states = tuple(state.detach().requires_grad_() for state in states)
    outputs = flatten(module(in_form(input), hx_of(states)))
    inputs = {"input": input, **{f"hx{i}": state for i, state in enumerate(states)}, **dict(module.named_parameters())}
    results = {**{f"out{i}": out.detach() for i, out in enumerate(outputs)}, **differentiate(outputs, inputs)}
    return {name: tensor.cpu() for name, tensor in results.items()}


def flatten(outputs: Any) -> list[Tensor]:
    """Return the tensors in the results of a layer or cell; for a PackedSequence, its data."""
    if isinstance(outputs, PackedSequence):
        return [outputs.data]
    return [outputs] if isinstance(outputs, Tensor) else [tensor for out in outputs for tensor in flatten(out)]


def shapes_of_layers(kind: str) -> list[Case]:
    """Return layers with all options, and inputs of all forms."""
    cases = [
        Case(kind),
        Case(kind, time=1),
        Case(kind, batch=0),
        Case(kind, batch=1, hidden_size=1, input_size=1),
        Case(kind, bias=False),
        Case(kind, batch_first=True),
        Case(kind, unbatched=True),
        Case(kind, unbatched=True, batch_first=True),
        Case(kind, num_layers=3),
        Case(kind, bidirectional=True, bias=False),
        Case(kind, num_layers=2, bidirectional=True, batch_first=True),
        Case(kind, lengths=(5, 3, 1)),
        Case(kind, lengths=(2, 5, 4)),
        Case(kind, lengths=(1, 1, 1)),
        Case(kind, lengths=(2, 5, 4), batch_first=True, bidirectional=True),
        Case(kind, lengths=(2, 2, 5, 4, 5, 1, 3, 3), batch=8, num_layers=2, bidirectional=True, hidden_size=17),
        Case(kind, time=300, batch=2, hidden_size=3),
        Case(kind, time=2, batch=70, input_size=200, hidden_size=9),
        Case(kind, time=1, batch=13, input_size=9, hidden_size=40, bidirectional=True),
        Case(kind, time=1, batch=130, input_size=33, hidden_size=70),
    ]
    if structure_of(kind).may_project:
        cases += [
            Case(kind, proj_size=3),
            Case(kind, time=1, proj_size=2, bidirectional=True),
            Case(kind, time=1, batch=60, proj_size=17, hidden_size=33),
            Case(kind, proj_size=1, bias=False, bidirectional=True),
            Case(kind, proj_size=5, num_layers=2, bidirectional=True, lengths=(2, 5, 4)),
            Case(kind, proj_size=17, hidden_size=33, batch=7, num_layers=2),
        ]
    return cases


def tails(kind: str) -> list[Case]:
    """Return layers of many sizes, most of which fill no vector or tile: as batch, as hidden size and as both."""
    mixed = [Case(kind, 3, batch, 5, hidden) for batch, hidden in zip(SIZES, SIZES[5:] + SIZES[:5], strict=True)]
    equal = [Case(kind, 2, size, size, size) for size in SIZES]
    single = [Case(kind, 1, 1, size, size) for size in SIZES]
    return mixed + equal + single


def layer_inputs(
    case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Tensor, Any, list[Tensor]]:
    """Return input, states and weights in the form of the operators; ``batch_sizes`` belongs to packed input."""
    input, states = case.tensors(dtype, device)
    if case.lengths is not None:
        input = pack_padded_sequence(input, torch.tensor(case.lengths)).data
    return input, states, [weight.detach() for weight in case.module(torch.nn, dtype, device).parameters()]


def batch_sizes(case: Case) -> Tensor | None:
    """Return how many sequences of ``case`` have each step; None for padded input."""
    if case.lengths is None:
        return None
    return torch.tensor([sum(length > t for length in case.lengths) for t in range(max(case.lengths))])


def cell_case(
    package: Any,
    kind: str,
    batch: int | None,
    input_size: int,
    hidden_size: int,
    dtype: torch.dtype,
    bias: bool = True,
    device: str = "cpu",
) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
    """Return a cell of ``package``, an input and states, with values as in Case; unbatched if batch is None."""
    torch.manual_seed(0)
    module = class_of(package, kind, cell=True)(input_size, hidden_size, bias).bfloat16().to(device, dtype)
    shape = () if batch is None else (batch,)
    sizes = (input_size, hidden_size, hidden_size)
    input, h, c = (torch.randn(*shape, size).bfloat16().to(device, dtype) for size in sizes)
    return module, input, (h, c)[: structure_of(kind).states]
