"""What :func:`fused_rnn.check_autoregressive` returns."""

from collections import Counter
from dataclasses import dataclass
from enum import Enum

SHOWN = 5
"""How many findings of each kind a printed report lists."""


class Kind(Enum):
    """The kinds of findings, each with the words that a report has for it."""

    LEAK = "depends on"
    MISSING = "does not depend on"
    BLIND_SPOT = "never sees"
    NAN = "is infected by a NaN in"
    OTHER_IMAGE = "depends on other images of the batch"


@dataclass(frozen=True)
class Finding:
    """One pair of an output and an input of a model of which something is to be reported."""

    kind: Kind
    output_pixel: tuple[int, int]
    """Row and column."""
    output_colour: int
    """The group of colours, counted from 0."""
    input_pixel: tuple[int, int]
    """Row and column; of a dependency on other images those of the output."""
    input_channel: int
    """The channel of the image, counted from 0."""
    layer: str = ""
    """The qualified name of the first module whose output shows it, with its class; empty for a blind spot."""

    def __str__(self) -> str:
        place = f"; first shows in {self.layer}" if self.layer else ""
        if self.kind is Kind.BLIND_SPOT:
            return f"output {self.output_pixel} {self.kind.value} input {self.input_pixel}"
        output = f"output {self.output_pixel} of colour {self.output_colour} {self.kind.value}"
        if self.kind is Kind.OTHER_IMAGE:
            return output + place
        return f"{output} input {self.input_pixel} of channel {self.input_channel}{place}"


@dataclass(frozen=True)
class AutoregressiveReport:
    """What was found, which is meant to be printed. It is true if there are neither leaks nor missing dependencies."""

    leaks: tuple[Finding, ...]
    """Dependencies of an output on an input that it must not see."""
    missing: tuple[Finding, ...]
    """Inputs on which an output must depend, but does not."""
    warnings: tuple[Finding, ...]
    """Blind spots, and ways by which a NaN gets into an output that must not see it. Neither makes a model wrong."""

    def __bool__(self) -> bool:
        return not self.leaks and not self.missing

    def __str__(self) -> str:
        lines = ["autoregressive" if self else "NOT autoregressive"]
        for title, findings in (("leaks", self.leaks), ("missing", self.missing), ("warnings", self.warnings)):
            if findings:
                lines.append(f"{title}: {len(findings)}")
                lines += [f"  {count} of them first show in {layer}" for layer, count in _layers(findings)]
                lines += [f"  {finding}" for finding in findings[:SHOWN]]
            if len(findings) > SHOWN:
                lines.append(f"  and {len(findings) - SHOWN} more")
        return "\n".join(lines)


def _layers(findings: tuple[Finding, ...]) -> list[tuple[str, int]]:
    """Return the layers where findings first show with their numbers, if there are several layers."""
    layers = Counter(finding.layer for finding in findings if finding.layer)
    return layers.most_common(SHOWN) if len(layers) > 1 else []
