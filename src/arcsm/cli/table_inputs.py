"""Tables that commands read from files or from standard input."""

import shutil
import sys
import tempfile
import weakref
from pathlib import Path

_MAGIC = {b"PAR1": ".parquet", b"\x93NUM": ".npy", b"PK\x03\x04": ".npz", b"\x1f\x8b": ".csv.gz"}  # first bytes


class TableInput:
    """A table in a file, or on standard input if its path is ``-``.

    Standard input is copied to a temporary file, because tables are read more than once. Its first bytes tell the
    format. The file lives as long as the object.

    Attributes:
        path: The file.
        source: Its name in messages.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.source = path, str(path)
        if self.source != "-":
            return
        folder = tempfile.mkdtemp(prefix="arcsm-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        copy = Path(folder) / "table"
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        with copy.open("rb") as file:
            start = file.read(4)
        suffix = next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), ".csv")
        self.path, self.source = copy.rename(copy.with_suffix(suffix)), "standard input"
