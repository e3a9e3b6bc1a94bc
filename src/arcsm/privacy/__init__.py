"""Differential privacy: statistics of a table that say little of any one row, and rows that are drawn from them."""

from arcsm.privacy.accounting import epsilon_of_noise, noise_for
from arcsm.privacy.statistics import PrivateStatistics

__all__ = ["PrivateStatistics", "epsilon_of_noise", "noise_for"]
