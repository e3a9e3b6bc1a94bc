"""The command ``arcsm``: one module for each group of commands, put together in :mod:`arcsm.cli.application`."""

from arcsm.cli.application import main

__all__ = ["main"]
