"""The benchmark of drawing on a GPU, with a CPU in its place."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.gpu_sampling import WITH_TF32, default_cases, main, print_run, run_on_gpu
from benchmarks.problem import FUSED
from benchmarks.results import Run
from benchmarks.sampling import CACHE, NAIVE, SamplingCase
from fused_rnn.models import AutoregressiveImageModel

TINY = [SamplingCase(name, 4, 2, size=4, levels=5) for name in ("8 layers 7x7", "5 residual blocks")]


def run_tiny(path: Path) -> tuple[Run, str]:
    run, console = Run({}), Console(file=io.StringIO(), width=200)
    run_on_gpu(TINY, run, path, console, device="cpu", seconds=0.05, wait=lambda: None)
    print_run(console, run)
    return run, console.file.getvalue()  # type: ignore[attr-defined]


def test_all_ways_are_timed(tmp_path: Path) -> None:
    run, text = run_tiny(tmp_path / "results.json")
    assert not run.failures
    assert [result.group for result in Run.load(tmp_path / "results.json").results] == [case.group for case in TINY]
    for result in run.results:
        assert result.times.keys() == {FUSED, NAIVE, WITH_TF32, CACHE}
        ratio = result.times[NAIVE].median / result.fused.median
        assert result.ratios()[NAIVE] == pytest.approx(ratio)
        assert f"{ratio:.1f}x" in text


def test_a_wrong_step_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = AutoregressiveImageModel.step
    monkeypatch.setattr(AutoregressiveImageModel, "step", lambda *args: step(*args) + 0.01)
    run, text = run_tiny(tmp_path / "results.json")
    assert not run.results
    assert len(run.failures) == len(TINY)
    assert f"{FUSED} differs by" in text


def test_no_case_begins_after_the_limit(tmp_path: Path) -> None:
    run, console = Run({}), Console(file=io.StringIO())
    run_on_gpu(TINY, run, tmp_path / "results.json", console, limit=-1.0, device="cpu")
    assert run.failures == [f"stopped after -1 s, before {TINY[0].group}, {TINY[0].label}"]


def test_the_cases_have_the_batches_of_the_target() -> None:
    assert {case.batch for case in default_cases()} == {1, 16, 256}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().out
