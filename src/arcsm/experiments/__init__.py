"""Experiments for ``arcsm reproduce``, one module for each figure or table."""

import difflib
from collections.abc import Mapping

from arcsm.experiments import fig4, table2
from arcsm.experiments.adbench import ADBENCH
from arcsm.experiments.base import Experiment, Preset
from arcsm.experiments.contamination import CONTAMINATION
from arcsm.experiments.distillation import DISTILLATION
from arcsm.experiments.entropy import ENTROPY
from arcsm.experiments.events import EVENTS
from arcsm.experiments.fig1a import FIG1A
from arcsm.experiments.fig1b import FIG1B
from arcsm.experiments.fig2 import FIG2
from arcsm.experiments.fig3a import FIG3A
from arcsm.experiments.fig3b import FIG3B
from arcsm.experiments.fig5 import FIG5
from arcsm.experiments.fig7 import FIG7
from arcsm.experiments.imputation import IMPUTATION
from arcsm.experiments.mix import MIX
from arcsm.experiments.mnist_made import MNIST_MADE
from arcsm.experiments.modes import MODES
from arcsm.experiments.orders import ORDERS
from arcsm.experiments.plan import PLAN
from arcsm.experiments.private_rows import PRIVATE_ROWS
from arcsm.experiments.regression import REGRESSION
from arcsm.experiments.sampling_cost import SAMPLING_COST
from arcsm.experiments.synthesis import SYNTHESIS
from arcsm.experiments.table1 import TABLE1
from arcsm.experiments.toys_nll import TOYS_NLL
from arcsm.experiments.uci import UCI_TABLES

_EXPERIMENTS = (
    FIG1A, FIG1B, FIG2, FIG3A, FIG3B, *fig4.EXPERIMENTS, FIG5, FIG7, TOYS_NLL, MODES, MIX, SAMPLING_COST, MNIST_MADE,
    TABLE1, *table2.EXPERIMENTS, ADBENCH, CONTAMINATION, UCI_TABLES, ORDERS, IMPUTATION, SYNTHESIS, PRIVATE_ROWS,
    EVENTS, REGRESSION, DISTILLATION, ENTROPY, PLAN,
)  # fmt: skip
EXPERIMENTS: Mapping[str, Experiment] = {experiment.name: experiment for experiment in _EXPERIMENTS}

__all__ = ["EXPERIMENTS", "Experiment", "Preset", "find"]


def find(name: str) -> Experiment:
    """Return an experiment by name; raise a ValueError if it is unknown."""
    if name not in EXPERIMENTS:
        close = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"{name}: no such experiment; {hint}known: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
