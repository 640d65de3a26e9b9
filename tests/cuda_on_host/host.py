"""A recurrent layer run by the CUDA kernels, on the CPU."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from cuda_on_host.layer import Layer, Result
from cuda_on_host.structs import Backward, Forward, Kernels, Plan, Steps


class OnHost:
    """A layer in the memory that the kernels work on, which is full of NaN at first."""

    def __init__(self, kernels: Kernels, layer: Layer) -> None:
        self.kernels, self.layer = kernels, layer
        self.input, self.states, self.weights, self.grads = layer.tensors()
        self.per_direction = len(self.weights) // layer.directions
        sizes = torch.tensor(layer.batch_sizes or [0])
        self.integers = {
            "lengths": None if layer.lengths is None else torch.tensor(layer.lengths),
            "batch_sizes": sizes if layer.batch_sizes else None,
            "first_rows": sizes.cumsum(0) - sizes if layer.batch_sizes else None,
        }
        size = layer.hidden_size
        self.initial = dict(zip(("h0", "c0"), self.states, strict=False))
        self.output = self.empty(layer.rows, layer.directions * size)
        self.final = {f"{name[0]}_n": torch.full_like(state, float("nan")) for name, state in self.initial.items()}
        self.cells = {"cells": self.per_row(size)} if layer.has_cell_state else {}
        self.gates = self.input_part()
        self.grad_initial = {
            f"grad_{name}": torch.full_like(state, float("nan")) for name, state in self.initial.items()
        }
        self.grad_gates = self.per_row(layer.sums * size)

    def weight(self, direction: int, index: int) -> Tensor:
        """Return weight_ih, weight_hh, bias_ih or bias_hh."""
        return self.weights[direction * self.per_direction + index]

    def empty(self, *shape: int, state: bool = False) -> Tensor:
        """Return memory for values of the layer's dtype, or for states, which are not rounded to it."""
        dtype = torch.float32 if state and self.layer.dtype != torch.float64 else self.layer.dtype
        return torch.full(shape, float("nan"), dtype=dtype)

    def per_row(self, size: int) -> Tensor:
        """Return the same, ``[directions, rows, size]``."""
        return self.empty(self.layer.directions, self.layer.rows, size)

    def input_part(self) -> Tensor:
        """Return the gates before forward: the input's part of the sums, NaN where there is no step."""
        gates = self.per_row(self.layer.sums * self.layer.hidden_size)
        running = torch.cat([rows for rows, _ in self.layer.steps()])
        for direction in range(self.layer.directions):
            part = self.input[running].double() @ self.weight(direction, 0).double().T
            gates[direction, running, : part.shape[1]] = part.to(gates.dtype)
        return gates

    def params(self, struct: type[ctypes.Structure], **fields: Any) -> ctypes.Structure:
        """Return the params of a kernel; fields may be tensors, which the params keep alive."""
        steps = Steps(time=self.layer.time, batch=self.layer.batch, rows=self.layer.rows)
        for name, tensor in self.integers.items():
            setattr(steps, name, None if tensor is None else tensor.data_ptr())
        params = struct(steps=steps, hidden_size=self.layer.hidden_size, directions=self.layer.directions)
        for name, value in fields.items():
            if isinstance(value, Tensor):
                assert value.is_contiguous(), name
                value = value.data_ptr()
            setattr(params, name, value)
        params.tensors = fields
        return params

    def weight_pointers(self, index: int) -> Any:
        """Return the same weight of each direction."""
        if index >= self.per_direction:
            return (ctypes.c_void_p * 2)()
        pointers = [self.weight(direction, index).data_ptr() for direction in range(self.layer.directions)]
        return (ctypes.c_void_p * 2)(*pointers)

    def forward(self, plan: Plan, save_for_backward: bool = True) -> None:
        """Run the persistent kernel forward."""
        params = self.params(
            Forward, plan=plan, full_precision=not self.layer.allow_tf32, weight_hh=self.weight_pointers(1),
            bias_ih=self.weight_pointers(2), bias_hh=self.weight_pointers(3), output=self.output, gates=self.gates,
            save_for_backward=save_for_backward, **self.initial, **self.final, **self.cells,
        )  # fmt: skip
        self.kernels.run("persistent_forward", self.layer.cell, self.layer.dtype, params)

    def backward(self, plan: Plan) -> None:
        """Run the persistent kernel backward, after :meth:`forward`."""
        params = self.params(
            Backward, plan=plan, full_precision=not self.layer.allow_tf32, weight_hh=self.weight_pointers(1),
            output=self.output, gates=self.gates, grad_gates=self.grad_gates,
            **self.initial, **self.cells, **self.output_gradients(), **self.grad_initial,
        )  # fmt: skip
        self.kernels.run("persistent_backward", self.layer.cell, self.layer.dtype, params)

    def output_gradients(self) -> Result:
        """Return the gradients of the outputs, as the kernels take them."""
        grads = {f"grad_{name}": tensor for name, tensor in self.grads.items() if name not in self.layer.unused}
        if "grad_cells" in grads:
            cells = grads["grad_cells"].view(self.layer.rows, self.layer.directions, -1)
            grads["grad_cells"] = cells.transpose(0, 1).contiguous()
        return grads

    def result(self) -> Result:
        """Return outputs and gradients, those of input and weights by products with what the kernels left."""
        cells = {name: tensor.transpose(0, 1).reshape(self.layer.rows, -1) for name, tensor in self.cells.items()}
        initial = {name.replace("_", " ", 1): tensor for name, tensor in self.grad_initial.items()}
        return {"output": self.output, **self.final, **cells, **initial, **self.product_gradients()}

    def product_gradients(self) -> Result:
        """Return the gradients of input and weights."""
        layer, size = self.layer, self.layer.hidden_size
        previous = layer.previous_hidden(self.output.double(), self.states[0].double())
        result: Result = {"grad input": torch.zeros(layer.rows, layer.input_size, dtype=torch.float64)}
        for direction, grads in enumerate(self.grad_gates.double()):
            of_sums = grads.split(size, dim=1)
            of_input = grads[:, : layer.gates * size]
            of_hidden = torch.cat([of_sums[sum_] for sum_ in layer.structure["hidden_sums"]], dim=1)
            result["grad input"] += of_input @ self.weight(direction, 0).double()
            result[f"grad weight_ih{direction}"] = of_input.T @ self.input.double()
            result[f"grad weight_hh{direction}"] = of_hidden.T @ previous[direction]
            if layer.bias:
                result[f"grad bias_ih{direction}"] = of_input.sum(0)
                result[f"grad bias_hh{direction}"] = of_hidden.sum(0)
        return {name: gradient.to(layer.dtype) for name, gradient in result.items()}
