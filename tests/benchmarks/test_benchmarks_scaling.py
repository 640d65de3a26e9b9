"""The benchmarks' sweeps: their points, their results and the charts."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from spoiling import spoil

from benchmarks import scaling
from benchmarks.__main__ import main
from benchmarks.cases import KINDS, RecurrentCase
from benchmarks.machine import Peak
from benchmarks.problem import CheckError, Problem
from benchmarks.recurrent_peers import recurrent_problem
from benchmarks.results import Run
from benchmarks.scaling import Sweep, default_sweeps, run_scaling

SMALL_SWEEPS = [
    Sweep("time", (1, 4, 8), batch=2, hidden=8),
    Sweep("batch", (1, 2, 4), time=3, hidden=8),
    Sweep("hidden", (4, 8, 16), time=3, batch=2),
    Sweep("threads", (1, 2), time=3, batch=2, hidden=8),
]


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make timing fast: turns are single calls, and the limit is one operation per nanosecond and thread.

    Returns the number of threads of each measurement of the limit.
    """
    threads: list[int] = []

    def measure_peak() -> Peak:
        threads.append(torch.get_num_threads())
        return Peak({"product": float(torch.get_num_threads())})

    monkeypatch.setattr(scaling, "measure_peak", measure_peak)
    monkeypatch.setattr("benchmarks.timing.TURN_SECONDS", 0.0)
    monkeypatch.setattr("benchmarks.machine._measure_reading", lambda size: 1e9)
    return threads


def test_default_sweeps_double_each_size() -> None:
    values = {sweep.quantity: sweep.values for sweep in default_sweeps()}
    assert values["time"] == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    assert values["batch"] == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert values["hidden"] == (32, 64, 128, 256, 512, 1024)
    assert values["threads"][0] == 1


@pytest.mark.parametrize(("cores", "values"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6))])
def test_threads_go_up_to_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, values: tuple[int, ...]) -> None:
    monkeypatch.setattr(scaling, "_cores", lambda: cores)
    assert default_sweeps()[-1].values == values


def test_only_the_swept_size_changes() -> None:
    for sweep, expected in zip(SMALL_SWEEPS, [(4, 2, 8, 8), (3, 4, 8, 8), (3, 2, 4, 4), (3, 2, 8, 8)], strict=True):
        assert sweep.case("GRU", 4) == RecurrentCase("GRU", *expected)
        assert sweep.threads(4) == (4 if sweep.quantity == "threads" else torch.get_num_threads())
    assert SMALL_SWEEPS[1].group("GRU") == "GRU by batch size (time 3, hidden 8)"


def test_every_point_has_its_peers_and_a_limit_that_grows_with_the_size(peaks: list[int]) -> None:
    run = run_scaling(SMALL_SWEEPS, Console(quiet=True), 1e-9)
    peers = ["fused", "torch.nn"] + ([] if run.not_installed else ["ONNX Runtime"])
    groups = run.groups()
    assert set(groups) == {
        (sweep.group(kind), mode) for sweep in SMALL_SWEEPS for kind in KINDS for mode in ("forward", "training")
    }
    for sweep in SMALL_SWEEPS:
        for kind in KINDS:
            forward, training = (groups[sweep.group(kind), mode] for mode in ("forward", "training"))
            for results in (forward, training):
                assert [result.label for result in results] == [str(value) for value in sweep.values]
                limits = [result.limit_seconds for result in results]
                assert limits == sorted(set(limits), reverse=sweep.quantity == "threads")
            assert all(list(result.times) == peers for result in forward)
            assert all(list(result.times) == peers[:2] for result in training)
            assert training[0].limit_seconds == pytest.approx(3 * forward[0].limit_seconds)


def test_limits_are_measured_once_for_each_number_of_threads_which_is_restored(peaks: list[int]) -> None:
    run = run_scaling(SMALL_SWEEPS[2:], Console(quiet=True), 1e-9)
    assert peaks == [1, 2]
    assert torch.get_num_threads() == 1
    assert run.peak_gflops == {"product": 1.0}
    wide = [result for result in run.results if "by threads" in result.group and result.label == "2"]
    assert wide[0].limit_seconds == pytest.approx(0.5e-9 * wide[0].operations)


def test_a_wrong_point_stops_the_run_and_threads_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def wrong_with_two_threads(case: RecurrentCase) -> Problem:
        problem = recurrent_problem(case)
        seen.append(torch.get_num_threads())
        peers = [spoil(problem.peers[0], 0, 1e-3), *problem.peers[1:]] if seen[-1] == 2 else problem.peers
        return Problem(peers, problem.oracle, problem.yardstick, problem.forward_names, problem.gradient_names)

    monkeypatch.setattr(scaling, "recurrent_problem", wrong_with_two_threads)
    with pytest.raises(CheckError, match="output of fused"):
        run_scaling(SMALL_SWEEPS, Console(quiet=True), 0)
    assert seen[-2:] == [1, 2]
    assert torch.get_num_threads() == 1


def test_scaling_command_writes_one_file_and_a_chart_for_each_quantity(
    peaks: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.__main__.default_sweeps", lambda: SMALL_SWEEPS[2:])
    assert main(["scaling", "--output", str(tmp_path), "--seconds", "1e-9"]) == 0
    (path,) = tmp_path.glob("*-scaling.json")
    charts = {chart.name.rsplit("-", 1)[1]: chart for chart in tmp_path.glob("*.png")}
    assert set(charts) == {f"{sweep.quantity}.png" for sweep in SMALL_SWEEPS[2:]}
    assert all(chart.read_bytes().startswith(b"\x89PNG") for chart in charts.values())
    assert len(Run.load(path).results) == sum(len(sweep.values) for sweep in SMALL_SWEEPS[2:]) * len(KINDS) * 2
    assert "LSTM by hidden size (time 3, batch 2), forward + backward" in capsys.readouterr().out


def test_scaling_checks_alone_write_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.__main__.default_sweeps", lambda: SMALL_SWEEPS)
    assert main(["--check-only", "--output", str(tmp_path), "scaling"]) == 0
    assert not list(tmp_path.iterdir())
