"""Runs all examples with their defaults, and prints the table of `examples/README.md`: `python -m examples`."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from time import perf_counter

import torch

from examples import EXAMPLES
from examples.common import format_numbers

PICTURES = Path(__file__).parent / "pictures"


def main(arguments: list[str] | None = None) -> None:
    """Run the examples, draw their pictures, and print the time and result of each."""
    parser = argparse.ArgumentParser(prog="python -m examples", description=__doc__)
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help=f"all, or some of {', '.join(EXAMPLES)}")
    parser.add_argument("--layer", default="fused", help="whose layers: fused or torch (%(default)s)")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="where the pictures go (%(default)s)")
    options = parser.parse_args(arguments)
    if not set(options.examples) <= set(EXAMPLES):
        parser.error(f"EXAMPLE must be one of {', '.join(EXAMPLES)}")
    rows = []
    for name in options.examples or EXAMPLES:
        print(f"\n{name}")
        start = perf_counter()
        picture = options.pictures / f"{name}.png"
        module = import_module(f"examples.{name}")
        numbers = module.main(["--layer", options.layer, "--picture", str(picture)])
        seconds = perf_counter() - start
        shows = (module.__doc__ or "").splitlines()[0].rstrip(".")
        cells = [shows, f"`python -m examples.{name}`", f"{seconds:.0f} s", format_numbers(numbers)]
        rows.append([*cells, f"![{name}](pictures/{name}.png)"])
    head = ["what it shows", "command", f"time, {torch.get_num_threads()} threads", "result", "picture"]
    print()
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
