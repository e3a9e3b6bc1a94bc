"""How the C sources are compiled. The build of a wheel reads this file, too, so it needs the standard library alone."""

import os
import platform
import shlex
import shutil
import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

SOURCES = (
    "score_matching.c", "latent_chain.c", "score_levels.c", "piecewise.c", "value_sums.c", "set_network.c",
    "context_walk.c", "kernels.c", "normal_predictor.c", "level_losses.c", "score_points.c", "spline.c",
    "muon.c",
)  # fmt: skip
HEADERS = ("kernels.h", "value_embedding.h", "set_network.h", "doubles.h")
FLAGS: tuple[str, ...] = (
    "-O3", "-std=gnu11", "-fPIC",
    # the last flag wins: with those that these undo, in CC, results are wrong or the library cannot be loaded
    "-fno-fast-math", "-fno-unsafe-math-optimizations", "-fvisibility=default", "-fno-sanitize=all",
)  # fmt: skip
#: Flags for the processor at hand, the first of which that the compiler accepts are used.
OF_THIS_PROCESSOR: tuple[tuple[str, ...], ...] = (("-march=native",), ("-mcpu=native",), ())
_OF_X86 = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "portable": (),
}
_COMPILERS = ("cc", "gcc", "clang")
TIMEOUT_SECONDS = 60.0


class CompilationError(RuntimeError):
    """There is no C compiler, it failed, or its code gives wrong numbers; the message is one line."""


def variants() -> dict[str, tuple[str, ...]]:
    """Return the names of the libraries that a wheel for this kind of processor has, and their flags, best first."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
    return dict(_OF_X86) if is_x86 else {"portable": ()}


def find_compiler() -> list[str]:
    """Return the command of the C compiler: the environment's ``CC``, or the first of the usual names on the path."""
    environment = shlex.split(os.environ.get("CC", ""))
    for command in [environment] if environment else [[name] for name in _COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise CompilationError(f"no C compiler: looked for {', '.join(environment[:1] or _COMPILERS)}")


def compile_library(compiler: Sequence[str], folder: Path, processors: Sequence[Sequence[str]], output: Path) -> Path:
    """Compile the sources in a folder for the first of some ``processors`` whose flags the compiler accepts.

    Return the path of the library, ``output``. Objects are written beside it.
    """
    errors = ""
    objects = [str(output.parent / f"{output.stem}-{file}.o") for file in SOURCES]
    sources = [str(folder / file) for file in SOURCES]
    for processor in processors:
        flags = *compiler, *FLAGS, *processor
        code, errors = _run([[*flags, "-o", o, "-c", source] for o, source in zip(objects, sources, strict=True)])
        if code == 0:
            code, errors = _run([[*flags, "-shared", "-o", str(output), *objects, "-lm"]])
        if code == 0:
            return output
    lines = [line for line in errors.splitlines() if "error" in line] or errors.splitlines() or ["failed silently"]
    raise CompilationError(f"{compiler[0]}: {lines[0].strip()}")


def _run(commands: list[list[str]]) -> tuple[int, str]:
    """Run commands at the same time; return exit status and standard error of the first that fails, or of the last.

    At the timeout or on an interrupt, all are killed with their children.
    """
    code, errors = 0, ""
    with ExitStack() as stack:
        processes = list[Popen[str]]()
        try:
            for command in commands:
                process = Popen(
                    command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, text=True, errors="replace",
                    start_new_session=True,
                )  # fmt: skip
                processes.append(stack.enter_context(process))
            for process in processes:
                _, found = process.communicate(timeout=TIMEOUT_SECONDS)
                if code == 0:
                    code, errors = process.returncode, found
        except BaseException as error:
            for process in processes:
                _kill(process)
            if isinstance(error, TimeoutExpired):
                raise CompilationError(f"{commands[0][0]}: not done after {TIMEOUT_SECONDS:g} seconds") from error
            raise
    return code, errors


def _kill(process: Popen[str]) -> None:
    """Kill a process with its children."""
    with suppress(AttributeError, ProcessLookupError):  # no process groups on this system, or already ended
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
