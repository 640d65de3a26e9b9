"""How long a plain RNN, an LSTM and a GRU remember: the adding problem, with the gradients that decide it.

    python -m examples.long_dependencies
    python -m examples.long_dependencies --time 200 --epochs 60

Two of `time` random numbers are marked, and the answer, after the last one, is their sum (Hochreiter and Schmidhuber,
"Long Short-Term Memory", 1997). A model that remembers nothing answers 1, with a mean squared error of 1/6. The first
picture shows the error during training. The second shows how much the answer depends on an input so many steps back:
in the plain RNN this gradient vanishes, so it cannot learn. The last two show an RNN whose gradients explode, of
rectified linear units that are initialised with the identity (Le et al., "A Simple Way to Initialize Recurrent Networks
of Rectified Linear Units", 2015): without clipping, the first steps destroy it. These two are fused_rnn's also with
`--layer torch`, since rounding errors explode, too, so that other kernels would lead to other losses.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fused_rnn
from examples.common import COLOURS, Numbers, Task, base_parser, format_numbers, make_figure, save_figure, train
from examples.layers import CHOICES

GATED = ("LSTM", "GRU")
CLIPPED, UNCLIPPED = "ReLU RNN, clipped", "ReLU RNN, not clipped"
CLIP = 1.0
EXPLODING_RATE = 0.01
SHOWN_STEPS = 60  # of the trainings that explode
HELD_OUT = 500
HELD_OUT_SEED = 10**9


def adding_problem(count: int, time: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers and marks `[time, count, 2]`, one mark in the first half and one in the second, and sums `[count]`.

    Example:
        >>> inputs, sums = adding_problem(3, time=20, seed=0)
        >>> inputs.shape, inputs[..., 1].sum(0)
        (torch.Size([20, 3, 2]), tensor([2., 2., 2.]))
        >>> torch.equal(sums, inputs.prod(dim=2).sum(0))
        True
    """
    generator = torch.Generator().manual_seed(seed)
    numbers, marks = torch.rand(time, count, generator=generator), torch.zeros(time, count)
    for first, end in ((0, time // 2), (time // 2, time)):
        marks[torch.randint(first, end, (count,), generator=generator), torch.arange(count)] = 1
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(0)


class Adder(nn.Module):
    """A recurrent layer, and a linear map from its last output to the answer.

    Args:
        make: A function that makes the layer from input_size and hidden_size.
        hidden_size: The size of the state.
    """

    def __init__(self, make: Callable[[int, int], nn.Module], hidden_size: int) -> None:
        super().__init__()
        self.recurrent = make(2, hidden_size)
        self.answer = nn.Linear(hidden_size, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Answers `[batch]` from `[time, batch, 2]`."""
        output, _ = self.recurrent(inputs)
        return self.answer(output[-1])[:, 0]


@torch.no_grad()
def remember(network: Adder, time: int) -> None:
    """Initialise the gate that preserves the state such that it does so for about `time` steps.

    This is the LSTM's forget gate or the GRU's update gate, the second gate in both. Its bias log(time - 1) makes it
    sigmoid(log(time - 1)) = 1 - 1 / time (Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018).
    """
    size = network.answer.in_features
    network.recurrent.get_parameter("bias_hh_l0")[size : 2 * size] = math.log(time - 1)


def make_exploding(input_size: int, hidden_size: int) -> fused_rnn.RNN:
    """An RNN of rectified linear units whose recurrent weight is the identity, so that each unit repeats its value."""
    recurrent = fused_rnn.RNN(input_size, hidden_size, nonlinearity="relu", bias=False)
    nn.init.eye_(recurrent.get_parameter("weight_hh_l0"))
    return recurrent


def gradient_by_distance(network: Adder, time: int) -> Tensor:
    """The mean norm of the answers' gradient with respect to the input k steps before the last, `[time]`, by k."""
    inputs, _ = adding_problem(HELD_OUT, time, HELD_OUT_SEED)
    inputs.requires_grad_()
    (gradient,) = torch.autograd.grad(network(inputs).sum(), inputs)
    return gradient.flip(0).norm(dim=2).mean(1)


class AddingTask(Task):
    """A layer and the adding problem, of which every batch is new.

    Args:
        options: The options of the command line.
        network: The model.
        clip: The largest norm of its gradients.
        exploding: Whether to train with SGD, which unlike Adam does not divide by the gradient's size.
    """

    unit = "sequences"

    def __init__(
        self, options: argparse.Namespace, network: Adder, clip: float = CLIP, exploding: bool = False
    ) -> None:
        self.network = network
        self.before = gradient_by_distance(network, options.time)
        self._time: int = options.time
        make = (lambda weights, _: torch.optim.SGD(weights, EXPLODING_RATE)) if exploding else torch.optim.Adam
        super().__init__(network, options.sequences, options, clip=clip, make_optimizer=make)

    def loss(self, step: int) -> Tensor:
        """The mean squared error of a new batch."""
        inputs, sums = adding_problem(self.units_per_step, self._time, 10**6 * self.seed + step)
        return mse_loss(self.network(inputs), sums)

    def evaluate(self) -> Numbers:
        """The mean squared error of held-out sequences."""
        inputs, sums = adding_problem(HELD_OUT, self._time, HELD_OUT_SEED)
        return {"error": mse_loss(self.network(inputs), sums).item()}


def draw_picture(tasks: Mapping[str, AddingTask], time: int, path: Path) -> None:
    """Draw the error, the gradient by distance, and the norm of the gradient and the error of exploding RNNs."""
    figure = make_figure(10, 7)
    (error, distance), (norm, exploded) = figure.subplots(2, 2)
    for (name, task), colour in zip(tasks.items(), COLOURS, strict=False):
        if name in (CLIPPED, UNCLIPPED):
            style, name = ("X-", f"{name}: ends here") if name == UNCLIPPED else (".-", name)
            norm.plot(task.norms[:SHOWN_STEPS], style, color=colour, label=name)
            exploded.plot(task.losses[:SHOWN_STEPS], style, color=colour, label=name)
        else:
            epochs = range(1, 1 + len(task.scores))
            error.plot(epochs, [numbers["error"] for numbers in task.scores], color=colour, label=name)
            distance.plot(task.before.tolist(), color=colour, label=f"{name}, untrained")
            distance.plot(
                gradient_by_distance(task.network, time).tolist(), "--", color=colour, label=f"{name}, trained"
            )
    error.axhline(1 / 6, color="0.5", linewidth=0.8, label="remembers nothing")
    error.set(title="adding problem", xlabel="epoch", ylabel="held-out squared error", yscale="log")
    distance.set(title="vanishing gradients", xlabel="steps back", ylabel="gradient by that input", yscale="log")
    norm.axhline(CLIP, color="0.5", linewidth=0.8, label="where it is clipped")
    norm.set(title="exploding gradients", xlabel="step", ylabel="norm before clipping", yscale="log")
    exploded.set(title="what comes of it", xlabel="step", ylabel="squared error", yscale="log")
    for axis in (error, distance, norm, exploded):
        axis.legend(fontsize=8)
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options on the command line."""
    parser = base_parser("long_dependencies", __doc__, epochs=20, batch=32, learning_rate=5e-3)
    add = parser.add_argument_group("data and models").add_argument
    add("--time", type=int, default=100, help="numbers in a sequence, 50 to 500 (%(default)s)")
    add("--sequences", type=int, default=3200, help="sequences in an epoch (%(default)s)")
    add("--hidden", type=int, default=48, help="size of the states (%(default)s)")
    return parser


def make_tasks(options: argparse.Namespace) -> dict[str, AddingTask]:
    """RNN, LSTM and GRU, and two RNNs that explode."""
    layers = CHOICES[options.layer]
    makers: dict[str, Callable[[int, int], nn.Module]] = {"RNN": layers.rnn, "LSTM": layers.lstm, "GRU": layers.gru}
    makers |= {CLIPPED: make_exploding, UNCLIPPED: make_exploding}
    tasks = {}
    for name, make in makers.items():
        torch.manual_seed(options.seed)
        network = Adder(make, options.hidden)
        if name in GATED:
            remember(network, options.time)
        clip = math.inf if name == UNCLIPPED else CLIP
        tasks[name] = AddingTask(options, network, clip, exploding=make is make_exploding)
    return tasks


def main(arguments: list[str] | None = None) -> Numbers:
    """Train all five, and draw."""
    options = make_parser().parse_args(arguments)
    tasks = make_tasks(options)
    train(tasks, options)
    draw_picture(tasks, options.time, options.picture)
    numbers = {f"error of {name}": task.scores[-1]["error"] for name, task in tasks.items() if name != UNCLIPPED}
    numbers["steps to an error of 10, not clipped"] = sum(loss < 10 for loss in tasks[UNCLIPPED].losses)
    print(format_numbers(numbers))
    return numbers


if __name__ == "__main__":
    main()
