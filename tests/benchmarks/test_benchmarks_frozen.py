"""The benchmark of frozen weights checks that all peers agree before it times them, and writes results of all cases."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fused_rnn
from benchmarks import __main__
from benchmarks import frozen as benchmark
from benchmarks.__main__ import main
from benchmarks.cases import RecurrentCase
from benchmarks.frozen import ONNX_INT8, ORDINARY, FrozenCase
from benchmarks.problem import FUSED
from benchmarks.recurrent_peers import onnx_is_installed
from benchmarks.results import Run

TINY = [FrozenCase(RecurrentCase(kind, 1, 2, 8, 8)) for kind in ("LSTM", "GRU")]


@pytest.fixture(autouse=True)
def _tiny_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__, "frozen_cases", lambda: TINY)


@pytest.mark.filterwarnings("ignore")  # of torch.ao.quantization, which says that it will be removed
def test_frozen_command_times_all_peers(tmp_path: Path) -> None:
    assert main(["frozen", "--seconds", "0.1", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*-frozen.json")
    results = Run.load(path).results
    assert [result.group for result in results] == [case.group for case in TINY]
    for case, result in zip(TINY, results, strict=True):
        assert result.times.keys() == benchmark.peers(case).keys()
        assert {FUSED, ORDINARY} <= result.times.keys()
        assert (ONNX_INT8 in result.times) == (onnx_is_installed() and case.layer.kind == "LSTM")
        assert min(result.ratios().values()) > 0
    assert path.with_suffix(".png").stat().st_size > 1000


@pytest.mark.filterwarnings("ignore")
def test_a_wrong_peer_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    freeze = fused_rnn.freeze

    def wrong(layer: Any, dtype: Any) -> Any:
        with torch.no_grad():
            layer.bias_ih_l0.add_(0.5)
        return freeze(layer, dtype)

    monkeypatch.setattr(fused_rnn, "freeze", wrong)
    assert main(["--check-only", "frozen"]) == 1
    assert "differs by" in capsys.readouterr().out
