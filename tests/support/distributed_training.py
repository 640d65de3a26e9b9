"""Trains a small model in two processes with each kind of parallelism, for test_distributed.py.

torch.distributed.run starts the processes, with the file for the losses as the argument.
"""

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import fused_rnn

STEPS, BATCH = 3, 8
WAYS = ("data_parallel", "fully_sharded", "tensor_parallel")


class Model(nn.Module):
    """A causal convolution and recurrent layers between two linear ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(3, 4)
        self.convolution = fused_rnn.MaskedConv1d(4, 4, 2, "B", 2)
        self.lstm = fused_rnn.LSTM(4, 6, num_layers=2, bidirectional=True)
        self.gru = fused_rnn.GRU(12, 5)
        self.cell = fused_rnn.LSTMCell(5, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, input: Tensor) -> Tensor:
        past = self.convolution(self.embed(input).permute(1, 2, 0)).permute(2, 0, 1)
        output, _ = self.lstm(past)
        output, h_n = self.gru(output)
        return self.head(self.cell(output[-1] + h_n[0])[0])


def train(model: nn.Module, batch: slice) -> list[Tensor]:
    """Return the loss of each optimizer step on a part of the data, and of the final model."""
    generator = torch.Generator().manual_seed(1)
    input = torch.randn(7, BATCH, 3, generator=generator, dtype=torch.float64)[:, batch]
    target = torch.randn(BATCH, 2, generator=generator, dtype=torch.float64)[batch]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(STEPS + 1):
        loss = nn.functional.mse_loss(model(input), target)
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def parallel(way: str) -> nn.Module:
    """Return the model in the form in which each of the two processes trains it."""
    model = Model().double()
    if way == "data_parallel":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if way == "fully_sharded":
        for layer in (model.convolution, model.lstm, model.gru, model.cell):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    # Recurrent layers are replicated, since each step needs all hidden units of the previous one.
    plan = {"embed": ColwiseParallel(output_layouts=Replicate()), "head": RowwiseParallel(input_layouts=Replicate())}
    return parallelize_module(model, mesh, plan)


def masked_weights() -> dict[str, Tensor]:
    """Return the weight of a sharded masked convolution after it was initialised, and after loading ones."""
    with torch.device("meta"):
        layer = fused_rnn.MaskedConv2d(3, 6, 3, "A", 3)
    fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    layer.to_empty(device="cpu").reset_parameters()
    weight: Any = layer.weight
    weights = {"initialised": weight.full_tensor()}
    ones = {name: torch.ones_like(value) for name, value in layer.state_dict().items()}
    for assign in (False, True):
        layer.load_state_dict(ones, assign=assign)
        weight = layer.weight
        weights["assigned" if assign else "loaded"] = weight.full_tensor()
        torch.nn.init.ones_(weight)
    return weights


def main(path: str) -> None:
    """Train with each kind of parallelism, and save the losses averaged over the processes."""
    dist.init_process_group("gloo")
    part = BATCH // dist.get_world_size()
    own = slice(part * dist.get_rank(), part * (dist.get_rank() + 1))
    results = masked_weights()
    for way in WAYS:
        losses = torch.stack(train(parallel(way), slice(None) if way == "tensor_parallel" else own))
        dist.all_reduce(losses)
        results[way] = losses / dist.get_world_size()
    if dist.get_rank() == 0:
        torch.save(results, path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
    # A worker of Gloo may still own a Python tensor, and would abort if the interpreter were finalised first.
    os._exit(0)
