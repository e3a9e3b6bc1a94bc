"""The library of compiled C: one that came with the package, or else one compiled for the processor at hand.

Wheels have libraries for several processors (see ``hatch_build.py``); the best one that runs here is loaded. Without
them, or if the environment variable ``CC`` names a compiler, every process compiles anew, in a temporary
folder, all sources at the same time. That takes a few seconds, and no cached binary can become stale, corrupt or
untrusted.
"""

import ctypes
import os
import tempfile
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from threading import Lock, Thread

import torch

from arcsm._native import recipe
from arcsm._native.interface import declare
from arcsm._native.recipe import CompilationError
from arcsm._native.verification import first_wrong_result
from arcsm.errors import warn

_PREBUILT = "prebuilt"  # folder of the libraries that came with the package
_LOCK = Lock()  # of the compilation


def library() -> ctypes.CDLL:
    """Return the library, compiled on the first call; if that fails, every call raises the `CompilationError`."""
    result = _load_library()
    if isinstance(result, CompilationError):
        raise result
    return result


def available() -> bool:
    """Return whether there is a library, compiling it on the first call if none came with the package.

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


def _unlock() -> None:
    global _LOCK
    _LOCK = Lock()


if hasattr(os, "register_at_fork"):  # a thread that compiles does not go on in a forked process
    os.register_at_fork(after_in_child=_unlock)


@lru_cache
def _compiled_library() -> ctypes.CDLL | CompilationError:
    prebuilt = None if os.environ.get("CC") else prebuilt_library()
    if prebuilt is not None:
        return prebuilt
    try:
        with tempfile.TemporaryDirectory(prefix="arcsm-", ignore_cleanup_errors=True) as folder:
            for file in (*recipe.SOURCES, *recipe.HEADERS):
                source = files("arcsm._native").joinpath(file).read_text(encoding="utf-8")
                Path(folder, file).write_text(source, encoding="utf-8")
            compiler, output = recipe.find_compiler(), Path(folder, "arcsm.so")
            code = ctypes.CDLL(str(recipe.compile_library(compiler, Path(folder), recipe.OF_THIS_PROCESSOR, output)))
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


def prebuilt_library() -> ctypes.CDLL | None:
    """Return the best library in the package that this processor runs and that gives right numbers, if there is one."""
    names, capability = list(recipe.variants()), torch.backends.cpu.get_cpu_capability().lower()
    first = names.index(capability) if capability in names else len(names) - 1
    for name in names[first:]:
        resource = files("arcsm._native").joinpath(_PREBUILT, f"{name}.so")
        if not resource.is_file():
            continue
        try:
            with as_file(resource) as path:
                code = ctypes.CDLL(str(path))
            declare(code)
        except (OSError, AttributeError):  # for another system, or of another version
            continue
        if first_wrong_result(code) is None:
            return code
    return None
