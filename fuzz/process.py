"""One process that fuzzes one target under limits of memory and time, guided by the coverage of the package.

python -m fuzz.process TARGET SECONDS FOLDER
"""

import contextlib
import dis
import hashlib
import os
import resource
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris
import pyarrow

with atheris.instrument_imports(include=["arcsm"]):
    import arcsm  # noqa: F401
    from fuzz.targets import TARGETS

_PACKAGE = f"{os.sep}arcsm{os.sep}"
_MEMORY = 2 << 30  # bytes above those at the start
_SECONDS = 30  # for one input
_LONGEST = 20_000  # bytes of an input


class Recorder:
    """Runs a target, and keeps the first input of every kind of finding with its traceback.

    Allowed outcomes are success and the errors of the package, each of one line. Every other error is a finding.
    """

    def __init__(self, target: Callable[[bytes, Path], None], suffix: str, findings: Path) -> None:
        self._target, self._suffix, self._findings = target, suffix, findings
        self._folder = Path(tempfile.mkdtemp(prefix="arcsm-fuzz-"))

    def __call__(self, content: bytes) -> None:
        path = self._folder / f"input{self._suffix}"
        path.unlink(missing_ok=True)  # some file systems wait for the disk when a file is overwritten
        path.write_bytes(content)
        try:
            with contextlib.redirect_stdout(None):
                self._target(content, path)
        except (ValueError, TypeError) as error:
            if "\n" in str(error).strip() or not _is_own(error):
                self._keep(content, error)
        except Exception as error:
            self._keep(content, error)

    def _keep(self, content: bytes, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        *_, last = [frame for frame in frames if _PACKAGE in frame.filename or frame is frames[0]]
        place = f"{type(error).__name__}-{Path(last.filename).stem}-{last.lineno}"
        if not (self._findings / f"{place}.txt").exists():
            (self._findings / place).write_bytes(content)
            (self._findings / f"{place}.txt").write_text("".join(traceback.format_exception(error)))


def _is_own(error: Exception) -> bool:
    """Return whether a statement of the package has raised an error, and not Python or a library that it calls."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or _PACKAGE not in last.tb_frame.f_code.co_filename:
        return False
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def _limit_memory() -> None:
    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmSize:"))
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Run libFuzzer on a target for some seconds, from valid files that the package writes."""
    name, seconds, findings = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    target = TARGETS[name]
    warnings.simplefilter("ignore")
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    corpus = findings / "corpus"  # of all processes on this target
    corpus.mkdir(exist_ok=True)
    record = Recorder(target.read, target.suffix, findings)
    with tempfile.TemporaryDirectory() as folder:
        for content in target.seeds(Path(folder)):
            (corpus / hashlib.sha1(content).hexdigest()).write_bytes(content)
            record(content)  # imports what is imported late
    _limit_memory()
    options = [
        f"-max_total_time={seconds}", f"-max_len={_LONGEST}", f"-timeout={_SECONDS}", "-rss_limit_mb=0",
        "-print_final_stats=1", f"-artifact_prefix={findings}/",
    ]  # fmt: skip
    more = {} if target.mutate is None else {"custom_mutator": target.mutate}
    atheris.Setup([sys.argv[0], *options, str(corpus)], record, **more)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
