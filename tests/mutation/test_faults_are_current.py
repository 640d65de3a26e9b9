"""That the list of faults fits the sources, so that `make mutate` does what it says; it runs apart from these tests."""

import re
from pathlib import Path

import pytest
from planting import occurs_once

from mutation.fault import Fault
from mutation.faults import FAULTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_has_its_place_and_its_tests(fault: Fault) -> None:
    occurs_once(fault.edit, (ROOT / fault.file).read_text())
    assert all((ROOT / name).exists() for name in fault.tests if name.startswith("tests/"))
    assert fault.tests[0].startswith("tests/")
    if fault.file.startswith("csrc/"):
        source = ROOT / "csrc" / fault.source
        assert source.suffix == ".cpp"
        assert source == ROOT / fault.file or Path(fault.file).name in includes(source)
    else:
        assert not fault.source


def includes(source: Path, seen: frozenset[str] = frozenset()) -> set[str]:
    """Return the names of all headers of csrc/ that a source includes, directly or not."""
    found = set()
    for name in re.findall(r'^#include "([\w/]+\.h)"', source.read_text(), re.MULTILINE):
        if name not in seen:
            found |= {Path(name).name} | includes(ROOT / "csrc" / name, seen | {name})
    return found


def test_names_are_distinct() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) > 60
