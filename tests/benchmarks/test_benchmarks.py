"""The parts of the benchmarks: cases, checks, results and charts. No test here depends on measured times."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from spoiling import spoil
from torch import nn
from torch.nn.functional import conv2d

from benchmarks import timing
from benchmarks.__main__ import RESULTS, main
from benchmarks.cases import (
    LAYERS,
    SECTIONS,
    Case,
    ConvolutionCase,
    Form,
    Kind,
    Mode,
    RecurrentCase,
    full_grid,
    quick_grid,
)
from benchmarks.chart import draw_chart, draw_scaling
from benchmarks.convolution_peers import convolution_problem
from benchmarks.problem import PEER_TOLERANCE, CheckError, Outputs, Peer, Problem, check
from benchmarks.recurrent_peers import recurrent_problem
from benchmarks.report import markdown_table, print_run
from benchmarks.results import Result, Run, TrainingResult, summarise
from benchmarks.scaling import Sweep, default_sweeps
from benchmarks.timing import MIN_ROUNDS, Measurement, time_peers

MODES: tuple[Mode, ...] = ("forward", "training")


def make_problem(case: Case) -> Problem:
    return recurrent_problem(case) if isinstance(case, RecurrentCase) else convolution_problem(case)


SMALL_CASES: list[Case] = [
    RecurrentCase("LSTM", 3, 2, 4, 5),
    RecurrentCase("GRU", 3, 2, 4, 5, num_layers=2, bidirectional=True),
    RecurrentCase("LSTM", 4, 3, 5, 6, num_layers=2, bidirectional=True, form="packed"),
    RecurrentCase("GRU", 2, 3, 4, 5, form="cell"),
    RecurrentCase("RNN", 3, 2, 4, 5, num_layers=2, bidirectional=True),
    RecurrentCase("RNN", 4, 3, 5, 6, form="packed"),
    RecurrentCase("RNN_RELU", 3, 2, 4, 5, bidirectional=True),
    RecurrentCase("RNN_RELU", 2, 3, 4, 5, form="cell"),
    ConvolutionCase(2, 3, 6, 8, 3, "A", data_channels=3),
]


@pytest.mark.parametrize("grid", [quick_grid(), full_grid()], ids=["quick", "full"])
def test_grid_is_well_formed(grid: list[Case]) -> None:
    assert {case.section for case in grid} == set(SECTIONS)
    assert len({(case.group, case.label) for case in grid}) == len(grid)
    for case in grid:
        assert case.operations("forward") > 0
        assert case.operations("training") == 3 * case.operations("forward")


def test_grids_have_every_kind() -> None:
    for grid in (quick_grid(), full_grid()):
        groups = {case.group for case in grid}
        assert groups >= {*LAYERS, "RNN one step", "RNNCell loop", "packed RNN", "RNN bfloat16", "RNN float16"}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", ["sequence", "packed"])
def test_recurrent_operations_are_those_of_every_product(kind: Kind, form: Form) -> None:
    case = RecurrentCase(kind, 5, 3, 7, 11, num_layers=2, bidirectional=True, form=form)
    layer = getattr(nn, LAYERS[kind].name)(7, 11, num_layers=2, bidirectional=True)
    per_row = sum(2 * weight.numel() for name, weight in layer.named_parameters() if name.startswith("weight"))
    assert case.operations("forward") == sum(case.lengths) * per_row
    assert case.lengths == ((5, 5, 5) if form == "sequence" else (5, 3, 1))


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize(("in_channels", "out_channels", "colours"), [(2, 3, 1), (3, 6, 3), (7, 5, 3)])
def test_convolution_operations_are_those_of_active_taps_inside_the_image(
    mask_type: str, in_channels: int, out_channels: int, colours: int
) -> None:
    case = ConvolutionCase(2, in_channels, out_channels, 6, 5, "A" if mask_type == "A" else "B", colours)
    problem = convolution_problem(case)
    # With ones as input and gradient, the weight gradient counts the pixels for which a tap is inside the image.
    image, weight = torch.ones(2, in_channels, 6, 6), torch.zeros(out_channels, in_channels, 5, 5, requires_grad=True)
    (counts,) = torch.autograd.grad(conv2d(image, weight, padding=2).sum(), weight)
    names = problem.names("training")
    gradient = problem.oracle.run_once("training")[names.index("gradient of weight")]
    assert case.operations("forward") == 2 * counts[gradient != 0].sum().item()


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: f"{case.group} {case.label}")
@pytest.mark.parametrize("mode", MODES)
def test_every_peer_agrees_with_the_reference(case: Case, mode: Mode) -> None:
    check(case, make_problem(case), mode)


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: f"{case.group} {case.label}")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_check_finds_one_wrong_value_in_any_tensor_of_any_peer(case: Case, mode: Mode, error: float) -> None:
    problem = make_problem(case)
    for index, peer in enumerate(problem.peers):
        if mode not in peer.modes:
            continue
        for tensor, name in enumerate(problem.names(mode)):
            peers = [*problem.peers[:index], spoil(peer, tensor, error), *problem.peers[index + 1 :]]
            with pytest.raises(CheckError, match=f"{name} of {peer.name}"):
                check(case, replace(problem, peers=peers), mode)


def test_check_finds_a_wrong_shape() -> None:
    case = SMALL_CASES[0]
    problem = make_problem(case)
    wrong = Peer("wrong", lambda _: lambda: tuple(tensor[..., :1] for tensor in problem.oracle.prepare("forward")()))
    with pytest.raises(CheckError, match="output of wrong is inf away"):
        check(case, replace(problem, peers=[*problem.peers, wrong]), "forward")


def test_peers_take_turns_and_the_disturbing_one_runs_alone() -> None:
    calls: list[str] = []

    def peer(name: str, *, alone: bool = False, modes: tuple[Mode, ...] = MODES) -> Peer:
        def compute() -> Outputs:
            calls.append(name)
            return ()

        return Peer(name, lambda _: compute, modes, alone)

    times = time_peers([peer("a"), peer("b"), peer("c", alone=True), peer("d", modes=())], "forward", 0)
    assert set(times) == {"a", "b", "c"}
    assert times["a"].rounds == times["b"].rounds == 2 * MIN_ROUNDS
    first, last = calls.index("c"), len(calls) - calls[::-1].index("c")
    assert set(calls[first:last]) == {"c"}
    assert set(calls[:first]) == set(calls[last:]) == {"a", "b"}


def test_caches_are_emptied_before_each_timed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def compute() -> Outputs:
        calls.append("call")
        return ()

    monkeypatch.setattr(timing, "empty_caches", lambda: calls.append("empty"))
    times = time_peers([Peer("a", lambda _: compute)], "forward", 0, cold=True)
    assert times["a"].rounds == MIN_ROUNDS
    assert calls == ["call", *["empty", "call"] * MIN_ROUNDS]


def test_measurement_is_median_and_distance_of_quartiles() -> None:
    assert Measurement.of([4.0, 1.0, 2.0, 3.0, 100.0]) == Measurement(3.0, 2.0, 5)


@pytest.fixture
def run() -> Run:
    """A run in which ONNX Runtime wins one of two cases."""

    def times(**medians: float) -> dict[str, Measurement]:
        return {name.replace("_", " "): Measurement(median, 0.01, 5) for name, median in medians.items()}

    machine: dict[str, str | int] = dict.fromkeys(("processor", "instruction_set", "torch", "onnxruntime"), "text")
    machine |= {"cores": 2, "threads": 2, "fused_rnn": "0.1", "commit": "abc", "date": "2026-01-01"}
    return Run(
        machine=machine,
        peak_gflops={"product": 100.0},
        read_gigabytes={"1048576": 10.0},
        results=[
            Result("LSTM", "(1, 2, 3, 4)", "forward", 10, 0.5, times(fused=1.0, torch=4.0, ONNX_Runtime=0.5)),
            Result("LSTM", "(1, 2, 3, 4)", "training", 30, 0.5, times(fused=1.0, torch=2.0)),
            Result("LSTM", "(5, 6, 7, 8)", "forward", 10, 0.5, times(fused=2.0, torch=2.0, ONNX_Runtime=4.0)),
        ],
        training=[
            TrainingResult(
                example="language_model",
                name="words",
                unit="tokens",
                units_per_step=100,
                steps_per_epoch=5,
                steps=30,
                compared_steps=20,
                tolerance=1e-4,
                difference=1e-6,
                step_times=times(fused=1.0, torch=2.0),
                losses={"fused": 1.5, "torch": 1.5},
                scores={"fused": {"perplexity": 4.5}, "torch": {"perplexity": 4.5}},
            )
        ],
    )


def test_summary_has_geometric_mean_and_worst_case(run: Run) -> None:
    summaries = summarise(run.groups()["LSTM", "forward"])
    assert summaries["torch"].mean == pytest.approx(2)
    assert (summaries["torch"].worst, summaries["torch"].worst_label) == (1, "(5, 6, 7, 8)")
    assert (summaries["torch"].lost, summaries["ONNX Runtime"].lost) == (0, 1)


def test_results_survive_the_file_and_fill_a_table(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "results" / "machine.json"
    run.save(path)
    loaded = Run.load(path)
    assert loaded == run
    table = markdown_table(loaded)
    assert "|  | torch | ONNX Runtime |" in table
    assert "| LSTM forward | 2.00x (1.00x) | 1.00x (**0.50x**) |" in table
    assert "| LSTM forward + backward | 2.00x |  |" in table
    assert "| language_model: words | 10 s | 5 s | 2.00x | 50 tokens | 100 tokens |" in table


def test_table_command_prints_the_table(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.save(tmp_path / "machine.json")
    assert main(["table", str(tmp_path / "machine.json")]) == 0
    assert capsys.readouterr().out == markdown_table(run)


def test_failed_check_ends_the_run_with_code_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PEER_TOLERANCE, "float32", 0.0)
    monkeypatch.setattr("benchmarks.__main__.quick_grid", lambda: SMALL_CASES)
    assert main(["--quick", "--only", "lstm", "--output", str(tmp_path)]) == 1
    assert "check failed: LSTM (3, 2, 4, 5), forward" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_checks_alone_write_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.__main__.quick_grid", lambda: SMALL_CASES)
    assert main(["--quick", "--check-only", "--only", "lstm", "gru", "--output", str(tmp_path)]) == 0
    assert not list(tmp_path.iterdir())


def test_train_command_writes_both_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path), "train", "time_series", "--seconds", "0"]) == 0
    assert "time_series: sunspots" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("train-time_series.json")
    (result,) = Run.load(path).training
    assert result.title == "time_series: sunspots"
    assert set(result.step_times) == set(result.losses) == set(result.scores) == {"fused", "torch"}
    assert "| time_series: sunspots |" in markdown_table(Run.load(path))


def test_train_command_knows_its_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "nonsense"])
    assert "EXAMPLE must be one of language_model" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*-threads*.json")), ids=lambda path: path.stem)
def test_results_of_earlier_versions_can_still_be_read(path: Path, tmp_path: Path) -> None:
    run = Run.load(path)
    print_run(Console(file=StringIO()), run)
    assert markdown_table(run).count("|") > 0 or run.memory
    if path.stem.endswith("-scaling"):
        for sweep in default_sweeps():
            draw_scaling(replace(sweep, values=_values(run, sweep)), run, tmp_path / "chart.png")
    elif run.results:
        draw_chart(run, tmp_path / "chart.png")


def _values(run: Run, sweep: Sweep) -> tuple[int, ...]:
    """The values of a sweep for which the run has results."""
    return tuple(int(result.label) for result in run.groups()[sweep.group("LSTM"), "forward"])


def test_chart_is_written(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "results" / "chart.png"
    draw_chart(run, path)
    assert path.read_bytes().startswith(b"\x89PNG")
