"""Faults that are planted into copies of sources, to find out whether tests see them."""

from collections.abc import Sequence

Edit = tuple[str, str, str]
"""A file, a text that occurs there exactly once, and what replaces it."""


def occurs_once(edit: Edit, text: str) -> None:
    """Assert that an edit's old text occurs in ``text``, the content of its file, exactly once."""
    file, old, new = edit
    assert text.count(old) == 1, f"{old!r} does not occur in {file} exactly once"
    assert old != new, f"the edit of {file} replaces {old!r} by itself"


def edited(file: str, text: str, edits: Sequence[Edit]) -> str:
    """Return the content of a file with the edits that are of this file."""
    for edit in edits:
        if edit[0] == file:
            occurs_once(edit, text)
            text = text.replace(edit[1], edit[2])
    return text
