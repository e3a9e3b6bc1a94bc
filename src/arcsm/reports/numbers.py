"""Numbers that reports show and commands print."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands import this module at their start
    from arcsm.metrics import Uniformity


@dataclass(frozen=True)
class LikelihoodRow:
    """A line of the table of likelihoods, in nats per row."""

    model: str
    mean: float
    error: float | None
    ours: bool = False


@dataclass(frozen=True)
class ReportNumbers:
    """The numbers of a report."""

    log_likelihood: list[LikelihoodRow]
    noisy_log_likelihood: LikelihoodRow | None
    pit: "Uniformity"  # of the PIT values
