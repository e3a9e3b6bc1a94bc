"""Tables that another engine holds in parts, scored in its own processes."""

from __future__ import annotations

from pathlib import Path

import dask
import dask.dataframe
import numpy as np
import pandas as pd
import pytest

from arcsm.estimators import ScoreOutlierDetector
from small_tables import correlated_table


@pytest.mark.slow  # a process takes seconds to start
def test_processes_of_dask_score_partitions(tmp_path: Path) -> None:
    rows = correlated_table(300, 0)
    detector = ScoreOutlierDetector(n_estimators=1, max_steps=20, random_state=0).fit(rows)
    detector.save(tmp_path / "detector")

    def score(part: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame(
            {"score": ScoreOutlierDetector.load(tmp_path / "detector").score_samples(part)}, index=part.index
        )

    frame = dask.dataframe.from_pandas(rows, npartitions=4)
    with dask.config.set(scheduler="processes", num_workers=2):
        scores = frame.map_partitions(score, meta={"score": float}).compute()
    np.testing.assert_allclose(scores["score"], detector.score_samples(rows), rtol=1e-5)
    assert scores.index.equals(rows.index)
