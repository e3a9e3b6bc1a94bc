"""Fuzz the readers of files: each must return, or raise an error of one line.

python -m fuzz TARGET [--minutes 10] [--out FOLDER]      (needs the extra "fuzz"; TARGET: all, or one of the list)
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("model", "fitted", "config", "csv", "npy", "npz", "parquet", "image", "idx", "xlsx")
_COUNT = re.compile(r"(?:^#|stat::number_of_executed_units:\s+)(\d+)", re.MULTILINE)


def fuzz(target: str, seconds: float, out: Path) -> tuple[int, int]:
    """Fuzz one target, and go on after crashes; return the numbers of executions and of findings so far."""
    folder = out / target
    folder.mkdir(parents=True, exist_ok=True)
    end, executions = time.monotonic() + seconds, 0
    limits = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # threads would reserve memory
    while (left := round(end - time.monotonic())) > 0:
        command = [sys.executable, "-m", "fuzz.process", target, str(left), str(folder)]
        done = subprocess.run(command, env={**os.environ, **limits}, capture_output=True, text=True, check=False)
        counts = _COUNT.findall(done.stderr)
        executions += int(counts[-1]) if counts else 0
        if done.returncode == 0:
            break
        if not counts:
            raise RuntimeError(f"{target}: did not start: {done.stderr[-2000:]}")
        (folder / f"crash-{int(time.time())}.txt").write_text(done.stderr[-20_000:])
    return executions, len(list(folder.glob("*.txt")))


def main() -> int:
    parser = argparse.ArgumentParser("python -m fuzz", description="Fuzz the readers of files.")
    parser.add_argument("target", choices=("all", *NAMES))
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target")
    parser.add_argument("--out", type=Path, help="folder for the inputs that fail, with their tracebacks")
    options = parser.parse_args()
    out, failed = options.out or Path(tempfile.mkdtemp(prefix="arcsm-fuzz-")), False
    for target in NAMES if options.target == "all" else (options.target,):
        executions, findings = fuzz(target, 60.0 * options.minutes, out)
        failed = failed or findings > 0
        print(f"{target}: {executions:,} executions, {findings} findings (in {out / target})", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
