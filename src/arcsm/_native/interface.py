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


class Nodes(ctypes.Structure):
    """``interpolation`` of score_levels.c."""

    _fields_ = (
        ("nodes", ctypes.c_long),
        ("half_range", ctypes.c_float),
        ("node", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("reach", ctypes.c_float),
        ("points", ctypes.c_long),
        ("place", ctypes.c_void_p),
        ("share", ctypes.c_void_p),
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


class Embedding(ctypes.Structure):
    """``embedding`` of value_embedding.h."""

    _fields_ = (
        ("dimensions", ctypes.c_long),
        ("size", ctypes.c_long),
        ("numbers", ctypes.c_long),
        ("frequencies", ctypes.c_long),
        ("levels", ctypes.POINTER(ctypes.c_long)),
        ("first", ctypes.POINTER(ctypes.c_long)),
        ("frequency", ctypes.c_void_p),
        ("amplitude", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("presence", ctypes.c_void_p),
    )


class SetNetwork(ctypes.Structure):
    """``set_network`` of set_network.h."""

    _fields_ = (
        ("inputs", ctypes.c_long),
        ("units", ctypes.c_long),
        ("layers", ctypes.c_long),
        ("dimensions", ctypes.c_long),
        ("outputs", ctypes.c_long),
        ("slowly", ctypes.c_float),
        ("smallest", ctypes.c_float),
        ("first_weight", ctypes.c_void_p),
        ("first_bias", ctypes.c_void_p),
        ("linear_weight", ctypes.c_void_p),
        ("weight", ctypes.POINTER(ctypes.c_void_p)),
        ("bias", ctypes.POINTER(ctypes.c_void_p)),
        ("output_weight", ctypes.c_void_p),
        ("output_bias", ctypes.c_void_p),
    )


class SetNetworkGradients(ctypes.Structure):
    """``set_network_gradients`` of set_network.c."""

    _fields_ = SetNetwork._fields_[7:]


class WalkNetwork(ctypes.Structure):
    """``walk_network`` of context_walk.c."""

    _fields_ = (
        ("network", ctypes.POINTER(SetNetwork)),
        ("terms", ctypes.c_void_p),
        ("residual_weight", ctypes.c_void_p),
    )


class LevelHead(ctypes.Structure):
    """``level_head`` of level_losses.c."""

    _fields_ = (
        ("levels", ctypes.c_long),
        ("sharpness", ctypes.c_float),
        ("share", ctypes.c_float),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("prior", ctypes.c_void_p),
    )


class PointHead(ctypes.Structure):
    """``point_head`` of score_points.c."""

    _fields_ = (
        ("frequencies", ctypes.c_long),
        ("frequency", ctypes.c_void_p),
        ("data_std", ctypes.c_float),
        ("envelope_widths", ctypes.c_float),
        ("flat_widths", ctypes.c_float),
        ("end_widths", ctypes.c_float),
    )


class SplineNetwork(ctypes.Structure):
    """``spline_network`` of spline.c."""

    _fields_ = (
        ("bins", ctypes.c_long),
        ("bound", ctypes.c_float),
        ("layers", ctypes.c_long),
        ("units", ctypes.POINTER(ctypes.c_long)),
        ("weight", ctypes.POINTER(ctypes.c_void_p)),
        ("bias", ctypes.POINTER(ctypes.c_void_p)),
        ("least_share", ctypes.c_float),
        ("least_slope", ctypes.c_float),
        ("slope_offset", ctypes.c_float),
        ("least_scale", ctypes.c_float),
        ("most_scale", ctypes.c_float),
    )


class MuonRule(ctypes.Structure):
    """``muon_rule`` of muon.c."""

    _fields_ = (
        ("rows", ctypes.c_long),
        ("columns", ctypes.c_long),
        ("momentum", ctypes.c_float),
        ("decay", ctypes.c_float),
        ("step", ctypes.c_float),
        ("linear", ctypes.c_float),
        ("cubic", ctypes.c_float),
        ("quintic", ctypes.c_float),
        ("iterations", ctypes.c_long),
    )


def declare(code: ctypes.CDLL) -> None:
    """Set the types of the results of all functions; a function that the library lacks is an ``AttributeError``."""
    for sums in (code.score_matching_forward_backward, code.level_losses, code.score_points):
        sums.restype = ctypes.c_double
    code.vector_step.restype = ctypes.c_long
    for function in (
        code.latent_chain_forward,
        code.latent_chain_backward,
        code.latent_chain_moments,
        code.score_levels_at_points,
        code.score_levels_follow,
        code.piecewise_integrate,
        code.piecewise_errors,
        code.piecewise_cell_errors,
        code.piecewise_icdf,
        code.value_sums_forward,
        code.value_sums_backward,
        code.set_network_forward,
        code.set_network_backward,
        code.context_walk,
        code.normal_given_set,
        code.normal_in_order,
        code.spline_project,
        code.spline_values,
        code.muon_step,
    ):
        function.restype = None
    workspaces = code.score_matching_workspace_bytes, code.latent_chain_workspace_bytes
    for function in (
        *workspaces,
        code.score_levels_workspace_bytes,
        code.latent_chain_hidden_bytes,
        code.value_sums_workspace_bytes,
        code.value_sums_slope_bytes,
        code.set_network_workspace_bytes,
        code.set_network_layer_bytes,
        code.context_walk_workspace_bytes,
        code.normal_predictor_workspace_bytes,
        code.level_losses_workspace_bytes,
        code.spline_workspace_bytes,
        code.spline_values_workspace_bytes,
        code.muon_workspace_bytes,
        code.vector_alignment,
    ):
        function.restype = ctypes.c_size_t
