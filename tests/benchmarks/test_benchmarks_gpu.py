"""The GPU benchmark, tested without a GPU: its grids, checks and tables, and the file that it writes."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from io import StringIO
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from spoiling import spoil
from torch import Tensor

from benchmarks import gpu, machine, resets
from benchmarks.cases import PUBLISHED_SHAPE, GpuCase, Kind, Mode, Precision, gpu_case, gpu_grid, gpu_product_grid
from benchmarks.gpu import Gpu, _grid, _parser, gpu_problem, run_on_gpu
from benchmarks.problem import FUSED, CheckError, Problem
from benchmarks.report import print_gpu_run
from benchmarks.resets import LOOP, PADDED, TRITON, WITHOUT
from benchmarks.results import Result, Run
from benchmarks.timing import Function, Measurement
from fused_rnn import reference

RNN_KINDS: tuple[Kind, ...] = ("RNN", "RNN_RELU")
CASES = [
    gpu_case("LSTM", "tf32", 3, 2, 4),
    gpu_case("GRU", "float32", 4, 3, 5, num_layers=2, bidirectional=True, form="packed"),
]
RNN_CASES = [gpu_case(kind, "tf32", 3, 2, 4, bidirectional=True) for kind in RNN_KINDS]
MACHINE: dict[str, str | int] = {"processor": "NVIDIA H200", "threads": 1, "torch": "2", "date": "2026-01-01"}


@pytest.fixture(autouse=True)
def _float32_as_before() -> Iterator[None]:
    settings: Any = (torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    yield
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


def on_cpu(capture: bool = True) -> Gpu:
    """A CPU in place of the GPU, whose graphs are the calls themselves."""

    def same(function: Function) -> Function | None:
        return function if capture else None

    return Gpu("cpu", lambda: None, same)


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def test_default_grid_has_every_size_precision_and_form() -> None:
    grid = gpu_grid()
    assert len({(case.group, case.label) for case in grid}) == len(grid) < 120
    assert {case.precision for case in grid} == {"bfloat16", "float16", "tf32", "float32"}
    assert {case.hidden_size for case in grid} >= {128, 256, 384, 512, 768, 1024, 1536, 2048}
    assert {case.batch for case in grid} == {1, 16, 32, 64, 128, 256}
    assert {case.time for case in grid} == {128, 256, 512, 1024}
    for form in ("both directions", "3 layers", "packed"):
        assert {case.kind for case in grid if form in case.group} == {"LSTM", "GRU", "RNN"}
    assert "RNN_RELU" in {case.kind for case in grid}
    with_resets = {(case.kind, case.precision, case.resets) for case in grid if case.resets is not None}
    assert with_resets == {*product(("LSTM", "GRU"), ("bfloat16", "tf32"), (0.0, 0.001, 0.01, 0.1))}
    assert (grid[0].time, grid[0].batch, grid[0].hidden_size) == PUBLISHED_SHAPE


def test_full_grid_and_chosen_sizes() -> None:
    assert len(gpu_product_grid()) == 4 * 4 * 4 * 5 * 8
    assert _grid(_parser().parse_args(["--full"])) == gpu_product_grid()
    assert _grid(_parser().parse_args([])) == gpu_grid()
    words = ["--kind", "GRU", "--precision", "tf32", "--time", "5", "6", "--batch", "2", "--hidden", "8"]
    assert _grid(_parser().parse_args(words)) == [gpu_case("GRU", "tf32", time, 2, 8) for time in (5, 6)]


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("case", [*CASES, *RNN_CASES], ids=lambda case: case.group)
def test_problem_computes_the_same_in_every_way(case: GpuCase, mode: Mode) -> None:
    problem = gpu_problem(case, mode, "cpu")
    assert [peer.name for peer in problem.peers] == ["fused", "cuDNN", "torch.nn"]
    settings: Any = torch.backends.cudnn.rnn
    assert settings.fp32_precision == ("tf32" if case.tf32 else "ieee")
    gpu.check(case, problem, mode, rounding=False)
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("fraction", [0.0, 0.3])
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_problem_with_resets(kind: Kind, precision: Precision, fraction: float, mode: Mode) -> None:
    case = gpu_case(kind, precision, 9, 4, 5, resets=fraction)
    problem = gpu_problem(case, mode, "cpu")
    assert [peer.name for peer in problem.peers] == [FUSED, WITHOUT, LOOP, PADDED]
    gpu.check(replace(case, dtype="float16") if case.tf32 else case, problem, mode, rounding=False)
    wrong = replace(problem, peers=[replace(problem.peers[1], compared=True), problem.peers[0], problem.peers[3]])
    if fraction:
        with pytest.raises(CheckError, match=f"of {WITHOUT} is"):
            gpu.check(case, wrong, mode, rounding=False)


def stand_in(cell: str, input: Tensor, *rest: Any, compute_dtype: torch.dtype, input_precision: str) -> Any:
    """Compute in float64 what a kernel of torchrl does, whose batch comes first."""
    count = 2 if cell == "lstm" else 1
    states, weights, is_init = rest[:count], rest[count:-1], rest[-1]
    assert input.dtype == torch.float32
    assert (compute_dtype, input_precision) in ((torch.float32, "tf32"), (torch.bfloat16, "ieee"))
    initial = [state[:, 0].double()[None] for state in states]
    run: Any = {"lstm": reference.lstm, "gru": reference.gru}[cell]
    doubles = [weight.double() for weight in weights]
    output, *_ = run(input.transpose(0, 1).double(), *initial, doubles, resets=is_init.T)
    return output.transpose(0, 1).float(), None


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_kernels_of_torchrl_get_their_form(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, precision: Precision, mode: Mode
) -> None:
    """The arguments and results of the peer are compared with the others, with stand-ins for its kernels."""
    name = "torchrl.modules.tensordict_module._rnn_triton"
    kernels = ModuleType(name)
    for cell in ("lstm", "gru"):
        setattr(kernels, f"{cell}_triton", partial(stand_in, cell))
    parts = name.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(parts[end - 1]))
    sys.modules["torchrl.modules.tensordict_module"]._rnn_triton = kernels  # type: ignore[attr-defined]
    monkeypatch.setattr(resets, "triton_runs_on", lambda device: True)
    case = gpu_case(kind, precision, 9, 4, 5, resets=0.3)
    problem = gpu_problem(case, mode, "cpu")
    assert problem.peers[-1].name == TRITON
    gpu.check(replace(case, dtype="float16") if case.tf32 else case, problem, mode, rounding=False)


def test_run_times_graphs_and_calls_and_writes_after_each_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, written, save = tmp_path / "folder" / "gpu.json", [], Run.save

    def saved(run: Run, path: Path) -> None:
        save(run, path)
        written.append(len(Run.load(path).results))

    monkeypatch.setattr(Run, "save", saved)
    monkeypatch.setattr(machine, "ask_nvidia_smi", lambda fields: "1980 MHz, 3201 MHz")
    run = Run(dict(MACHINE))
    run_on_gpu(run, CASES, path, 1e9, quiet(), on_cpu())
    assert written == [4, 8]
    assert run.machine["cases"] == "2 of 2"
    assert run.machine["clocks under load"] == "1980 MHz, 3201 MHz"
    assert Run.load(path) == run
    assert not run.failures
    assert [(result.group, result.mode) for result in run.results[:4]] == [
        (f"LSTM tf32, {way}", mode) for mode in ("forward", "training") for way in ("graphs", "calls")
    ]
    assert all(list(result.times) == ["fused", "cuDNN", "torch.nn"] for result in run.results)


def test_what_cannot_be_captured_is_only_called(tmp_path: Path) -> None:
    run = Run(dict(MACHINE))
    run_on_gpu(run, CASES[:1], tmp_path / "gpu.json", 1e9, quiet(), on_cpu(capture=False))
    assert {result.group for result in run.results} == {"LSTM tf32, calls"}


def test_a_case_that_fails_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(case: GpuCase, mode: Mode, device: str) -> Problem:
        if case == CASES[0]:
            raise torch.OutOfMemoryError("too large")
        return gpu_problem(case, mode, device)

    monkeypatch.setattr(gpu, "gpu_problem", fails)
    run = Run(dict(MACHINE))
    run_on_gpu(run, CASES, tmp_path / "gpu.json", 1e9, quiet(), on_cpu())
    assert run.failures == [
        "LSTM tf32 (3, 2, 4), forward: too large",
        "LSTM tf32 (3, 2, 4), forward + backward: too large",
    ]
    assert len(run.results) == 4


def test_after_the_limit_no_case_is_begun(tmp_path: Path) -> None:
    run, console = Run(dict(MACHINE)), quiet()
    run_on_gpu(run, CASES, tmp_path / "gpu.json", -1, console, on_cpu())
    assert not run.results
    assert run.machine["cases"] == "0 of 2"
    assert "0 of 2 cases are done" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("tensor", [0, -1])
def test_a_wrong_result_or_gradient_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: int) -> None:
    def wrong(case: GpuCase, mode: Mode, device: str) -> Problem:
        problem = gpu_problem(case, mode, device)
        return replace(problem, peers=[spoil(problem.peers[0], tensor, 0.1), *problem.peers[1:]])

    monkeypatch.setattr(gpu, "gpu_problem", wrong)
    run = Run(dict(MACHINE))
    run_on_gpu(run, CASES, tmp_path / "gpu.json", 1e9, quiet(), on_cpu())
    assert not run.results
    assert len(run.failures) == 4
    assert "of fused is" in Run.load(tmp_path / "gpu.json").failures[0]


def test_table_has_microseconds_a_step_and_marks_figures_from_elsewhere() -> None:
    times = {name: Measurement(median, 1e-5, 5) for name, median in (("fused", 2e-3), ("cuDNN", 3e-3))}
    label = f"({', '.join(map(str, PUBLISHED_SHAPE))})"
    result = Result("LSTM float16, graphs", label, "forward", 1, 0.0, times)
    other = replace(result, label="(100, 16, 768)", times={"fused": Measurement(1e-3, 0.0, 5)})
    console = quiet()
    print_gpu_run(console, Run(dict(MACHINE), results=[result, other], failures=["it is wrong"]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1.95 us ±0%" in text
    assert "1.50x  2.93 us ±0%" in text
    assert "10.00 us" in text
    rows = [line for line in text.splitlines() if "elsewhere" in line or "here, NVIDIA H200" in line]
    assert [("elsewhere" in row) for row in rows] == [False] * 2 + [True] * 5
    assert "FlashRNN fused" in text
    assert "not timed: it is wrong" in text


def test_without_nvidia_smi_clocks_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert machine.ask_nvidia_smi("driver_version") == machine.NOT_KNOWN


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().out
