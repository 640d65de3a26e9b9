"""Reads the logs of ptxas, which the latest build with CUDA saved beside the objects of the kernels."""

import re
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build"
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def kernels(log: str) -> list[dict[str, str]]:
    """Return name, architecture, spills and registers of each kernel in a log of ptxas."""
    return [entry.groupdict() for entry in ENTRY.finditer(log)]


def build_folder() -> Path | None:
    """Return the folder of the latest build with CUDA, or None."""
    folders = {
        next(folder for folder in log.parents if folder.parent == BUILD) for log in BUILD.glob("*/cuda/**/*.log")
    }
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)


def logs() -> list[Path]:
    """Return the logs of the latest build with CUDA."""
    folder = build_folder()
    return sorted(folder.glob("cuda/**/*.o.log")) if folder else []
