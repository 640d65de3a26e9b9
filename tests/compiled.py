"""What ptxas said of the kernels, in the logs that the latest build with CUDA left beside the objects."""

import re
from pathlib import Path

BUILD = Path(__file__).parent.parent / "build"
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def kernels(log: str) -> list[dict[str, str]]:
    """Return name, architecture, spills and registers of each kernel in a log of ptxas."""
    return [entry.groupdict() for entry in ENTRY.finditer(log)]


def logs() -> list[Path]:
    """Return the logs of the latest build with CUDA."""
    folders = sorted({log.parent for log in BUILD.glob("*/*.cuda.o.log")}, key=lambda folder: folder.stat().st_mtime)
    return sorted(folders[-1].glob("*.cuda.o.log")) if folders else []
