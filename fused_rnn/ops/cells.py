"""The structure of every cell, read from csrc/cells/."""

from typing import NamedTuple

from fused_rnn import _C


class Cell(NamedTuple):
    """The properties of a cell on which shapes depend; csrc/cells/cells.h defines them."""

    gates: int
    """The first dimension of ``weight_ih``, divided by ``hidden_size``."""
    sums: int
    """How many values of each hidden unit and step are saved for backward."""
    states: int
    """How many states a hidden unit has: h alone, or h and c."""
    may_project: bool
    """Whether h may be projected to another size."""

    @property
    def weight_counts(self) -> tuple[int, ...]:
        """How many weights one direction can have; an odd number means that the last one is a projection."""
        return (2, 3, 4, 5) if self.may_project else (2, 4)


CELLS = {
    name: Cell(cell["gates"], cell["sums"], cell["states"], cell["may_project"]) for name, cell in _C.cells().items()
}
"""The structure of each cell, by the name that the operators take."""
