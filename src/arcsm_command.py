"""The command ``arcsm`` until :mod:`arcsm` is imported, which takes seconds: Ctrl-C then ends it in one line.

It stands outside the package because Python imports a package before any module in it.
"""

import os
import signal
from contextlib import suppress
from types import FrameType


def main() -> None:
    """Import the command and run it."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, _interrupted)
    from arcsm.cli.application import main as run

    signal.signal(signal.SIGINT, before)
    run()


def _interrupted(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has been written yet, and modules imported by half may turn the interruption into errors."""
    with suppress(OSError):  # a closed terminal
        os.write(2, b"arcsm: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
