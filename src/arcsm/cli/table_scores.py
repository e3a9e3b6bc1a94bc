"""Log densities of the rows of a table under one that was fitted before."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from arcsm._runtime.files import check_separate, check_writable
from arcsm._runtime.moments import RunningMoments
from arcsm._runtime.progress import track
from arcsm.cli.console import show
from arcsm.cli.fitted_tables import FittedTable
from arcsm.cli.model_rows import SCORE_COLUMNS
from arcsm.cli.options import check_safe_csv
from arcsm.cli.table_inputs import TableInput
from arcsm.data import ReadOptions, frame_writer
from arcsm.data.table import check_reserved_columns

_PART_ROWS = 2_000  # scored at once


def score_rows(
    model: Path, table: TableInput, options: ReadOptions, out: Path, with_data: bool, safe_csv: bool, device: str
) -> None:
    """Write the log density of each row of a table, and the column that the others make least likely."""
    if out.suffix.lower() not in (".csv", ".tsv", ".parquet"):
        raise ValueError(f"--out {out}: expected a .csv, .tsv or .parquet file")
    check_safe_csv(safe_csv, out)
    check_writable(out)
    check_separate({"--out": out}, (table.path,))
    fitted = FittedTable.read(model, device)
    density, file = fitted.density_for("score", model), fitted.file(table, options)
    labels = [*fitted.labels, *options.ids]
    check_reserved_columns(file.file, *((SCORE_COLUMNS,) if with_data else (SCORE_COLUMNS[1:], labels)))
    count = sum(len(part) for part in file.parts())  # checks the whole file first
    raw = file.file.raw_parts(_PART_ROWS)
    names, mean = np.array([str(name) for name in fitted.forms.types], dtype=object), RunningMoments()
    like = file.file if out.suffix.lower() == ".parquet" else None
    with frame_writer(out, like, safe_csv) as write, track("scoring", count, enabled=True) as work:
        for rows in work.over(file.parts(_PART_ROWS), len):
            total, terms = density.score_samples(rows), density.explain(rows).to_numpy()
            known = np.where(np.isnan(terms), np.inf, terms)
            lowest, numbers = known.argmin(1), mean.count + 1 + np.arange(len(rows))
            least = np.where(np.isnan(terms).all(1), "", names[lowest])  # no value of an empty row
            columns = (numbers, total, least, terms[np.arange(len(rows)), lowest])
            scores = pd.DataFrame(dict(zip(SCORE_COLUMNS, columns, strict=True)))
            cells = next(raw)
            copied = cells if with_data else file.file.labels(cells, labels)
            scores = scores.drop(columns="row") if "row" in copied.columns else scores
            write(pd.concat([copied, scores], axis=1))
            mean.add(torch.from_numpy(total))
    error = "" if mean.count < 2 else f" +- {mean.standard_error:.4f}"
    show(f"{out}  {count} rows, mean log density {float(mean.mean):.4f}{error} nats")
