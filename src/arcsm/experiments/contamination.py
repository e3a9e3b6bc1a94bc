"""Outliers in tables of ADBench whose fitted rows contain some: ours, which knows their share, and detectors of PyOD.

As in :mod:`arcsm.experiments.adbench`, beside MCD, with fewer fitted rows. The outliers that are fitted are not in the
test. Ours is fitted once more without the share.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import Field

from arcsm.experiments import adbench
from arcsm.experiments.adbench import DEVELOPMENT, OURS
from arcsm.experiments.base import Preset, Result, Settings, Study, check_names, study

UNINFORMED = "arcsm, share unknown"
MinorShare = Annotated[float, Field(gt=0, le=0.5)]
METHODS = (OURS, UNINFORMED, "MCD", *adbench.PEERS)


class Contamination(Settings):
    """Every detector has its default settings, but ours knows the share of outliers."""

    cell_selection: ClassVar[frozenset[str]] = frozenset({"seeds", "methods", "tables", "shares"})
    records_cells: ClassVar[bool] = True
    methods: tuple[str, ...] = Field(METHODS, min_length=1)
    tables: tuple[str, ...] = ()  # default: all in the data folder
    shares: tuple[MinorShare, ...] = Field((0.05, 0.1), min_length=1)  # of outliers among the fitted rows
    most_fitted: int = Field(2_000, ge=10)  # normal rows
    most_judged: int = Field(10_000, ge=10)  # test rows, with the table's share of anomalies


PRESETS: Mapping[Preset, Contamination] = {
    "smoke": Contamination(methods=(OURS, UNINFORMED), shares=(0.1,), most_fitted=60, most_judged=40),
    "cpu": Contamination(seeds=3),
    "paper": Contamination(seeds=3, most_fitted=10_000, most_judged=1_000_000),
}


def body(run: Study[Contamination]) -> Result:
    """Test every method on every table with every share and seed."""
    settings = run.settings
    check_names("methods", settings.methods, METHODS)
    tables, methods = settings.tables or adbench.table_names(), settings.methods
    cells = run.compute_seeds(
        {
            (_in_words(share), table, method): partial(_test, run, share, table, method)
            for share in settings.shares
            for table in tables
            for method in methods
        }
    )
    others = [table for table in tables if table not in DEVELOPMENT]
    judged = others or list(tables)
    found: dict[str, Any] = {}
    for share in map(_in_words, settings.shares):
        rows = {table: adbench.over_seeds(table, {m: cells[share, table, m] for m in methods}) for table in tables}
        found[share] = {"tables": rows, "summary": adbench.summarise(methods, rows, judged)}
    last = found[_in_words(settings.shares[-1])]
    figure = adbench.draw(last["summary"], {table: last["tables"][table] for table in judged})
    return {"shares": found, "chosen_on": not others, "figure": run.figure(figure)}


def _in_words(share: float) -> str:
    return f"{100.0 * share:g} %"


def _test(run: Study[Contamination], share: float, table: str, method: str, seed: int) -> Result:
    settings = run.settings
    path = adbench.table_path(table)
    split = adbench.split_outliers(path, seed, settings.most_fitted, settings.most_judged, share)
    known = share if method == OURS else "auto"
    return adbench.judge(run.device.type, OURS if method == UNINFORMED else method, seed, *split, known)


CONTAMINATION = study(
    "contamination", "outliers among the fitted rows: ours and thirteen detectors of PyOD", PRESETS, body
)
