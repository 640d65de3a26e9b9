"""What a planted fault is."""

from dataclasses import dataclass

from planting import Edit


@dataclass(frozen=True)
class Fault:
    """One change of one file, which makes the library wrong, and the tests that must see it."""

    name: str
    file: str
    """The file, from the root of the repository."""
    old: str
    """A text that occurs in the file exactly once."""
    new: str
    """What replaces it."""
    tests: tuple[str, ...]
    """The arguments of pytest that select the tests; fewer tests take less time."""
    source: str = ""
    """For C++, the source from whose object the tests get the fault: a file of csrc/, such as cpu/lstm_kernel.cpp."""
    fewer: tuple[Edit, ...] = ()
    """Edits that leave out what the tests do not need of the source, which then compiles faster."""
    survives: str = ""
    """Why no test can see it; empty for a fault that must be seen."""

    @property
    def edit(self) -> Edit:
        """The change as an edit."""
        return self.file, self.old, self.new
