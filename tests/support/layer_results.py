"""The results of single layers, by an operator or its reference: with lengths, and with the states of every step."""

import torch
from cases import Case, Layer, batch_sizes, flatten, layer_inputs
from comparing import differentiate
from torch import Tensor

import fused_rnn

# Unsorted with equal, full and empty sequences; all full; all empty; at most one step; single sequences; an empty
# batch.
LENGTHS = [(2, 0, 5, 4, 5, 1), (5, 5, 5), (0, 0), (1, 0, 1), (3,), (0,), ()]
CASES_WITH_STATES = [
    Case("LSTM"),
    Case("LSTM", bidirectional=True, bias=False),
    Case("LSTM", proj_size=3, bidirectional=True),
    Case("LSTM", bidirectional=True, lengths=(5, 4, 1)),
    Case("LSTM", time=2, batch=17, hidden_size=33),
    Case("LSTM", batch=0),
]


def lengths_of(case: Case) -> Tensor:
    return torch.tensor(next(lengths for lengths in LENGTHS if len(lengths) == case.batch), dtype=torch.int64)


def result_with_lengths(layer: Layer, case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """Return the outputs of an operator or its reference, and all gradients."""
    input, states, weights = layer_inputs(case, dtype, device)
    inputs = {"input": input, **{f"state{i}": state for i, state in enumerate(states)}}
    inputs |= {f"weight{i}": weight for i, weight in enumerate(weights)}
    for tensor in inputs.values():
        tensor.requires_grad_()
    outputs = layer(input, states, weights, lengths=lengths_of(case).to(device))
    return {**{f"out{i}": out for i, out in enumerate(outputs)}, **differentiate(outputs, inputs)}


def check_padding_is_never_read(kind: str, graph: bool, device: str) -> None:
    """Assert that NaN in the padding of input and output gradient reaches no result, also with create_graph=True."""
    case = Case(kind, batch=4, num_layers=2, bidirectional=True)
    lengths = [2, 0, 5, 3]
    padding = (torch.arange(5)[:, None] >= torch.tensor(lengths)).to(device)
    module = case.module(fused_rnn, torch.float64, device)

    def result(filling: float) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        input = case.tensors(torch.float64, device)[0].masked_fill(padding[..., None], filling).requires_grad_()
        outputs = flatten(module(input, lengths=lengths))
        grads = [torch.ones_like(out) for out in outputs]
        grads[0] = grads[0].masked_fill(padding[..., None], filling)
        return outputs, torch.autograd.grad(outputs, [input, *module.parameters()], grads, create_graph=graph)

    outputs, gradients = result(float("nan"))
    clean_outputs, clean_gradients = result(7.0)
    assert all(map(torch.equal, outputs, clean_outputs))
    assert all(map(torch.equal, gradients, clean_gradients))
    assert not outputs[0][padding].any()
    assert not gradients[0][padding].any()


def result_with_states(
    layer: Layer,
    case: Case,
    dtype: torch.dtype,
    lengths: Tensor | None,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Return the outputs of an operator or its reference, with c after every step, and all gradients."""
    input, (h0, c0), weights = layer_inputs(case, dtype, device)
    inputs = {"input": input, "h0": h0, "c0": c0, **{f"weights[{i}]": weight for i, weight in enumerate(weights)}}
    for tensor in inputs.values():
        tensor.requires_grad_()
    lengths = None if lengths is None else lengths.to(device)
    outputs = layer(input, (h0, c0), weights, batch_sizes(case), lengths, return_states=True)
    names = ("output", "h_n", "c_n", "cells")
    return {**dict(zip(names, outputs, strict=True)), **differentiate(outputs, inputs)}
