"""Questions about some columns given others, for models of every order (:class:`arcsm.AnyOrder`).

Known values come first in the chain rule, whatever their columns. No integral over the unknown values is approximated;
only the number of draws limits the accuracy.
"""

from arcsm.queries.completion import complete, probability
from arcsm.queries.constraints import Constraint, Intervals, Levels
from arcsm.queries.densities import log_prob_given, log_prob_given_others
from arcsm.queries.drawing import Completions
from arcsm.queries.orders import learned_order

__all__ = [
    "Completions", "Constraint", "Intervals", "Levels", "complete", "learned_order", "log_prob_given",
    "log_prob_given_others", "probability",
]  # fmt: skip
