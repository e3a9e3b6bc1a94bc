"""What commands print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from arcsm._runtime.launcher import report_to_launcher
from arcsm._runtime.terminal import printable

if TYPE_CHECKING:  # which take seconds to import
    from arcsm.reports.numbers import LikelihoodRow, ReportNumbers
    from arcsm.training.loop import FitResult


def show(text: object) -> None:
    """Print lines. Names in them, which may come from anybody's file, cannot change the terminal."""
    for line in str(text).split("\n"):
        print(printable(line), flush=True)


class Stopped(Exception):
    """The user has stopped a command; the message tells when, and how to continue."""


def show_training(result: FitResult, loss_name: str = "best objective") -> None:
    """Print the summary of a training."""
    early = ", stopped early" if result.stopped_early else ""
    show(f"trained {result.steps} steps in {result.seconds:.0f} s{early}; {loss_name} {result.best_loss:.4f}")


def show_likelihoods(numbers: ReportNumbers | None) -> None:
    """Print likelihoods and calibration of a report, if the model has a density."""
    if numbers is None:
        show("no likelihoods: the head has scores and no density")
        return
    show_likelihood_table(numbers.log_likelihood)
    show(f"calibration: KS distance {numbers.pit.statistic:.4f} over {numbers.pit.count} values")


def show_likelihood_table(rows: Sequence[LikelihoodRow]) -> None:
    """Print held-out log likelihoods, one line per model."""
    table = Table("held-out log likelihood", "nats per row")
    for row in rows:
        error = f" +- {row.error:.3f}" if row.error is not None else ""
        table.add_row(escape(printable(row.model)), f"{row.mean:.3f}{error}")
    Console().print(table)


def fail(error: object, code: int) -> int:
    """Print an error in one line, or hand it to the launching process; return the exit code."""
    line = printable(f"arcsm: {' '.join(str(error).split())}")
    if not report_to_launcher(line):
        print(line, file=sys.stderr)
    return code
