"""The tiles of masked convolution that are chosen, against what an H200 took for all of them."""

import csv
import math
from collections import defaultdict
from pathlib import Path

import pytest

from cuda_on_host.build import build
from cuda_on_host.convolution import Convolution, Convolutions

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "nvidia-h200-masked-conv-tiles.csv"
SIZES = ["batch", "height", "width", "in_channels", "out_channels", "kernel_height", "kernel_width"]
Times = dict[tuple[int, int], float]


def measured() -> dict[tuple[str, ...], Times]:
    """Return, for each pass of each convolution, the microseconds that its tiles took."""
    times: dict[tuple[str, ...], Times] = defaultdict(dict)
    with MEASURED.open() as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            problem = (row["pass"], row["mask_type"], *(row[name] for name in SIZES))
            times[problem][int(row["rows"]), int(row["channel_groups"])] = float(row["microseconds"])
    return times


@pytest.mark.parametrize("name", ["forward", "input_gradient", "parameter_gradients"])
def test_chosen_tiles_are_among_the_fastest(name: str) -> None:
    """No choice takes 12 % more than the best tiles, and all together 3 % more."""
    convolutions = Convolutions(build())
    ratios = {}
    for (which, mask_type, *sizes), times in measured().items():
        if which != name:
            continue
        numbers = dict(zip(SIZES, map(int, sizes), strict=True))
        taps = numbers["kernel_height"] * numbers["kernel_width"] // 2 + (mask_type == "B")
        params = Convolution(
            **numbers, dilation_height=1, dilation_width=1, data_channels=1, dense_taps=taps,
            own_group=mask_type == "B", multiprocessors=132,
        )  # fmt: skip
        ratios[tuple(sizes)] = times[convolutions.chosen_tiles(name, params)] / min(times.values())
    assert len(ratios) == 10
    assert max(ratios.values()) <= 1.12, ratios
    assert math.exp(sum(map(math.log, ratios.values())) / len(ratios)) <= 1.03, ratios
