"""The sampling benchmark checks that the ways to draw agree before it times them, and writes a result for each case."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import __main__, sampling
from benchmarks.__main__ import main
from benchmarks.problem import FUSED
from benchmarks.results import Run
from benchmarks.sampling import CACHE, NAIVE, SamplingCase
from fused_rnn import MaskedConv2d
from fused_rnn.models import AutoregressiveImageModel

TINY = [SamplingCase(name, 4, 2, size=4, levels=5) for name in ("8 layers 7x7", "5 residual blocks")]


@pytest.fixture(autouse=True)
def _tiny_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__, "sampling_cases", lambda: TINY)


def test_sample_command_times_all_three(tmp_path: Path) -> None:
    assert main(["sample", "--seconds", "0.1", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*-sample.json")
    results = Run.load(path).results
    assert [result.group for result in results] == [case.group for case in TINY]
    for result in results:
        assert result.times.keys() == {FUSED, NAIVE, CACHE}
        assert min(result.ratios().values()) > 0
    assert path.with_suffix(".png").stat().st_size > 1000


def test_a_wrong_step_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    step = AutoregressiveImageModel.step
    monkeypatch.setattr(AutoregressiveImageModel, "step", lambda *args: step(*args) + 0.01)
    assert main(["--check-only", "sample"]) == 1
    assert f"{FUSED} differs by" in capsys.readouterr().out


def test_operations_count_taps_inside_the_image() -> None:
    case = SamplingCase("8 layers 7x7", 3, batch=2, size=4, levels=5)
    model = AutoregressiveImageModel(nn.Sequential(MaskedConv2d(1, 3, 3, "A")), case.make_model().distribution)
    images = torch.ones(1, 1, 4, 4)
    pairs = nn.functional.conv2d(images, model.network[0].mask[:1].float(), padding=1).sum()
    assert sampling.operations_of(case, model) == 2 * 2 * 3 * int(pairs)
