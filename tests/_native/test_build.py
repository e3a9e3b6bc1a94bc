"""Compilation of C on the user's machine: every failure is a one-line error, never a crash."""

import platform
import shutil
import tempfile
import time
from ctypes import CDLL
from pathlib import Path
from typing import cast

import pytest
import torch

from arcsm import _native
from arcsm._native import build, recipe
from arcsm._native.interface import declare
from arcsm._native.recipe import compile_library
from arcsm._native.verification import first_wrong_result

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, and none is on the path")
SOURCE = Path(build.__file__).parent


def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Replace the compiler by a shell script, in which ``$COMPILER`` is the real one."""
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\nCOMPILER={COMPILER}\n{script}\n", encoding="latin-1")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    return path


@pytest.mark.usefixtures("fresh_compilation")
def test_a_library_is_compiled_once_whatever_the_flags_of_the_environment_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    calls = tmp_path / "calls"
    path = compiler(tmp_path, monkeypatch, f'echo call >> {calls}; exec $COMPILER "$@"')
    monkeypatch.setenv("CC", f"{path} -Ofast -fvisibility=hidden -fsanitize=undefined")
    folder = tmp_path / "a folder, ç"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert _native.available()
    assert _native.library() is _native.library()
    assert calls.read_text() == "call\n" * (len(recipe.SOURCES) + 1)  # and to link them
    assert list(folder.iterdir()) == []
    assert torch.tensor(1e-40) * 1.0 > 0.0  # loading some libraries makes a processor flush small numbers to zero
    assert not recwarn.list


@pytest.mark.usefixtures("fresh_compilation")
@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("echo 'score_matching.c:1: error: it is Monday' >&2; exit 1", "error: it is Monday"),
        ("printf 'erreur: \xe9' >&2; exit 1", "erreur: "),
        ("exit 0", "arcsm.so"),
        (
            'while [ "$1" != -o ]; do shift; done; $COMPILER -shared -x c /dev/null -o "$2"',
            "undefined symbol",
        ),
    ],
)
def test_failing_compiler_is_a_one_line_error_and_not_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, cause: str
) -> None:
    path = compiler(tmp_path, monkeypatch, script)
    assert not _native.available()
    with pytest.raises(recipe.CompilationError, match=cause) as caught:
        _native.library()
    assert len(str(caught.value).splitlines()) == 1
    path.unlink()
    assert not _native.available()


@pytest.mark.usefixtures("fresh_compilation")
@pytest.mark.parametrize("command", ["no-such-compiler", "gcc '"])
def test_invalid_compiler_command_is_an_error(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    with pytest.raises(recipe.CompilationError):
        _native.library()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compilation")
def test_hanging_compiler_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    compiler(tmp_path, monkeypatch, f"sleep 600 & echo $! > {started}; wait")
    monkeypatch.setattr(recipe, "TIMEOUT_SECONDS", 2.0)
    with pytest.raises(recipe.CompilationError, match="not done after 2 seconds"):
        _native.library()
    child = int(started.read_text())
    for _ in range(100):  # wait until the orphan is reaped
        try:
            if ") Z" in Path(f"/proc/{child}/stat").read_text():
                return
        except OSError:  # reaped
            return
        time.sleep(0.1)
    pytest.fail("its child is still running")


@pytest.mark.usefixtures("fresh_compilation")
def test_unsupported_processor_flags_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = "*-march=native*|*-mcpu=native*"
    script = f'case "$*" in {unknown}) echo "Error: no such instruction" >&2; exit 1;; esac; exec $COMPILER "$@" -O0'
    compiler(tmp_path, monkeypatch, script)
    assert _native.available()


@pytest.mark.usefixtures("fresh_compilation")
def test_a_library_with_wrong_numbers_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slightly_wrong = 'for source; do :; done; sed -i s/0.693359375f/0.6934f/ "${source%/*}/kernels.h"'
    compiler(tmp_path, monkeypatch, f'{slightly_wrong}; exec $COMPILER "$@" -O0')
    with pytest.warns(UserWarning, match=r"torch takes its place: \w+ gives wrong numbers") as warnings:
        assert not _native.available()
    assert not _native.available()
    assert len(warnings) == 1
    with pytest.raises(recipe.CompilationError, match="wrong numbers; remove flags from CC"):
        _native.library()


VERIFIED = (
    "score_matching_forward_backward", "latent_chain_forward", "latent_chain_backward", "latent_chain_moments",
    "score_points", "score_levels_at_points", "score_levels_follow", "score_levels_interpolate", "piecewise_integrate",
    "piecewise_errors", "piecewise_cell_errors", "piecewise_icdf", "value_sums_forward", "value_sums_backward",
    "set_network_forward", "set_network_backward", "context_walk", "normal_given_set", "normal_in_order",
    "level_losses", "spline_project", "spline_values", "muon_step",
)  # fmt: skip


@pytest.mark.parametrize("broken", VERIFIED)
def test_the_numbers_of_every_function_are_verified(broken: str) -> None:
    class Library:
        def __getattr__(self, name: str) -> object:
            return (lambda *_: 0.0) if name == broken else getattr(_native.library(), name)

    assert first_wrong_result(_native.library()) is None
    assert broken.startswith(first_wrong_result(cast(CDLL, Library())) or "none")


@pytest.mark.parametrize(
    ("instructions", "step"), [("-mno-avx", 8), ("-mavx2 -mfma -mno-avx512f", 16), ("-mavx512f -mavx512dq", 64)]
)
def test_every_vector_width_gives_right_numbers(instructions: str, step: int, tmp_path: Path) -> None:
    if platform.machine() not in {"x86_64", "AMD64"} or not Path("/proc/cpuinfo").exists():
        pytest.skip("needs an x86-64 processor, and /proc/cpuinfo to identify it")
    flags = set(Path("/proc/cpuinfo").read_text().split())
    needed = {word.removeprefix("-m") for word in instructions.split() if not word.startswith("-mno")}
    if not needed <= flags:
        pytest.skip(f"this processor has no {instructions}")
    code = CDLL(
        str(compile_library([str(COMPILER)], SOURCE, [[*instructions.split(), "-O1"]], tmp_path / f"{step}.so"))
    )
    declare(code)
    assert first_wrong_result(code) is None
    assert code.vector_step() == step


@pytest.fixture(scope="module")
def portable_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library([str(COMPILER)], SOURCE, [("-O0",)], tmp_path_factory.mktemp("portable") / "portable.so")


@pytest.fixture
def prebuilt(portable_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in place of that of the libraries in the package, with one for each kind of processor."""
    monkeypatch.setattr(build, "files", lambda _: tmp_path)
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    shutil.copy(portable_library, folder)
    return folder


def test_libraries_in_the_package_are_loaded_best_first(prebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = build.ctypes.CDLL
    monkeypatch.setattr(build.ctypes, "CDLL", lambda path: loaded.append(Path(path).stem) or load(path))
    monkeypatch.setattr(recipe.platform, "machine", lambda: "x86_64")
    for name in ("avx512", "avx2"):
        (prebuilt / f"{name}.so").write_bytes(b"not a library")
    for capability, tried in (("AVX512", ["avx512", "avx2"]), ("AVX2", ["avx2"]), ("DEFAULT", []), ("unknown", [])):
        loaded.clear()
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert build.prebuilt_library() is not None
        assert loaded == [*tried, "portable"]


def test_libraries_with_wrong_numbers_and_none_at_all_are_left_out(
    prebuilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "first_wrong_result", lambda _: "piecewise")
    assert build.prebuilt_library() is None
    (prebuilt / "portable.so").unlink()
    monkeypatch.undo()
    assert build.prebuilt_library() is None  # the sources have none
