"""The peers of layers whose states are replaced where episodes end, as in a rollout of a recurrent policy.

They are what is done without such a layer: a loop in Python over the steps of torch.nn's cell, which sets the states to
zero before each step that has a reset, and torch.nn's layer on the episodes, split and padded to the longest. On a GPU
torchrl's Triton kernels are another one, where they are installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import RESETS, Case, Mode, RecurrentCase
from benchmarks.problem import FUSED, Peer, Problem, torch_peer
from benchmarks.recurrent_peers import make_input, make_layers
from examples.layers import loop_over_cell, split_and_pad

LOOP, PADDED, WITHOUT = "loop over torch.nn's cell", "torch.nn, split and padded", "fused, without resets"
TRITON = "torchrl's Triton kernels"
SIZES = ((128, 64, 64, 128), (64, 256, 128, 256))


def reset_grid() -> list[Case]:
    """Two sizes of LSTM and GRU, and resets from none to one in ten steps."""
    return [RecurrentCase(kind, *size, resets=each) for kind in ("LSTM", "GRU") for size in SIZES for each in RESETS]


def resets_of(case: RecurrentCase) -> Tensor:
    """The resets of a case, `[time, batch]`, at random."""
    assert case.resets is not None
    return torch.rand(case.time, case.batch, generator=torch.Generator().manual_seed(0)) < case.resets


def reset_problem(case: RecurrentCase, mode: Mode = "training", device: str = "cpu") -> Problem:
    """Make the data and peers of a case with resets, the same in every run.

    Args:
        case: The case, a single layer of one direction.
        mode: Forward calls are made in evaluation mode, in which cuDNN saves nothing for backward.
        device: The device.

    Returns:
        The problem, in which every peer has the weights of torch.nn's layer, and whose oracle is the loop in float64.
    """
    torch.manual_seed(0)
    theirs, ours = (layer.train(mode == "training") for layer in make_layers(case, device))
    leaf, _ = make_input(case, device)
    grad_output = torch.randn(*leaf.shape[:-1], case.hidden_size, dtype=leaf.dtype, device=device)
    resets, weights = resets_of(case).to(device), list(theirs.parameters())
    cell, double = _cell(case, theirs), _cell(case, theirs).double()
    leaf_double = leaf.detach().double().requires_grad_()

    def peer(name: str, compute: Callable[[], Tensor], module: nn.Module) -> Peer:
        return torch_peer(name, lambda: (compute(),), [leaf, *module.parameters()], grad_output)

    peers = [
        peer(FUSED, lambda: ours(leaf, resets=resets)[0], ours),
        replace(peer(WITHOUT, lambda: ours(leaf)[0], ours), compared=not resets.any().item()),
        peer(LOOP, partial(loop_over_cell, cell, leaf, resets), cell),
        peer(PADDED, partial(split_and_pad, theirs, leaf, resets), theirs),
    ]
    if case.kind in ("LSTM", "GRU") and triton_runs_on(device):
        peers.append(_triton_peer(case, leaf, weights, resets, grad_output))
    oracle = torch_peer(
        "loop in float64",
        lambda: (loop_over_cell(double, leaf_double, resets),),
        [leaf_double, *double.parameters()],
        grad_output.double(),
    )
    names = ("input", *(name for name, _ in theirs.named_parameters()))
    return Problem(peers, oracle, yardstick=PADDED, forward_names=("output",), gradient_names=names)


def _cell(case: RecurrentCase, layer: nn.Module) -> nn.Module:
    """torch.nn's cell with copies of the weights of a layer."""
    weight = next(layer.parameters())
    make: Any = getattr(nn, f"{case.layer.name}Cell")
    cell = make(case.input_size, case.hidden_size, **case.layer.options, dtype=weight.dtype, device=weight.device)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()})
    return cell


def triton_runs_on(device: str) -> bool:
    """Whether the kernels of torchrl are installed and run on a device."""
    return torch.device(device).type == "cuda" and all(map(find_spec, ("torchrl", "triton")))


def _triton_peer(
    case: RecurrentCase, leaf: Tensor, weights: Sequence[Tensor], resets: Tensor, grad_output: Tensor
) -> Peer:
    """Torchrl's kernels, which take float32 tensors with the batch first, and round the factors of their products."""
    from torchrl.modules.tensordict_module import _rnn_triton

    run = getattr(_rnn_triton, f"{case.kind.lower()}_triton")
    compute_dtype, precision = getattr(torch, case.dtype), "tf32" if getattr(case, "tf32", False) else "ieee"
    leaves = [tensor.detach().float().requires_grad_() for tensor in (leaf.transpose(0, 1).contiguous(), *weights)]
    zeros = (leaf.new_zeros(case.batch, case.time, case.hidden_size, dtype=torch.float32),) * case.layer.states
    is_init = resets.T.contiguous()

    def compute() -> tuple[Tensor, ...]:
        input, *own = leaves
        output = run(input, *zeros, *own, is_init, compute_dtype=compute_dtype, input_precision=precision)[0]
        return (output.transpose(0, 1),)

    gradient = grad_output.float()
    peer = torch_peer(TRITON, compute, leaves, gradient)

    def prepare(mode: Mode) -> Callable[[], tuple[Tensor, ...]]:
        function = peer.prepare(mode)
        if mode == "forward":
            return function

        def train() -> tuple[Tensor, ...]:
            output, grad_input, *others = function()
            return (output, grad_input.transpose(0, 1), *others)

        return train

    return replace(peer, prepare=prepare)
