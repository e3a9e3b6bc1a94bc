"""``python -m arcsm.cli``, by which several processes of one command are started."""

from arcsm.cli.application import main

main()
