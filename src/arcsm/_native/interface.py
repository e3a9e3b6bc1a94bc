"""The interface of the C library: its structures and the types of its results."""

import ctypes


class Shape(ctypes.Structure):
    """``shape`` of score_matching.c."""

    _fields_ = (
        ("inputs", ctypes.c_long),
        ("context", ctypes.c_long),
        ("value_features", ctypes.c_long),
        ("layers", ctypes.c_long),
        ("units", ctypes.POINTER(ctypes.c_long)),
        ("residual", ctypes.c_int),
        ("tangent", ctypes.c_int),
        ("tile", ctypes.c_long),
    )


class Network(ctypes.Structure):
    """``network`` of score_levels.c."""

    _fields_ = (
        ("frequencies", ctypes.c_long),
        ("layers", ctypes.c_long),
        ("units", ctypes.POINTER(ctypes.c_long)),
        ("residual", ctypes.c_int),
        ("tangent", ctypes.c_int),
        ("frequency", ctypes.c_void_p),
        ("weight", ctypes.POINTER(ctypes.c_void_p)),
        ("bias", ctypes.POINTER(ctypes.c_void_p)),
    )


class Level(ctypes.Structure):
    """``level`` of score_levels.c."""

    _fields_ = (
        ("width", ctypes.c_float),
        ("precision", ctypes.c_float),
        ("envelope_width", ctypes.c_float),
        ("window_start", ctypes.c_float),
        ("window_end", ctypes.c_float),
        ("output_bias", ctypes.c_float),
        ("bias", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("output_weight", ctypes.c_void_p),
        ("noise", ctypes.c_float),
        ("speed", ctypes.c_float),
        ("before", ctypes.c_long),
        ("predictor", ctypes.c_float * 4),
        ("corrector", ctypes.c_float * 4),
        ("from_start", ctypes.c_int),
    )


class Rule(ctypes.Structure):
    """``rule`` of piecewise.c."""

    _fields_ = (
        ("points", ctypes.c_double * 5),
        ("weights", ctypes.c_double * 5),
        ("end", ctypes.c_double),
        ("coarse_inner", ctypes.c_double),
        ("coarse_end", ctypes.c_double),
        ("max_exponent", ctypes.c_double),
        ("tiny", ctypes.c_double),
        ("least_ratio", ctypes.c_double),
    )


class Indicators(ctypes.Structure):
    """``indicators`` of piecewise.c."""

    _fields_ = (
        ("calibration", ctypes.c_double),
        ("least_calibration", ctypes.c_double),
        ("max_grading", ctypes.c_double),
        ("small_rise", ctypes.c_double),
        ("tiny", ctypes.c_double),
    )


def declare(code: ctypes.CDLL) -> None:
    """Set the types of the results of all functions; a function that the library lacks is an ``AttributeError``."""
    code.score_matching_forward_backward.restype, code.vector_step.restype = ctypes.c_double, ctypes.c_long
    for function in (
        code.latent_chain_forward,
        code.latent_chain_backward,
        code.latent_chain_moments,
        code.score_levels_at_points,
        code.score_levels_follow,
        code.piecewise_integrate,
        code.piecewise_errors,
        code.piecewise_cell_errors,
    ):
        function.restype = None
    workspaces = code.score_matching_workspace_bytes, code.latent_chain_workspace_bytes
    for function in (
        *workspaces,
        code.score_levels_workspace_bytes,
        code.latent_chain_hidden_bytes,
        code.vector_alignment,
    ):
        function.restype = ctypes.c_size_t
