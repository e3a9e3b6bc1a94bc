"""The commands, one module for each kind; :mod:`arcsm.cli` puts them together."""
