"""A recurrent layer and its input, and what the reference makes of it."""

from dataclasses import dataclass
from functools import cache

import torch
from cases import CELLS
from torch import Tensor

from cuda_on_host.half import half_cell
from cuda_on_host.tf32 import tf32_cell
from fused_rnn import _C, reference
from fused_rnn.reference.sequence import run_directions, time_steps

Result = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer and its input; hidden sizes are such that a row takes a multiple of 16 bytes."""

    kind: str
    """A key of cases.CELLS."""
    dtype: torch.dtype = torch.float32
    time: int = 3
    batch: int = 3
    hidden_size: int = 16
    directions: int = 1
    bias: bool = True
    allow_tf32: bool = False
    """Whether float32 products are rounded to tf32."""
    lengths: tuple[int, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None
    unused: tuple[str, ...] = ()
    """The outputs without a gradient."""
    nan: bool = False
    """Whether the first sequence has NaN of several patterns in h0, and the second one in c0."""

    input_size = 5

    def __str__(self) -> str:
        changed = {k: v for k, v in vars(self).items() if k not in ("kind", "dtype") and v != getattr(Layer, k)}
        name = str(self.dtype).removeprefix("torch.")
        return "-".join([self.kind, name, *(f"{k}={v}" for k, v in changed.items())]).replace(" ", "")

    @property
    def cell(self) -> str:
        """Return the name of the cell."""
        return CELLS[self.kind]

    @property
    def structure(self) -> "_C.CellInfo":
        """Return the structure of the cell, as csrc/cells/cells.h describes it."""
        return _C.cells()[self.cell]

    @property
    def has_cell_state(self) -> bool:
        """Return whether there is a state besides h."""
        return self.structure["states"] > 1

    @property
    def is_half(self) -> bool:
        return self.dtype.itemsize == 2

    @property
    def gates(self) -> int:
        return self.structure["gates"]

    @property
    def sums(self) -> int:
        return self.structure["sums"]

    @property
    def rows(self) -> int:
        return sum(self.batch_sizes) if self.batch_sizes else self.time * self.batch

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("output", "h_n", "c_n", "cells") if self.has_cell_state else ("output", "h_n")

    def sizes(self) -> Tensor | None:
        """Return the batch sizes of packed sequences."""
        return None if self.batch_sizes is None else torch.tensor(self.batch_sizes)

    def steps(self) -> list[tuple[Tensor, Tensor]]:
        """Return the rows and the sequences of each step."""
        input = torch.empty(self.rows, 1) if self.batch_sizes else torch.empty(self.time, self.batch, 1)
        return time_steps(input, self.sizes(), self.lengths)

    @cache  # noqa: B019  (layers live as long as the tests do)
    def tensors(self) -> tuple[Tensor, list[Tensor], list[Tensor], Result]:
        """Return input rows, states, weights and the gradients of the outputs, with values that bfloat16 can hold."""
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(shape, generator=generator)).bfloat16().to(self.dtype)

        size, gates, scale = self.hidden_size, self.gates * self.hidden_size, self.hidden_size**-0.5
        shapes = {"output": (self.rows, self.directions * size), "h_n": (self.directions, self.batch, size)}
        shapes |= {"c_n": shapes["h_n"], "cells": shapes["output"]}
        states = [random(*shapes["h_n"]) for _ in range(self.structure["states"])]
        for sequence, state in enumerate(states if self.nan else []):
            ones = torch.arange(size) % 4 < 2  # in half precision a word of them
            state[:, sequence, ~ones] = float("nan")
            integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[state.element_size()]
            state.view(integers)[:, sequence, ones] = -1
        weights: list[Tensor] = []
        for _ in range(self.directions):
            weights += [random(gates, self.input_size, scale=scale), random(gates, size, scale=scale)]
            weights += [random(gates), random(gates)] if self.bias else []
        return (
            random(self.rows, self.input_size),
            states,
            weights,
            {name: random(*shapes[name]) for name in self.outputs},
        )

    def names(self) -> list[str]:
        """Return the names of the tensors that have a gradient: input, states, weights."""
        weights = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if self.bias else [])]
        per_direction = [f"{name}{direction}" for direction in range(self.directions) for name in weights]
        return ["input", "h0", *(["c0"] if self.has_cell_state else []), *per_direction]

    def previous_hidden(self, output: Tensor, h0: Tensor) -> Tensor:
        """Return, ``[directions, rows, hidden_size]``, the hidden values before each row's step; zero for no step."""
        previous = h0.new_zeros(self.directions, self.rows, self.hidden_size)
        for direction, values in enumerate(output.split(self.hidden_size, dim=1)):
            state = h0[direction].clone()
            for rows, sequences in self.steps()[:: -1 if direction else 1]:
                previous[direction, rows] = state[sequences]
                state[sequences] = values[rows]
        return previous


@cache
def by_reference(layer: Layer, dtype: torch.dtype, rounded: bool = False) -> Result:
    """Return outputs and gradients by the reference, computed in ``dtype``; perhaps with roundings: see peer_of."""
    input, states, weights, grads = layer.tensors()
    inputs = [tensor.to(dtype).requires_grad_() for tensor in (input, *states, *weights)]
    rows = inputs[0] if layer.batch_sizes else inputs[0].view(layer.time, layer.batch, -1)
    hx, weights = tuple(inputs[1 : 1 + len(states)]), inputs[1 + len(states) :]
    sizes, lengths = layer.sizes(), layer.lengths
    if rounded:
        cell = half_cell(layer.cell, layer.dtype) if layer.is_half else tf32_cell(layer.cell)
        every, final = run_directions(cell, rows, hx, weights, sizes, lengths)
    else:
        every, final = reference.recurrent(layer.cell, rows, hx, weights, sizes, lengths)
    results = [every[0], *final, *every[1:]]
    named = {name: out.reshape(grads[name].shape) for name, out in zip(layer.outputs, results, strict=True)}
    used = [name for name in named if name not in layer.unused]
    gradients = torch.autograd.grad(
        [named[name] for name in used], inputs, [grads[name].to(dtype) for name in used], materialize_grads=True
    )
    return {name: out.detach() for name, out in named.items()} | {
        f"grad {name}": gradient for name, gradient in zip(layer.names(), gradients, strict=True)
    }


def peer_of(layer: Layer) -> Result:
    """Return what the kernels may be twice as far from the truth as: only what they cannot do without is rounded.

    That is, in half precision, not the reference computed in it, which rounds after every operation; and in tf32 what
    the recurrence multiplies.
    """
    dtype = torch.float32 if layer.is_half else layer.dtype
    results = by_reference(layer, dtype, rounded=layer.is_half or layer.allow_tf32)
    return {name: values.to(layer.dtype) for name, values in results.items()}
