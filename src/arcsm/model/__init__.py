"""The model: a context and a head, with noise, units, samplers and files."""

from arcsm.model.autoregressive import AutoregressiveModel, load, save, without_compilation

__all__ = ["AutoregressiveModel", "load", "save", "without_compilation"]
