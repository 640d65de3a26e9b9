"""The memory benchmark counts the memory that a call adds, for our layers and for torch.nn's."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__, memory
from benchmarks.__main__ import main
from benchmarks.cases import RecurrentCase
from benchmarks.memory import default_cases
from benchmarks.results import MemoryResult, Run

MEGABYTE = 2**20
ROOT = Path(__file__).parents[2]

PEAKS = """
import torch
from benchmarks.memory import peak_of

def one():
    return torch.ones(64 * 2**20 // 4)

one()  # everything that is allocated only once exists after this
for _ in range(2):  # the peak of an earlier call must not count
    print(peak_of(lambda: one() + one()), peak_of(one))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the highest peak of the whole process is known")
def test_peak_counts_what_is_returned_and_what_was_needed_meanwhile() -> None:
    """In a separate process, as in the command, since here garbage of other tests may be freed during the call."""
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True, cwd=ROOT)
    peaks = [int(word) / MEGABYTE for word in done.stdout.split()]
    assert peaks == pytest.approx([192, 64, 192, 64], abs=8)


def test_default_cases_are_of_every_kind() -> None:
    assert {case.kind for case in default_cases()} == {"LSTM", "GRU", "RNN"}


def test_processes_get_every_setting_of_the_allocator() -> None:
    """A setting inherited from the parent process would keep freed memory, which hides later allocations."""
    assert memory.ALLOCATOR_SETTINGS.keys() == __main__.ALLOCATOR_SETTINGS.keys()


def test_memory_command_has_both_peers_and_at_least_what_they_return(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = RecurrentCase("GRU", 100, 32, 128, 256)
    monkeypatch.setattr("benchmarks.__main__.default_cases", lambda: [case])
    assert main(["memory", "--output", str(tmp_path)]) == 0
    assert "MB" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-memory.json")
    forward, training = Run.load(path).memory
    output, input = 4 * case.time * case.batch * case.hidden_size, 4 * case.time * case.batch * case.input_size
    returned = {"forward": output, "training": output + input + 4 * case.weight_elements()}
    for result, mode in ((forward, "forward"), (training, "training")):
        assert (result.group, result.label, result.mode) == (case.group, case.label, mode)
        assert list(result.bytes_taken) == ["fused", "torch.nn"]
        assert all(0.9 * returned[mode] < taken < 100 * returned[mode] for taken in result.bytes_taken.values())
        assert result.ratios() == {"torch.nn": result.bytes_taken["torch.nn"] / result.bytes_taken["fused"]}


def test_memory_checks_nothing_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--check-only", "memory"])
    assert "--check-only" in capsys.readouterr().err


def test_older_files_have_no_memory(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"machine": {}, "results": [], "training": []}')
    assert Run.load(tmp_path / "old.json").memory == []
    run = Run({}, memory=[MemoryResult("LSTM", "(1, 2, 3, 4)", "forward", {"fused": 10, "torch.nn": 25})])
    run.save(tmp_path / "new.json")
    assert Run.load(tmp_path / "new.json") == run
