"""The command ``arcsm`` as ``python -m arcsm``."""

from arcsm.cli.application import main

if __name__ == "__main__":
    main()
