"""What a layer with resets must compute: every segment of every sequence by itself, by torch.nn's layers."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from cases import Case, class_of, flatten, hx_of, structure_of
from comparing import differentiate
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn

RESET_STATES = ("zero", "shared", "of every step")
"""What replaces the states at a reset."""


def random_resets(case: Case, fraction: float = 0.3, seed: int = 3) -> Tensor:
    """Return resets for a padded input of ``case``, ``[time, batch]``, of which each is set with this probability."""
    return torch.rand(case.time, case.batch, generator=torch.Generator().manual_seed(seed)) < fraction


def segments(resets: Sequence[bool]) -> list[tuple[int, int]]:
    """Return the first step of each segment of a sequence, and the first step after it."""
    borders = [0, *(t for t, reset in enumerate(resets) if reset and t > 0), len(resets)]
    return list(pairwise(borders)) if len(resets) else []


def one_layer(module: nn.RNNBase, case: Case, layer: int, direction: int) -> nn.RNNBase:
    """Return torch.nn's layer of one direction that shares its weights with ``module``."""
    weights = module.all_weights[layer * (2 if case.bidirectional else 1) + direction]
    options = {"proj_size": case.proj_size} if case.proj_size else {}
    single = class_of(nn, case.kind)(weights[0].size(1), case.hidden_size, bias=case.bias, **options)
    for name, weight in zip(single._flat_weights_names, weights, strict=True):
        delattr(single, name)
        setattr(single, name, weight)
    single._flat_weights = list(weights)
    return single


