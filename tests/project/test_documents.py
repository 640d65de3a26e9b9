"""The documentation: links and named files exist, examples run, and numbers are those of the result files."""

import json
import re
import struct
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from math import exp, log
from pathlib import Path

import pytest

from benchmarks import summary_chart
from benchmarks.results import Run

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    ]
)
# This page's code needs other packages, so `make ecosystem` runs it.
IN_ECOSYSTEM = "docs/reinforcement-learning.md"
WITH_CODE = [page for page in PAGES if page == "README.md" or (page.startswith("docs/") and page != IN_ECOSYSTEM)]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
# Names in backticks that begin like this or match FILE are files or folders of this repository.
FOLDERS = ("csrc/", "fused_rnn/", "tests/", "benchmarks/", "examples/", "docs/")
FILE = re.compile(r"[\w<>*./-]+\.(py|pyi|h|cpp|cu|cuh|md|json|csv|txt|toml|yml|yaml|png)")
TARGET = re.compile(r"\bmake ([a-z][a-z-]+)")


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def prose_of(page: str) -> str:
    """Return a page without its blocks of code."""
    return FENCE.sub("", text_of(page))


def anchor(heading: str) -> str:
    """Return the anchor that GitHub and MkDocs both give to a heading."""
    ascii_text = unicodedata.normalize("NFKD", heading.replace("`", "")).lower()
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", ascii_text).strip())


def anchors(page: str) -> set[str]:
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)}


def links(page: str) -> Iterator[tuple[str, str]]:
    """Yield the path from the root and the anchor of each link of a page to a file."""
    for address in LINK.findall(prose_of(page)):
        if ":" not in address:
            path, _, name = address.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            yield target.resolve().relative_to(ROOT).as_posix(), name


def is_ours(name: str) -> bool:
    """Whether a name in backticks looks like a file or folder of this repository."""
    return (name.startswith(FOLDERS) and " " not in name) or FILE.fullmatch(name) is not None


def exists(name: str) -> bool:
    """Whether a file is where its path says, or, for a bare name, anywhere; `<name>` stands for any name."""
    pattern = re.sub(r"<\w+>", "*", name).rstrip("/")
    if "/" not in pattern:
        return any(any((ROOT / folder).rglob(pattern)) for folder in FOLDERS) or any(ROOT.glob(pattern))
    return any(ROOT.glob(pattern))


def test_there_are_pages() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "docs/index.md"} < set(PAGES)


