"""The innermost loops in C, compiled with the package or else at first use.

``score_matching.c`` keeps the hidden layers of a tile of points in a core's own cache from the first product to the
last gradient, which a general compiler of tensor programs cannot do. ``score_levels.c`` does the same from one noise
level to the next, for densities and samples, and ``piecewise.c`` integrates the densities. ``latent_chain.c`` computes
autoregressive latents without a call between them. ``value_sums.c`` and ``set_network.c`` train an any-order context,
and ``context_walk.c`` evaluates it; ``normal_predictor.c`` and ``level_losses.c`` are its linear features and the
losses of its nominal columns; ``spline.c`` evaluates splines; ``muon.c`` takes steps of an optimizer. All are optional:
without a C compiler the same results come from torch, more slowly.
"""

from arcsm._native.build import available, library, start_compiling
from arcsm._native.context_walk import WalkedNetwork, context_walk
from arcsm._native.interface import Indicators, Rule
from arcsm._native.latent_chain import LatentChain, latent_chain_backward, latent_chain_forward, latent_chain_moments
from arcsm._native.level_losses import LevelWeights, level_losses
from arcsm._native.memory import may_evaluate, may_train, supports
from arcsm._native.muon import muon_step
from arcsm._native.normal_predictor import normal_given_set, normal_in_order
from arcsm._native.piecewise import (
    piecewise_cell_errors,
    piecewise_errors,
    piecewise_icdf,
    piecewise_integrate,
    readable,
)
from arcsm._native.recipe import CompilationError
from arcsm._native.score_levels import Interpolation, LevelConstants, ScoreLevels, Step
from arcsm._native.score_matching import score_matching_forward_backward
from arcsm._native.score_points import PointConstants, ScorePoints, score_points
from arcsm._native.set_network import HiddenLayers, SetWeights, set_network_backward, set_network_forward
from arcsm._native.spline import SplineLimits, spline_project, spline_values
from arcsm._native.value_sums import ValueVectors, value_sums_backward, value_sums_forward

__all__ = [
    "CompilationError",
    "HiddenLayers",
    "Indicators",
    "Interpolation",
    "LatentChain",
    "LevelConstants",
    "LevelWeights",
    "PointConstants",
    "Rule",
    "ScoreLevels",
    "ScorePoints",
    "SetWeights",
    "SplineLimits",
    "Step",
    "ValueVectors",
    "WalkedNetwork",
    "available",
    "context_walk",
    "latent_chain_backward",
    "latent_chain_forward",
    "latent_chain_moments",
    "level_losses",
    "library",
    "may_evaluate",
    "may_train",
    "muon_step",
    "normal_given_set",
    "normal_in_order",
    "piecewise_cell_errors",
    "piecewise_errors",
    "piecewise_icdf",
    "piecewise_integrate",
    "readable",
    "score_matching_forward_backward",
    "score_points",
    "set_network_backward",
    "set_network_forward",
    "spline_project",
    "spline_values",
    "start_compiling",
    "supports",
    "value_sums_backward",
    "value_sums_forward",
]
