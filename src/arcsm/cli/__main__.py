"""``python -m arcsm.cli``, as which the processes of a shared command are started."""

from arcsm.cli.application import main

main()
