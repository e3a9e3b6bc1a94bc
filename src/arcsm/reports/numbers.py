"""Numbers that reports show and commands print."""

from dataclasses import dataclass


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
    pit_statistic: float
    pit_p_value: float
    pit_count: int
