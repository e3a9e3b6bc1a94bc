"""What commands say."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from arcsm._runtime.launcher import report_to_launcher
from arcsm.reports.run import LikelihoodRow, ReportNumbers
from arcsm.training.loop import FitResult


def show_training(result: FitResult, loss: str = "best objective") -> None:
    """How the training went, and what its loss is called."""
    early = ", stopped early" if result.stopped_early else ""
    print(f"trained {result.steps} steps in {result.seconds:.0f} s{early}; {loss} {result.best_loss:.4f}")


def show_likelihoods(numbers: ReportNumbers) -> None:
    """Likelihoods and calibration of a report."""
    show_likelihood_table(numbers.log_likelihood)
    print(f"calibration: KS distance {numbers.pit_statistic:.4f} over {numbers.pit_count} values")


def show_likelihood_table(rows: Sequence[LikelihoodRow]) -> None:
    """Held-out log likelihoods, a line for each model."""
    table = Table("held-out log likelihood", "nats a row")
    for row in rows:
        table.add_row(row.model, f"{row.mean:.3f}" + (f" +- {row.error:.3f}" if row.error is not None else ""))
    Console().print(table)


class Stopped(Exception):
    """The user has stopped a command; says where it was, and how to go on."""


def fail(error: object, code: int) -> int:
    """Say in one line what was wrong, and return the exit code."""
    said = f"arcsm: {' '.join(str(error).split())}"
    if not report_to_launcher(said):
        print(said, file=sys.stderr)
    return code
