"""The command before its package is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from small_runs import PATIENCE

_INTERRUPTED_IMPORT = """
import signal, sys
signal.signal(signal.SIGINT, {handler})

class Finder:
    def find_spec(self, name, *_):
        if name == "arcsm":
            signal.raise_signal(signal.SIGINT)
            sys.exit("imported")

sys.meta_path.insert(0, Finder())
import arcsm_command
arcsm_command.main()
"""


@pytest.mark.parametrize(
    ("handler", "code", "message"),
    [("signal.default_int_handler", 130, "arcsm: interrupted\n"), ("signal.SIG_IGN", 1, "imported\n")],
)
def test_ctrl_c_during_imports_is_one_line(handler: str, code: int, message: str) -> None:
    command = [sys.executable, "-c", _INTERRUPTED_IMPORT.format(handler=handler)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (code, message)


_GROUP_MEMBER = """
import os, sys
os.environ["TORCHELASTIC_RUN_ID"] = "one"

class Late:
    def __del__(self):
        os.write(2, b"shut down")

late = Late()
sys.argv[1:] = ["--version"]
from arcsm.cli.application import main
main()
"""


def test_a_process_of_a_group_ends_without_shutting_python_down() -> None:
    command = [sys.executable, "-c", _GROUP_MEMBER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("arcsm ")  # what was printed is not lost