def test_what_is_missing_is_seen() -> None:
    assert is_ours("csrc/cells/none.h")
    assert is_ours("none.json")
    assert not is_ours("torch.nn")
    assert not exists("csrc/cells/none.h")
    assert not exists("none.json")
    assert exists("csrc/cells/<name>.h")
    assert exists("lstm.h")
    assert anchor("The cost of a `call`, and why: 2") == "the-cost-of-a-call-and-why-2"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    broken = [
        f"{path}#{name}"
        for path, name in links(page)
        if not (ROOT / path).exists() or (name and path.endswith(".md") and name not in anchors(path))
    ]
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    missing = [name for name in CODE.findall(prose_of(page)) if is_ours(name) and not exists(name)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    commands = [line for line in prose_of(page).splitlines() if line.startswith("    ")] + CODE.findall(prose_of(page))
    assert {name for command in commands for name in TARGET.findall(command)} <= targets


@pytest.mark.parametrize("page", WITH_CODE)
def test_examples_run(page: str) -> None:
    names: dict[str, object] = {}
    for language, code in FENCE.findall(text_of(page)):
        assert language == "python"
        exec(compile(code, page, "exec"), names)


def test_makefile_says_what_each_target_does() -> None:
    makefile = text_of("Makefile")
    described = set(re.findall(r"^#   make ([a-z-]+) ", makefile, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony is not None
    # These two are steps of other targets.
    assert set(phony[1].split()) - described == {"lint", "build-gpu"}


def navigation() -> list[str]:
    """Return the pages that the site's navigation lists."""
    _, _, nav = text_of("mkdocs.yml").partition("\nnav:\n")
    return re.findall(r": (\S+\.md)$", nav, re.MULTILINE)


def test_navigation_lists_every_page_once() -> None:
    listed = [page if (ROOT / page).exists() else f"docs/{page}" for page in navigation()]
    assert sorted(listed) == sorted(page for page in PAGES if page != "README.md")


def test_hooks_run_the_linters_of_make_test() -> None:
    lint = text_of("Makefile").partition("\nlint: build\n")[2].partition("\n\n")[0]
    commands = re.findall(r"\$\(BIN\)/([\w -]+?)(?: \.| \$|$)", lint, re.MULTILINE)
    hooks = re.findall(r"entry: (.+)$", text_of(".pre-commit-config.yaml"), re.MULTILINE)
    assert sorted(hooks) == sorted(commands)


def test_tools_are_pinned() -> None:
    for path in ROOT.glob("requirements*.txt"):
        lines = [line.partition(";")[0].strip() for line in path.read_text().splitlines()]
        assert [line for line in lines if line and not line.startswith("#") and "==" not in line] == [], path.name
    linters = {line for line in text_of("requirements.txt").splitlines() if line.startswith("ruff")}
    assert linters <= set(text_of("requirements-docs.txt").splitlines())


def rows(page: str) -> list[list[str]]:
    """Return the rows of all tables of a page, without bold."""
    lines = [line for line in text_of(page).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.replace("**", "").strip("|").split("|")] for line in lines]


def times(file: str) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return the seconds of each peer, by group, label and mode."""
    results = json.loads((RESULTS / file).read_text())["results"]
    return {
        (result["group"], result["label"], result["mode"]): {
            peer: time["median"] for peer, time in result["times"].items()
        }
        for result in results
    }


def ratio(file: str, group: str, mode: str, peer: str) -> str:
    """Return the geometric mean and the worst of the peer's times over ours, as the pages write them."""
    ratios = [
        time[peer] / time["fused"]
        for (name, _, way), time in times(file).items()
        if (name, way) == (group, mode) and peer in time
    ]
    mean = exp(sum(map(log, ratios)) / len(ratios))
    return f"{mean:.2f}x ({min(ratios):.2f}x)" if len(ratios) > 1 else f"{mean:.2f}x"


CPU_GROUPS = {
    "LSTM": ("LSTM", "torch.nn"),
    "GRU": ("GRU", "torch.nn"),
    "LSTM, packed": ("packed LSTM", "torch.nn"),
    "GRU, packed": ("packed GRU", "torch.nn"),
    "LSTM, one step": ("LSTM one step", "torch.nn"),
    "GRU, one step": ("GRU one step", "torch.nn"),
    "masked convolution": ("masked_conv2d", "dense channels_last"),
}


def test_numbers_of_the_processor_in_the_readme() -> None:
    found = {row[0]: row[1:] for row in rows("README.md") if row[0] in CPU_GROUPS}
    for name, (group, peer) in CPU_GROUPS.items():
        expected = [ratio("amd-epyc-avx2-2-threads.json", group, mode, peer) for mode in ("forward", "training")]
        assert found[name] == expected, name


@pytest.mark.parametrize(("page", "kinds"), [("README.md", ["LSTM"]), ("docs/gpu.md", ["LSTM", "GRU"])])
def test_microseconds_on_a_gpu(page: str, kinds: list[str]) -> None:
    measured = times("nvidia-h200.json")
    sizes = [row for row in rows(page) if re.fullmatch(r"\d+, \d+", row[0])]
    # The tables follow one another, each with increasing sizes, so a table begins where the size decreases.
    keys = [tuple(map(int, row[0].split(", "))) for row in sizes]
    starts = [0, *(index for index, (one, two) in enumerate(pairwise(keys), 1) if two < one), len(keys)]
    assert len(starts) == len(kinds) + 1
    for kind, (start, end) in zip(kinds, pairwise(starts), strict=True):
        for size, *cells in sizes[start:end]:
            expected = []
            for mode in ("forward", "training"):
                time = measured[f"{kind} bfloat16, graphs", f"(256, {size})", mode]
                ours, theirs = (1e6 * time[peer] / 256 for peer in ("fused", "cuDNN"))
                expected += [f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.2f}x"]
            assert cells == expected, size


def test_means_on_a_gpu() -> None:
    groups = {group.removesuffix(", graphs") for group, _, _ in times("nvidia-h200.json") if group.endswith(", graphs")}
    found = {row[0]: row[1:] for row in rows("docs/gpu.md") if row[0] in groups}
    assert set(found) == groups
    for group, cells in found.items():
        modes = ("forward", "training")
        assert cells == [ratio("nvidia-h200.json", f"{group}, graphs", mode, "cuDNN") for mode in modes], group


def test_table_of_the_processor_is_what_the_command_prints() -> None:
    file = RESULTS / "amd-epyc-avx2-2-threads.json"
    printed = subprocess.run(
        [sys.executable, "-m", "benchmarks", "table", str(file)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line for line in printed.stdout.splitlines() if re.match(r"\| \S.*(forward|backward) \|", line)]
    assert len(lines) > 10
    assert set(lines) <= set(text_of("docs/performance.md").splitlines())


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.*")), ids=lambda path: path.name)
def test_results_name_no_place_of_a_machine(path: Path) -> None:
    if path.suffix != ".png":
        assert re.findall(r"/(?:home|root|work|tmp|Users)/\S*|(?:\d{1,3}\.){3}\d{1,3}", path.read_text()) == []


def test_picture_of_the_readme(tmp_path: Path) -> None:
    runs = Run.load(summary_chart.CPU_RESULTS), Run.load(summary_chart.GPU_RESULTS)
    found = [
        summary_chart.rows_of(runs[0], summary_chart.CPU_PEERS),
        summary_chart.rows_of(runs[1], summary_chart.GPU_PEERS, summary_chart.GRAPHS),
    ]
    assert {group.replace("_", " ") for group, _ in CPU_GROUPS.values()} <= set(found[0])
    bar = found[1]["GRU bfloat16"]["forward"].peer
    assert f"{bar.mean:.2f}x ({bar.worst:.2f}x)" == ratio(
        "nvidia-h200.json", "GRU bfloat16, graphs", "forward", "cuDNN"
    )
    summary_chart.main(["--output", str(tmp_path / "summary.png")])
    width, height = struct.unpack(">II", (tmp_path / "summary.png").read_bytes()[16:24])
    # It must fit a screen.
    assert height < 1080
    assert width < 1280
    # The picture in the documentation has the same number of bars, so it is up to date.
    assert struct.unpack(">II", summary_chart.PICTURE.read_bytes()[16:24]) == (width, height)
