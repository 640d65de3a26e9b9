"""Plants every fault of the list, and reports which of them no test sees.

    PYTHONPATH=tests:tests/support python -m mutation [--only WORD ...] [--jobs N] [--seconds N] [--list]

First all tests run once without a fault, since tests that fail anyway see nothing. The exit status is 0 if each fault
was seen, except those that the list says cannot be, which must not be.
"""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mutation.fault import Fault
from mutation.faults import FAULTS
from mutation.tree import FOLDER, BuildError, Package, Tree

TESTS_FAILED = 1  # pytest's status


@dataclass(frozen=True)
class Outcome:
    """What became of a fault."""

    fault: Fault
    result: str
    """seen, crashed, survived, too long, does not compile, or no test ran."""
    detail: str
    """The test that failed, or the end of the output."""
    seconds: float

    @property
    def expected(self) -> bool:
        """Whether the list of faults says so."""
        if self.fault.survives:
            return self.result == "survived"
        return self.result in ("seen", "crashed")


def first_failure(output: str) -> str:
    """Return the first test that pytest names as failed, or the end of its output."""
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].partition(" ")[2].partition(" - ")[0] if failed else output[-500:]


def examine(package: Package, name: str, fault: Fault, seconds: float) -> Outcome:
    """Plant a fault and run its tests."""
    start = time.monotonic()

    def outcome(result: str, detail: str) -> Outcome:
        return Outcome(fault, result, detail, time.monotonic() - start)

    try:
        with Tree(package, name, fault, seconds) as tree:
            status, output = tree.test(fault.tests)
    except BuildError as error:
        return outcome("does not compile", str(error))
    except subprocess.TimeoutExpired:
        return outcome("too long", f"more than {seconds} s")
    if status == 0:
        return outcome("survived", "")
    if status == TESTS_FAILED:
        return outcome("seen", first_failure(output))
    return outcome("crashed", f"signal {-status}") if status < 0 else outcome("no test ran", output[-500:])


def without_fault(tree: Tree, tests: tuple[str, ...]) -> str:
    """Run tests in a copy without a fault, and return what is wrong if they do not pass."""
    status, output = tree.test(tests)
    return f"without a fault, pytest {' '.join(tests)} ends with {status}:\n{output[-3000:]}" if status else ""


def imports_itself(tree: Tree) -> bool:
    """Whether Python in a copy imports the package and the extension of the copy, not those of the checkout."""
    where = "import fused_rnn, fused_rnn._C; print(fused_rnn.__file__, fused_rnn._C.__file__)"
    printed = subprocess.run([sys.executable, "-c", where], cwd=tree.path, capture_output=True, text=True).stdout
    return printed.count(str(tree.path)) == 2


def report(console: Console, outcomes: list[Outcome]) -> None:
    """Print a table of all outcomes, those first that the list does not expect."""
    table = Table("fault", "file", "result", "seconds", "the first test that failed, or why none can")
    for outcome in sorted(outcomes, key=lambda outcome: outcome.expected):
        style = "" if outcome.expected else "bold red"
        detail = outcome.fault.survives if outcome.expected and outcome.fault.survives else outcome.detail
        fault = outcome.fault
        table.add_row(fault.name, fault.file, outcome.result, f"{outcome.seconds:.0f}", detail, style=style)
    console.print(table)
    unexpected = sum(not outcome.expected for outcome in outcomes)
    console.print(f"{len(outcomes)} faults, {unexpected} with an outcome that is not expected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="faults whose name or file has a word")
    parser.add_argument("--jobs", type=int, default=1, help="how many faults are examined at the same time")
    parser.add_argument("--seconds", type=float, default=600, help="the most that compiling or testing may take")
    parser.add_argument("--list", action="store_true", help="print the faults and do nothing")
    options = parser.parse_args()
    words = options.only
    faults = [fault for fault in FAULTS if not words or any(word in fault.name or word in fault.file for word in words)]
    console = Console(width=None if sys.stdout.isatty() else 200)
    if options.list:
        for fault in faults:
            console.print(f"{fault.file}: {fault.name}", highlight=False)
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    package = Package()
    selections = list(dict.fromkeys(fault.tests for fault in faults))
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    with bar:
        task = bar.add_task("building", total=len(selections) + len(faults))
        package.compile("bindings.cpp", FOLDER.parents[1] / "csrc", package.bindings, options.seconds)
        bar.update(task, description="tests without a fault")
        with ThreadPoolExecutor(options.jobs) as pool:
            with Tree(package, "without", None, options.seconds) as tree:
                if not imports_itself(tree):
                    sys.exit(f"the copy in {tree.path} imports the package of another folder")
                for wrong in pool.map(partial(without_fault, tree), selections):
                    if wrong:
                        sys.exit(wrong)
                    bar.advance(task)
            outcomes = []
            jobs = [
                pool.submit(examine, package, f"fault{index}", fault, options.seconds)
                for index, fault in enumerate(faults)
            ]
            for job in as_completed(jobs):
                outcome = job.result()
                outcomes.append(outcome)
                bar.update(task, description=outcome.fault.name, advance=1)
                bar.print(f"{outcome.result}: {outcome.fault.name} ({outcome.fault.file}), {outcome.seconds:.0f} s")
    report(console, outcomes)
    sys.exit(not all(outcome.expected for outcome in outcomes))


if __name__ == "__main__":
    main()
