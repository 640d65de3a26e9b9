"""Forecast the sunspots of the next eleven years, against the forecast that the last cycle simply repeats.

    python -m examples.time_series
    python -m examples.time_series --cell LSTM --hidden 64

A GRU reads the yearly numbers of sunspots since 1700, which statsmodels provides, and after every year forecasts the
next eleven, so that every step has an output and all of them are trained. The baseline is the seasonal naive forecast:
the number of the same year in the last eleven-year cycle. Both are compared with the held-out years from 1950 on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from statsmodels.datasets import sunspots
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from examples.common import COLOURS, Numbers, Task, base_parser, format_numbers, make_figure, save_figure, train
from examples.layers import CHOICES

HORIZON = 11  # years of a solar cycle, and of a forecast
FIRST_YEAR, FIRST_HELD_OUT = 1700, 1950
SCALES = 0.3, 2.0  # random factors of windows in training, for cycles stronger or weaker than any in the training data
SCALE = 8.0  # the square roots of the numbers are between 0 and 14


def load_series() -> Tensor:
    """The number of sunspots of each year from 1700 to 2008, `[years]`.

    Example:
        >>> load_series()[:4]
        tensor([ 5., 11., 16., 23.])
    """
    return torch.tensor(sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(), dtype=torch.float32)


def next_years(series: Tensor) -> Tensor:
    """The eleven years after each year, `[years - 11, 11]`.

    Example:
        >>> next_years(torch.arange(14.0))[:, :3]
        tensor([[1., 2., 3.],
                [2., 3., 4.],
                [3., 4., 5.]])
    """
    return series[1:].unfold(0, HORIZON, 1)


def last_cycle(series: Tensor) -> Tensor:
    """The seasonal naive forecast of `next_years`, from the eleventh year on, `[years - 21, 11]`."""
    return series[:-HORIZON].unfold(0, HORIZON, 1)


class Forecaster(nn.Module):
    """Forecasts the eleven years after every year, as changes from that year.

    Args:
        make: The class of the recurrent layer.
        hidden_size: The size of its state.
        dropout: The probability with which its outputs become zero in training.
    """

    def __init__(self, make: type[nn.Module], hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.recurrent = make(1, hidden_size)
        self.forecast = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden_size, HORIZON))

    def forward(self, years: Tensor) -> Tensor:
        """Numbers of sunspots `[time, batch, 11]` from those of the years before, `[time, batch]`."""
        roots = (
            years.sqrt()[..., None] / SCALE
        )  # stabilises the variance: the standard deviation of a count grows with its root
        output, _ = self.recurrent(roots)
        return ((roots + self.forecast(output)).clamp(min=0) * SCALE).square()


class SunspotsTask(Task):
    """The training of a forecaster on windows of the years before 1950.

    Args:
        options: The options of the command line.
    """

    unit = "years"

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.series = load_series()
        held_out = FIRST_HELD_OUT - FIRST_YEAR
        self.windows = self.series[:held_out].unfold(0, options.time + HORIZON, 1)
        layers = CHOICES[options.layer]
        make = layers.lstm if options.cell == "LSTM" else layers.gru
        self.network = Forecaster(make, options.hidden, options.dropout)
        super().__init__(self.network, len(self.windows), options, clip=1.0, decay=True)
        self._time: int = options.time
        self.units_per_step = options.batch * options.time
        # The first forecast to evaluate is made in the year before the first held-out year.
        self.actual = next_years(self.series)[held_out - 1 :]
        self.naive = last_cycle(self.series)[held_out - HORIZON :]

    def loss(self, step: int) -> Tensor:
        """The mean absolute error of all forecasts from all years of a batch of windows."""
        scales = torch.empty(self.units_per_step // self._time).uniform_(*SCALES)
        windows = self.windows[self.batch_of(step)].t() * scales
        targets = windows[1:].unfold(0, HORIZON, 1)
        return l1_loss(self.network(windows[: len(targets)]), targets)

    def forecasts(self) -> Tensor:
        """The forecasts of `actual`, each from all years up to the year in which it is made."""
        return self.network(self.series[:-HORIZON, None])[-len(self.actual) :, 0]

    def evaluate(self) -> Numbers:
        """The mean absolute error of all eleven forecast years in the held-out years."""
        return {"error": l1_loss(self.forecasts(), self.actual).item()}


@torch.no_grad()
def draw_picture(task: SunspotsTask, path: Path) -> None:
    """Draw the series with a forecast every eleven years, and the error by years ahead."""
    figure = make_figure(10, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(5, 2))
    first = FIRST_HELD_OUT - 2 * HORIZON
    shown = task.series[first - FIRST_YEAR :].tolist()
    left.plot(range(first, first + len(shown)), shown, color="0.3", label="sunspots")
    forecasts = task.forecasts()
    for start in range(0, len(forecasts), HORIZON):
        ahead = range(FIRST_HELD_OUT + start, FIRST_HELD_OUT + start + HORIZON)
        label = {"label": "forecast, one every 11 years"} if start == 0 else {}
        left.plot(ahead, forecasts[start].tolist(), "o-", markersize=3, color=COLOURS[1], **label)
        label = {"label": "the last cycle again"} if start == 0 else {}
        left.plot(ahead, task.naive[start].tolist(), ":", color=COLOURS[0], **label)
    left.axvline(FIRST_HELD_OUT - 0.5, color="0.7", linewidth=0.8)
    left.set(title="never trained on: the years right of the line", xlabel="year", ylabel="sunspots")
    left.legend(fontsize=8, loc="upper left")
    for values, name, colour in ((forecasts, "forecast", 1), (task.naive, "the last cycle again", 0)):
        errors = (values - task.actual).abs().mean(0)
        right.plot(range(1, HORIZON + 1), errors.tolist(), color=COLOURS[colour], label=name)
    right.set(title="held-out years", xlabel="years ahead", ylabel="mean absolute error", ylim=(0, None))
    right.legend(fontsize=8)
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options on the command line."""
    parser = base_parser("time_series", __doc__, epochs=60, batch=16, learning_rate=5e-3)
    add = parser.add_argument_group("data and model").add_argument
    add("--time", type=int, default=88, help="years of a window to train on (%(default)s)")
    add("--cell", choices=("LSTM", "GRU"), default="GRU", help="the layer (%(default)s)")
    add("--hidden", type=int, default=32, help="size of its state (%(default)s)")
    add("--dropout", type=float, default=0.2, help="of its outputs (%(default)s)")
    return parser


def make_tasks(options: argparse.Namespace) -> dict[str, SunspotsTask]:
    """The one model."""
    return {"sunspots": SunspotsTask(options)}


def main(arguments: list[str] | None = None) -> Numbers:
    """Train, compare with the baseline, and draw."""
    options = make_parser().parse_args(arguments)
    tasks = make_tasks(options)
    train(tasks, options)
    task = tasks["sunspots"]
    task.network.eval()
    numbers = {"error": task.scores[-1]["error"], "error of the last cycle": l1_loss(task.naive, task.actual).item()}
    print(format_numbers(numbers))
    draw_picture(task, options.picture)
    return numbers


if __name__ == "__main__":
    main()
