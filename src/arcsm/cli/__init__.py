"""The command ``arcsm``, one module per group of commands; :mod:`arcsm.cli.application` combines them."""

from arcsm.cli.application import main

__all__ = ["main"]
