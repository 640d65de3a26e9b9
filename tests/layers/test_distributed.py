"""Two processes train with the same losses as one: data parallel, fully sharded, and with tensor-parallel layers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparing import assert_accurate
from distributed_training import STEPS, WAYS, Model, train
from torch import Tensor

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The losses of two processes for each kind of training, all in one start, since starting takes longest."""
    file = tmp_path_factory.mktemp("distributed") / "losses.pt"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run(
        [*launch, str(ROOT / "tests" / "support" / "distributed_training.py"), str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return torch.load(file)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_of_one_process(way: str, losses: dict[str, Tensor]) -> None:
    expected = torch.stack(train(Model().double(), slice(None)))
    assert len(expected.unique()) == STEPS + 1
    assert_accurate(losses[way], expected)
