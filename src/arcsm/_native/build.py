"""From C to a library for this very processor.

It is compiled anew in every process that asks for it, into a folder that is gone a moment later: a second or two is
little beside the import of torch, and what is not kept can be neither damaged, nor out of date, nor somebody else's.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

_COMPILERS = ("cc", "gcc", "clang")
_SOURCES, _HEADERS = ("walk.c", "chain.c"), ("kernels.h",)
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared")
_NATIVE = (("-march=native",), ("-mcpu=native",), ())  # the first by which it can be compiled is taken
_SECONDS = 60.0  # of patience


class CompilationError(RuntimeError):
    """There is no compiler, or it could not do it; the message is one line."""


def library() -> ctypes.CDLL:
    """The library of the C files of this package, compiled the first time.

    Raises:
        CompilationError: where there is no compiler, or it fails; it is not tried again.
    """
    found = _attempt()
    if isinstance(found, CompilationError):
        raise found
    return found


def available() -> bool:
    """Whether the library can be had on this machine; compiles it to find out, which takes a second or two."""
    return not isinstance(_attempt(), CompilationError)


@lru_cache
def _attempt() -> ctypes.CDLL | CompilationError:
    try:
        with tempfile.TemporaryDirectory(prefix="arcsm-", ignore_cleanup_errors=True) as folder:
            for file in (*_SOURCES, *_HEADERS):
                source = files("arcsm._native").joinpath(file).read_text(encoding="utf-8")
                Path(folder, file).write_text(source, encoding="utf-8")
            return _declared(ctypes.CDLL(str(_compile(_compiler(), Path(folder)))))
    except CompilationError as error:
        return error
    except (OSError, ValueError) as error:  # a full disk, no folder to write to, a CC that is no command, ...
        return CompilationError(f"compilation in C: {error}")


def _declared(code: ctypes.CDLL) -> ctypes.CDLL:
    """What its functions return; what they take, their callers say."""
    code.walk.restype, code.vector_step.restype = ctypes.c_double, ctypes.c_long
    code.chain.restype = code.chain_back.restype = code.chain_moments.restype = None
    for size in (code.walk_space, code.chain_space, code.chain_kept, code.vector_alignment):
        size.restype = ctypes.c_size_t
    return code


def _compiler() -> list[str]:
    """The command of the C compiler: that of the environment's CC, or the first one found."""
    wanted = shlex.split(os.environ.get("CC", ""))
    for command in [wanted] if wanted else [[name] for name in _COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise CompilationError(f"no C compiler: looked for {', '.join(wanted[:1] or _COMPILERS)}")


def _compile(compiler: list[str], folder: Path) -> Path:
    """The library, with the most of the processor that the compiler, and what it calls, can make use of."""
    made, said = folder / "made.so", ""
    sources = [str(folder / file) for file in _SOURCES]
    for native in _NATIVE:
        code, said = _run([*compiler, *_FLAGS, *native, "-o", str(made), *sources])
        if code == 0:
            return made
    lines = [line for line in said.splitlines() if "error" in line] or said.splitlines() or ["it failed"]
    raise CompilationError(f"{compiler[0]}: {lines[0].strip()}")


def _run(command: list[str]) -> tuple[int, str]:
    """Exit status and what was said on standard error; all that it has started ends with our patience."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            _, said = process.communicate(timeout=_SECONDS)
        except BaseException as error:
            with suppress(AttributeError, ProcessLookupError):  # no groups of processes here; already gone
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise CompilationError(f"{command[0]}: not done after {_SECONDS:g} seconds") from error
            raise
    return process.returncode, said
