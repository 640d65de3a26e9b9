"""The benchmark of the paths on a GPU, tested without one."""

import csv
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import gpu_paths
from benchmarks.cases import GpuCase, gpu_case
from benchmarks.gpu import CUDNN, Gpu
from benchmarks.gpu_paths import COLUMNS, WAYS, Way, cases, run_paths, ways_of
from fused_rnn import _C


def test_each_plan_is_timed_once() -> None:
    plans = {"grid": "a", "cluster": "a", "warpgroup": "b"}
    ways = list(ways_of(gpu_case("LSTM", "bfloat16", 3, 2, 8), lambda way, _: plans.get(way.name, "c")))
    assert [(way.label, forward) for way, forward, _ in ways] == [("any", "c"), ("grid", "a"), ("warpgroup 1", "b")]


def test_large_batches_come_first() -> None:
    every = cases()
    assert (every[0].batch, every[0].hidden_size, every[0].dtype) == (128, 1024, "bfloat16")
    assert len(set(every)) == len(every)


def test_file_has_every_way_and_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restricted: list[tuple[Any, ...]] = []
    monkeypatch.setattr(_C, "set_plan_override", lambda *args, **kwargs: restricted.append(args), raising=False)
    gpu = Gpu("cpu", lambda: None, lambda function: function)
    chosen = [gpu_case("LSTM", "bfloat16", 3, 2, 8), gpu_case("GRU", "tf32", 3, 2, 8)]

    def plan(case: GpuCase, way: Way, backward: bool) -> str:
        return f"{case.kind} {way.label} {backward}"

    path = tmp_path / "paths.csv"
    run_paths(path, chosen, 60, Console(file=StringIO()), gpu, plan)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    assert len(rows) == len(chosen) * 2 * (len(WAYS) + 1)
    assert {row["path"] for row in rows} == {CUDNN, *(way.name for way in WAYS)}
    assert all(float(row["us_per_step"]) > 0 for row in rows)
    assert restricted[-1] == ("any",)
    assert {args[0] for args in restricted} == {way.name for way in WAYS}


def test_stops_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "paths.csv"
    run_paths(path, [gpu_case("LSTM", "bfloat16", 3, 2, 8)], -1, Console(file=StringIO()))
    assert path.read_text().strip() == ",".join(COLUMNS)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_paths.torch.cuda, "is_available", lambda: False)
    assert gpu_paths.main([]) == 2
