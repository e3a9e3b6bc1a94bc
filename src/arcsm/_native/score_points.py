"""Bindings of ``score_points.c``: what fused score matching reads of points."""

import ctypes
from typing import NamedTuple

from torch import Tensor

from arcsm._native.build import library
from arcsm._native.interface import PointHead
from arcsm._native.memory import address, check_shapes

_EMBEDDING, _COEFFICIENTS = 5, 6


class PointConstants(NamedTuple):
    """What a head makes of values and noise levels; see ``point_head`` of score_points.c."""

    frequencies: Tensor  #: (J,)
    data_std: float
    envelope_widths: float
    flat_widths: float
    end_widths: float


class ScorePoints(NamedTuple):
    """The inputs of :func:`arcsm._native.score_matching_forward_backward` beside contexts and weights."""

    features: Tensor  #: (N, I)
    slopes: Tensor  #: (N, V)
    coefficients: Tensor  #: (6, N)
    constant: float  #: the part of the loss that does not depend on the network


def score_points(
    constants: PointConstants, x: Tensor, sigma: Tensor | None, weight: Tensor, derivative: Tensor, linear: Tensor
) -> ScorePoints:
    """Return what values ``x (N,)`` at noise levels are to the loss of :mod:`arcsm.objectives.fused`.

    The arguments are those of :func:`arcsm.objectives.fused.fused_score_matching`, ``(N,)`` each. Errors are those of
    :mod:`arcsm._native.latent_chain`.
    """
    # detached, a wrapper that a transform of torch.func has left behind becomes the tensor in it
    given = [t.detach().contiguous() for t in (x, weight, derivative, linear)]
    sigma, frequencies = None if sigma is None else sigma.detach().contiguous(), constants.frequencies.contiguous()
    every = [*given, *([] if sigma is None else [sigma])]
    check_shapes("score_points", [*every, frequencies], all(t.shape == (len(x),) for t in every))
    x, weight, derivative, linear = given
    values = 2 * len(frequencies) + 1
    features = x.new_empty(len(x), values + (0 if sigma is None else _EMBEDDING))
    slopes, coefficients = x.new_empty(len(x), values), x.new_empty(_COEFFICIENTS, len(x))
    head = PointHead(len(frequencies), address(frequencies), *constants[1:])
    constant = library().score_points(
        ctypes.byref(head), ctypes.c_long(len(x)), address(x), None if sigma is None else address(sigma),
        *map(address, (weight, derivative, linear, features, slopes, coefficients)),
    )  # fmt: skip
    return ScorePoints(features, slopes, coefficients, float(constant))
