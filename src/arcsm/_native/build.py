"""Compile the C sources into a library for the processor at hand.

Every process compiles anew, in a temporary folder, all sources at the same time. That takes a few seconds, and no
cached binary can become stale, corrupt or untrusted.
"""

import ctypes
import os
import shlex
import shutil
import signal
import tempfile
from contextlib import ExitStack, suppress
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from threading import Lock, Thread

from arcsm._native.interface import declare
from arcsm._native.verification import first_wrong_result
from arcsm.errors import warn

_COMPILERS = ("cc", "gcc", "clang")
_SOURCES = (
    "score_matching.c", "latent_chain.c", "score_levels.c", "piecewise.c", "value_sums.c", "set_network.c",
    "context_walk.c", "kernels.c", "normal_predictor.c", "level_losses.c",
)  # fmt: skip
_HEADERS = "kernels.h", "value_embedding.h", "set_network.h"
_FLAGS = (
    "-O3", "-std=gnu11", "-fPIC",
    # the last flag wins: with those that these undo, in CC, results are wrong or the library cannot be loaded
    "-fno-fast-math", "-fno-unsafe-math-optimizations", "-fvisibility=default", "-fno-sanitize=all",
)  # fmt: skip
_PROCESSOR_FLAGS = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler accepts is used
_TIMEOUT_SECONDS = 60.0
_LOCK = Lock()  # of the compilation


class CompilationError(RuntimeError):
    """There is no C compiler, it failed, or its code gives wrong numbers; the message is one line."""


def library() -> ctypes.CDLL:
    """Return the library, compiled on the first call; if that fails, every call raises the `CompilationError`."""
    result = _load_library()
    if isinstance(result, CompilationError):
        raise result
    return result


def available() -> bool:
    """Return whether the library can be compiled on this machine, compiling it on the first call.

    Compiled code that gives wrong numbers is not available, and the first call warns.
    """
    return not isinstance(_load_library(), CompilationError)


def start_compiling() -> None:
    """Compile on another thread, unless that has been done, so that whoever needs the library later waits less."""
    if not _compiled_library.cache_info().currsize:
        Thread(target=available, name="arcsm compilation").start()


def _load_library() -> ctypes.CDLL | CompilationError:
    with _LOCK:
        return _compiled_library()


@lru_cache
def _compiled_library() -> ctypes.CDLL | CompilationError:
    try:
        with tempfile.TemporaryDirectory(prefix="arcsm-", ignore_cleanup_errors=True) as folder:
            for file in (*_SOURCES, *_HEADERS):
                source = files("arcsm._native").joinpath(file).read_text(encoding="utf-8")
                Path(folder, file).write_text(source, encoding="utf-8")
            code = ctypes.CDLL(str(_compile(_find_compiler(), Path(folder))))
            declare(code)
    except CompilationError as error:
        return error
    except (OSError, ValueError, AttributeError) as error:  # full disk, malformed CC, missing function, ...
        return CompilationError(f"C compilation failed: {error}")
    wrong = first_wrong_result(code)
    if wrong is None:
        return code
    failure = CompilationError(f"{wrong} gives wrong numbers; remove flags from CC, or choose another compiler by it")
    warn(f"compiled C is not used, torch takes its place: {failure}")
    return failure


def _find_compiler() -> list[str]:
    """Return the command of the C compiler: the environment's ``CC``, or the first of the usual names on the path."""
    environment = shlex.split(os.environ.get("CC", ""))
    for command in [environment] if environment else [[name] for name in _COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise CompilationError(f"no C compiler: looked for {', '.join(environment[:1] or _COMPILERS)}")


def _compile(compiler: list[str], folder: Path) -> Path:
    """Compile for the full instruction set of the processor if the compiler can, and return the library's path."""
    output, errors = folder / "arcsm.so", ""
    objects = [str(folder / file) + ".o" for file in _SOURCES]
    sources = [str(folder / file) for file in _SOURCES]
    for processor in _PROCESSOR_FLAGS:
        flags = *compiler, *_FLAGS, *processor
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
                _, found = process.communicate(timeout=_TIMEOUT_SECONDS)
                if code == 0:
                    code, errors = process.returncode, found
        except BaseException as error:
            for process in processes:
                _kill(process)
            if isinstance(error, TimeoutExpired):
                raise CompilationError(f"{commands[0][0]}: not done after {_TIMEOUT_SECONDS:g} seconds") from error
            raise
    return code, errors


def _kill(process: Popen[str]) -> None:
    """Kill a process with its children."""
    with suppress(AttributeError, ProcessLookupError):  # no process groups on this system, or already ended
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
