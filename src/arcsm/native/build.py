"""A C file to a library for this very processor, kept for the next time."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared")
_NATIVE = ("-march=native", "-mcpu=native", None)  # the first that the compiler knows
_SECONDS = 120.0


class CompilationError(RuntimeError):
    """There is no compiler, or it could not do it; the message is one line."""


@lru_cache
def library(name: str) -> ctypes.CDLL:
    """The library of a C file of this package, compiled if it has not been before.

    It is kept under the user's cache folder, by a name that says what it was made of and for which processor.

    Raises:
        CompilationError: where there is no compiler, or it fails.
    """
    source = files("arcsm.native").joinpath(f"{name}.c").read_text(encoding="utf-8")
    compiler = _compiler()
    target, means = _target(compiler)
    command = [*compiler, *_FLAGS, *target]
    made_of = hashlib.sha256("\0".join([source, means, *command]).encode()).hexdigest()[:16]
    path = _folder() / f"{name}-{made_of}.so"
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # not there yet, or damaged
        _compile(command, source, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompilationError(f"{path}: {error}") from error


@lru_cache
def available() -> bool:
    """Whether the library can be had on this machine; compiles it to find out."""
    try:
        library("walk")
    except CompilationError:
        return False
    return True


def _compiler() -> list[str]:
    """The command of the C compiler: that of the environment's CC, or the first one found."""
    wanted = shlex.split(os.environ.get("CC", ""))
    for command in [wanted] if wanted else [[name] for name in _COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise CompilationError(f"no C compiler: looked for {', '.join(wanted[:1] or _COMPILERS)}")


def _target(compiler: list[str]) -> tuple[list[str], str]:
    """The option for this very processor, and what it means here: the compiler's version and all it predefines."""
    error = CompilationError(f"{compiler[0]} does not work")
    for option in _NATIVE:
        target = [] if option is None else [option]
        try:
            return target, _run([*compiler, *target, "-dM", "-E", "-x", "c", os.devnull])
        except CompilationError as failed:
            error = failed
    raise error


def _compile(command: list[str], source: str, path: Path) -> None:
    """Whole or not at all, and side by side with other processes that do the same."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written, made = Path(folder, "source.c"), Path(folder, "made.so")
        try:
            written.write_text(source, encoding="utf-8")
            _run([*command, "-o", str(made), str(written), "-lm"])
            made.replace(path)
        except OSError as error:
            raise CompilationError(f"{path.parent}: {error}") from error


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines() or [""]
        raise CompilationError(f"{command[0]}: {lines[0].strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilationError(f"{command[0]}: {error}") from error
    return done.stdout


@lru_cache
def _folder() -> Path:
    """Where libraries are kept: a folder that nobody else can write to, or one for this process alone."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arcsm"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
        owned = state.st_uid == os.getuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if owned and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: nobody's home
        pass
    alone = Path(tempfile.mkdtemp(prefix="arcsm-"))
    atexit.register(shutil.rmtree, alone, ignore_errors=True)
    return alone
