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

import fused_rnn

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What two processes computed: the losses of each kind of training, and weights of a masked convolution.

    All is done in one start, since starting takes longest.
    """
    file = tmp_path_factory.mktemp("distributed") / "results.pt"
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
def test_losses_are_those_of_one_process(way: str, results: dict[str, Tensor]) -> None:
    expected = torch.stack(train(Model().double(), slice(None)))
    assert len(expected.unique()) == STEPS + 1
    assert_accurate(results[way], expected)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
@pytest.mark.parametrize("name", ["initialised", "loaded", "assigned"])
def test_masked_entries_of_a_sharded_weight_are_zero(name: str, results: dict[str, Tensor]) -> None:
    mask = fused_rnn.MaskedConv2d(3, 6, 3, "A", 3).mask
    assert torch.equal(results[name] != 0, mask)
    assert name == "initialised" or torch.equal(results[name], mask.float())
