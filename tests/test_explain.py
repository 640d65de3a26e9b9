"""What fused_rnn.explain tells without a GPU; tests/test_cuda.py has the rest."""

import pytest
import torch

import fused_rnn


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_on_a_cpu(kind: str) -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    text = fused_rnn.explain(getattr(fused_rnn, kind)(4, 8), torch.randn(5, 3, 4))
    assert text == f"{kind} on cpu, torch.float32: kernels for {capability}"


def test_other_modules() -> None:
    with pytest.raises(TypeError, match=r"module must be a fused_rnn\.LSTM or fused_rnn\.GRU, got LSTM"):
        fused_rnn.explain(torch.nn.LSTM(4, 8), torch.randn(5, 3, 4))  # type: ignore[arg-type]