def run_segments(
    module: nn.RNNBase,
    case: Case,
    input: Tensor,
    states: Sequence[Tensor],
    resets: Tensor,
    reset_states: Sequence[Tensor] = (),
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """Return the output and the final states of a padded batch, each segment of each sequence computed by itself.

    Args:
        module: torch.nn's layer.
        case: its description.
        input: ``[time, batch, input_size]``.
        states: the initial states, each ``[layers * directions, batch, size]``.
        resets: ``[time, batch]``.
        reset_states: what replaces the states, shaped like them or ``[time, ...]`` of that; empty for zero.
        lengths: the steps of each sequence; None for all of them.
    """
    directions, count = 2 if case.bidirectional else 1, structure_of(case.kind).states
    finals: list[list[list[Tensor]]] = [[] for _ in range(count)]  # of each state, layer and direction, and sequence
    for layer in range(case.num_layers):
        outputs = []
        for direction in range(directions):
            row = layer * directions + direction
            single = one_layer(module, case, layer, direction)
            sequences, ends = [], []
            for b in range(case.batch):
                steps = case.time if lengths is None else lengths[b]
                initial = [state[row, b] for state in states]
                output, final = _sequence(
                    single, input[:steps, b], initial, resets[:steps, b].tolist(),
                    [given[..., row, b, :] for given in reset_states], direction,
                )  # fmt: skip
                sequences.append(torch.cat([output, output.new_zeros(case.time - steps, output.size(1))]))
                ends.append(final)
            outputs.append(torch.stack(sequences, 1))
            for state, values in zip(finals, zip(*ends, strict=True), strict=True):
                state.append(list(values))
        input = torch.cat(outputs, -1)
    return input, *(torch.stack([torch.stack(values) for values in state]) for state in finals)


def _sequence(
    single: Any, input: Tensor, initial: list[Tensor], resets: list[bool], reset_states: list[Tensor], direction: int
) -> tuple[Tensor, list[Tensor]]:
    """Run one sequence, ``[time, input_size]``, in one direction; return its output and its final states."""
    outputs, final = [input.new_zeros(0, initial[0].size(-1))], initial
    parts = segments(resets)
    for begin, end in reversed(parts) if direction else parts:
        # The border across which this direction would come, if there is a reset.
        border = end if direction else begin
        state = final
        if border < len(resets) and resets[border]:
            state = [given[border] if given.dim() == 2 else given for given in reset_states]
            state = state or [torch.zeros_like(values) for values in initial]
        part = input[begin:end]
        hx = tuple(values[None] for values in state)
        output, new = single(part.flip(0) if direction else part, hx if len(hx) > 1 else hx[0])
        outputs.append(output.flip(0) if direction else output)
        final = [values[0] for values in (new if isinstance(new, tuple) else (new,))]
    return torch.cat(outputs[::-1] if direction else outputs), final


def reset_states_of(case: Case, which: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Return what replaces the states of ``case`` at a reset; nothing for zero."""
    if which == "zero":
        return ()
    generator = torch.Generator().manual_seed(4)
    leading = (case.time,) if which == "of every step" else ()
    shapes = [(*leading, *state.shape) for state in case.tensors(torch.float64)[1]]
    return tuple(torch.randn(shape, generator=generator).bfloat16().to(dtype) for shape in shapes)


def results(
    case: Case, module: nn.RNNBase, run: Any, reset_states: Sequence[Tensor], dtype: torch.dtype, device: str = "cpu"
) -> dict[str, Tensor]:
    """Return the outputs of ``run(input, states, reset_states)``, and the gradients of all that it depends on."""
    input, states = case.tensors(dtype, device)
    inputs = {"input": input, **{f"hx{i}": state for i, state in enumerate(states)}}
    inputs |= {f"reset{i}": state.to(device, dtype) for i, state in enumerate(reset_states)}
    for tensor in inputs.values():
        tensor.requires_grad_()
    others = [inputs[f"reset{i}"] for i in range(len(reset_states))]
    outputs = flatten(run(input, states, others))
    found = {f"out{i}": out.detach() for i, out in enumerate(outputs)}
    found |= differentiate(outputs, {**inputs, **dict(module.named_parameters())})
    return {name: tensor.cpu() for name, tensor in found.items()}


def ours(
    case: Case, resets: Tensor, reset_states: Sequence[Tensor], dtype: torch.dtype, device: str, **options: Any
) -> dict[str, Tensor]:
    """Return the results of our layer."""
    module = case.module(fused_rnn, dtype, device)

    def run(input: Tensor, states: Sequence[Tensor], others: Sequence[Tensor]) -> Any:
        return module(input, hx_of(states), resets=resets, reset_states=hx_of(others) if others else None, **options)

    return results(case, module, run, reset_states, dtype, device)


def theirs(
    case: Case, resets: Tensor, reset_states: Sequence[Tensor], dtype: torch.dtype = torch.float64, **options: Any
) -> dict[str, Tensor]:
    """Return the results of torch.nn's layer, run for each segment."""
    module = case.module(nn, dtype)

    def run(input: Tensor, states: Sequence[Tensor], others: Sequence[Tensor]) -> Any:
        return run_segments(module, case, input, states, resets, others, **options)

    return results(case, module, run, reset_states, dtype)


def packed_results(case: Case, which: str, package: Any, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """Return the results of a layer of ``package`` for the packed sequences of ``case``; by segments for torch.nn."""
    assert case.lengths is not None
    lengths = case.lengths
    module, resets = case.module(package, dtype, device), random_resets(case, 0.4)

    def packed(tensor: Tensor) -> PackedSequence:
        return pack_padded_sequence(tensor, torch.tensor(lengths), enforce_sorted=False)

    def run(input: Tensor, states: Sequence[Tensor], others: Sequence[Tensor]) -> Any:
        if package is nn:
            output, *finals = run_segments(module, case, input, states, resets, others, lengths)
            return packed(output), *finals
        replacing = hx_of(others) if others else None
        return module(packed(input), hx_of(states), resets=packed(resets).data, reset_states=replacing)

    return results(case, module, run, reset_states_of(case, which), dtype, device)


def check_nothing_passes_a_reset(case: Case, device: str) -> None:
    """Assert that what follows a reset keeps its bits whatever comes before, even NaN, and sends no gradient back."""
    module, (input, states) = case.module(fused_rnn, torch.float32, device), case.tensors(torch.float32, device)
    resets = torch.zeros(case.time, case.batch, dtype=torch.bool, device=device)
    resets[5, 3] = True
    before, behind = slice(None, 5), slice(5, None)
    for direction, (past, kept) in enumerate([(before, behind), (behind, before)]):
        own = slice(direction * case.hidden_size, (direction + 1) * case.hidden_size)
        changed = input.clone()
        changed[past, 3] = torch.nan
        results = []
        for given in (input, changed):
            leaf = given.detach().requires_grad_()
            output = module(leaf, hx_of(states), resets=resets)[0][kept, 3, own]
            results.append((output, *torch.autograd.grad(output.sum(), leaf)))
        (output, gradient), (other_output, other_gradient) = results
        assert output.isfinite().all()
        assert torch.equal(output, other_output)
        # The gradient of a NaN is not told from NaN, even if nothing reaches it.
        assert not gradient[past, 3].any()
        assert gradient[kept, 3].any()
        assert torch.equal(gradient[kept], other_gradient[kept])
