"""Axes that show counts of a column of times as dates or times."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from arcsm.estimators.column_types import Column
from arcsm.estimators.times import Times, value_text

_MAX_TICKS = 3


def label_times(axes: Axes, kind: Column) -> None:
    """Label the horizontal axis with times, if it shows the counts of a column of times."""
    if isinstance(kind, Times):
        scale = kind.scale
        axes.xaxis.set_major_locator(MaxNLocator(_MAX_TICKS))
        axes.xaxis.set_major_formatter(lambda count, _: value_text(scale.times(np.array([count]))[0]))
