"""``return_states=True``: c after every step of an LSTM's last layer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import DTYPES, LAYERS, REFERENCES, Case, flatten, layer_inputs
from comparing import assert_accurate, assert_all_accurate
from layer_results import CASES_WITH_STATES, result_with_states
from on_gpu import float32_precision, require_path
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import fused_rnn
from fused_rnn import ops, reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES_WITH_STATES, ids=str)
def test_operator_equals_reference(case: Case, dtype: torch.dtype, device: str) -> None:
    check_accuracy(case, dtype, device)


def check_accuracy(case: Case, dtype: torch.dtype, device: str) -> None:
    exact = result_with_states(REFERENCES["LSTM"], case, torch.float64, None)
    peer = result_with_states(REFERENCES["LSTM"], case, dtype, None, device)
    assert_all_accurate(result_with_states(LAYERS["LSTM"], case, dtype, None, device), exact, peer)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("lengths", [None, (5, 4, 1)], ids=str)
def test_operator_on_every_path(lengths: tuple[int, ...] | None, dtype: torch.dtype, path: str) -> None:
    case = Case("LSTM", bidirectional=True, hidden_size=72, lengths=lengths)
    with float32_precision("ieee"):
        require_path(path, case.paths(dtype))
        check_accuracy(case, dtype, "cuda")


@pytest.mark.parametrize("proj_size", [0, 3])
def test_operator_equals_reference_with_lengths(proj_size: int, device: str) -> None:
    case, lengths = Case("LSTM", bidirectional=True, proj_size=proj_size), torch.tensor([3, 0, 5])
    ours = result_with_states(LAYERS["LSTM"], case, torch.float64, lengths, device)
    assert_all_accurate(ours, result_with_states(REFERENCES["LSTM"], case, torch.float64, lengths))
    assert not ours["cells"][3:, 0].any()


def test_reference_steps_the_states_that_it_returns() -> None:
    """The reference's c after each step is the final c of the part of the sequence up to it, in both directions."""
    input, (h0, c0), weights = layer_inputs(Case("LSTM", bidirectional=True))
    *_, cells = reference.lstm(input, h0, c0, weights, return_states=True)
    for t in range(5):
        _, _, forwards = reference.lstm(input[: t + 1], h0, c0, weights)
        _, _, backwards = reference.lstm(input[t:], h0, c0, weights)
        assert_accurate(cells[t], torch.cat((forwards[0], backwards[1]), dim=1))


def steps(module: torch.nn.Module, input: Tensor) -> Tensor:
    """Return the last layer's c after every step of ``input [time, batch, size]``, stepping torch.nn's LSTM."""
    states, cells = None, []
    for step in input:
        _, states = module(step[None], states)
        cells.append(states[1][-1])
    return torch.stack(cells)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("form", [{}, {"batch_first": True}, {"unbatched": True}, {"lengths": (2, 5, 4)}], ids=str)
def test_module_returns_cells_like_the_output(form: dict[str, Any], graph: bool, device: str) -> None:
    case = Case("LSTM", num_layers=2, **form)
    plain = Case("LSTM", num_layers=2)
    expected = steps(plain.module(torch.nn, torch.float64), plain.tensors(torch.float64)[0]).detach()
    module, (input, _) = case.module(fused_rnn, torch.float64, device), case.tensors(torch.float64, device)
    with torch.set_grad_enabled(graph):
        output, (h_n, c_n), cells = module(case.in_form(input), return_states=True)
        alone, (h_alone, c_alone) = module(case.in_form(input))
    assert flatten(cells)[0].requires_grad == graph
    assert torch.equal(h_n, h_alone)
    assert torch.equal(c_n, c_alone)
    assert torch.equal(flatten(output)[0], flatten(alone)[0])
    if case.lengths is not None:
        assert isinstance(cells, PackedSequence)
        fields: Any = zip(cells[1:], output[1:], strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in fields)
        padded, lengths = pad_packed_sequence(cells)
        for b, length in enumerate(lengths.tolist()):
            assert_accurate(padded[:length, b], expected[:length, b])
        return
    assert cells.shape == output.shape
    if case.unbatched:
        expected = expected[:, 0]
    assert_accurate(cells, expected.transpose(0, 1) if case.batch_first else expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtype_is_that_of_the_output(dtype: torch.dtype, device: str) -> None:
    module = Case("LSTM").module(fused_rnn, dtype, device)
    output, _, cells = module(Case("LSTM").tensors(dtype, device)[0], return_states=True)
    assert output.dtype == cells.dtype == dtype


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 0, 2])], ids=str)
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_gradcheck(check: Callable[..., bool], lengths: Tensor | None, device: str) -> None:
    case = Case("LSTM", 3, 3, 2, 3, bidirectional=True, proj_size=2)
    input, (h0, c0), weights = layer_inputs(case, device=device)
    ends = None if lengths is None else lengths.to(device)

    def cells(input: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor) -> Tensor:
        return LAYERS["LSTM"](input, (h0, c0), weights, None, ends, return_states=True)[3]

    leaves = [tensor.detach().requires_grad_() for tensor in (input, h0, c0, *weights)]
    assert check(cells, leaves, rtol=1e-6, atol=1e-8, fast_mode=check is torch.autograd.gradgradcheck)


def test_operator_adds_the_gradient_of_cells(device: str) -> None:
    """The gradient of c after the last step is the same as that of c_n."""
    input, (h0, c0), weights = layer_inputs(Case("LSTM"), device=device)
    output, (_, c_n), gates, (cells,) = ops.recurrent("lstm", input, (h0, c0), weights, None, None, True)
    last = torch.zeros_like(cells).view(5, 3, 6)
    last[-1] = 1.5

    def backward(grad_c_n: Tensor | None, grad_cells: Tensor | None) -> list[Tensor]:
        of_input, of_states, of_weights = ops.recurrent_backward(
            "lstm", None, [None, grad_c_n], [grad_cells], input, (h0, c0), weights, None, None, output, gates, [cells],
            True, True, True,
        )  # fmt: skip
        return [of_input, *of_states, *of_weights]

    through_cells = backward(None, last.view_as(cells))
    assert all(map(torch.equal, through_cells, backward(torch.full_like(c_n, 1.5), None)))
