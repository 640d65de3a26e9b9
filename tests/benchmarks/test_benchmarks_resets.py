"""The benchmark of resets checks that all ways to compute agree before it times them."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fused_rnn
from benchmarks import __main__
from benchmarks.__main__ import main
from benchmarks.cases import Kind, RecurrentCase
from benchmarks.problem import FUSED
from benchmarks.resets import LOOP, PADDED, WITHOUT
from benchmarks.results import Run

KINDS: tuple[Kind, ...] = ("LSTM", "GRU")
TINY = [RecurrentCase(kind, 7, 3, 4, 5, resets=fraction) for kind in KINDS for fraction in (0.0, 0.3)]


@pytest.fixture(autouse=True)
def _tiny_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__, "reset_grid", lambda: TINY)


def test_resets_command_times_all_peers(tmp_path: Path) -> None:
    assert main(["resets", "--seconds", "0.1", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*-resets.json")
    results = Run.load(path).results
    assert [(result.group, result.label, result.mode) for result in results] == [
        (case.group, case.label, mode) for case in TINY for mode in ("forward", "training")
    ]
    for result in results:
        assert result.times.keys() == {FUSED, LOOP, PADDED, WITHOUT}
    assert path.with_suffix(".png").stat().st_size > 1000


def test_a_reset_one_step_late_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    forward = fused_rnn.GRU.forward

    def late(self: fused_rnn.GRU, input: torch.Tensor, resets: torch.Tensor | None = None) -> Any:
        return forward(self, input, resets=None if resets is None else resets.roll(1, 0))

    monkeypatch.setattr(fused_rnn.GRU, "forward", late)
    assert main(["--check-only", "resets"]) == 1
    assert f"of {FUSED} is" in capsys.readouterr().out
