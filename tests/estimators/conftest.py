"""Fitted estimators that the tests of this folder share, and do not change."""

from __future__ import annotations

import pytest

from arcsm.estimators import ScoreDensity
from small_tables import Scored, correlated_table, detector_and_outliers, quick_density


@pytest.fixture(scope="session")
def correlated_density() -> ScoreDensity:
    """Return a density of :func:`small_tables.correlated_table`."""
    return quick_density(correlated_table(300))


@pytest.fixture(scope="session")
def scored() -> Scored:
    """Return a detector and rows, some of which are outliers; see :func:`small_tables.detector_and_outliers`."""
    return detector_and_outliers()
