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


def declare(code: ctypes.CDLL) -> None:
    """Set the types of the results of all functions; a function that the library lacks is an ``AttributeError``."""
    code.score_matching_forward_backward.restype, code.vector_step.restype = ctypes.c_double, ctypes.c_long
    for function in (code.latent_chain_forward, code.latent_chain_backward, code.latent_chain_moments):
        function.restype = None
    workspaces = code.score_matching_workspace_bytes, code.latent_chain_workspace_bytes
    for function in (*workspaces, code.latent_chain_hidden_bytes, code.vector_alignment):
        function.restype = ctypes.c_size_t
