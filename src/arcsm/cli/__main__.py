"""``python -m arcsm.cli``: the entry point of each process of a multi-process command."""

from arcsm.cli.application import main

main()
