"""Compilation of C on the user's machine: every failure is a one-line error, never a crash."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from ctypes import CDLL
from pathlib import Path
from typing import cast

import pytest
import torch

from arcsm import _native
from arcsm._native import build, recipe
from arcsm._native.verification import first_wrong_result

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, and none is on the path")


def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Replace the compiler by a shell script, in which ``$COMPILER`` is the real one."""
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\nCOMPILER={COMPILER}\n{script}\n", encoding="latin-1")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    return path


@pytest.mark.usefixtures("fresh_compilation")
def test_library_is_compiled_once_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    compiler(tmp_path, monkeypatch, f'echo call >> {calls}; exec $COMPILER "$@"')
    folder = tmp_path / "a folder, ç"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert _native.available()
    assert _native.library() is _native.library()
    assert calls.read_text() == "call\n" * (len(recipe.SOURCES) + 1)  # and to link them
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("fresh_compilation")
def test_compiler_command_may_have_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"env {COMPILER}")
    assert _native.available()


@pytest.mark.usefixtures("fresh_compilation")
@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("echo 'score_matching.c:1: error: it is Monday' >&2; exit 1", "error: it is Monday"),
        ("printf 'erreur: \xe9' >&2; exit 1", "erreur: "),
        ("exit 1", "failed silently"),
        ("exit 0", "arcsm.so"),
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
@pytest.mark.parametrize("command", ["no-such-compiler", "gcc '", "/"])
def test_invalid_compiler_command_is_an_error(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    with pytest.raises(recipe.CompilationError):
        _native.library()


@pytest.mark.usefixtures("fresh_compilation")
def test_unwritable_temporary_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    with pytest.raises(recipe.CompilationError, match="no such folder"):
        _native.library()


@pytest.mark.usefixtures("fresh_compilation")
def test_hanging_compiler_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    compiler(tmp_path, monkeypatch, f"sleep 600 & echo $! > {started}; wait")
    monkeypatch.setattr(recipe, "TIMEOUT_SECONDS", 2.0)
    started_at = time.monotonic()
    with pytest.raises(recipe.CompilationError, match="not done after 2 seconds"):
        _native.library()
    assert time.monotonic() - started_at < 60.0
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
@pytest.mark.parametrize("unknown", ["*-march=native*|*-mcpu=native*", "*-march=native*"])
def test_unsupported_processor_flags_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unknown: str
) -> None:
    script = f'case "$*" in {unknown}) echo "Error: no such instruction" >&2; exit 1;; esac; exec $COMPILER "$@"'
    compiler(tmp_path, monkeypatch, script)
    assert _native.available()


@pytest.mark.usefixtures("fresh_compilation")
@pytest.mark.parametrize(
    "flags", ["-ffast-math", "-funsafe-math-optimizations", "-Ofast", "-fvisibility=hidden", "-fsanitize=undefined"]
)
def test_harmful_flags_of_the_environment_are_undone(
    flags: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("CC", f"{COMPILER} {flags}")
    assert _native.available()
    assert torch.tensor(1e-40) * 1.0 > 0.0  # loading some libraries makes a processor flush small numbers to zero
    assert not recwarn.list


@pytest.mark.usefixtures("fresh_compilation")
def test_a_library_with_wrong_numbers_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slightly_wrong = 'for source; do :; done; sed -i s/0.693359375f/0.6934f/ "${source%/*}/kernels.h"'
    compiler(tmp_path, monkeypatch, f'{slightly_wrong}; exec $COMPILER "$@"')
    with pytest.warns(UserWarning, match=r"torch takes its place: \w+ gives wrong numbers") as warnings:
        assert not _native.available()
    assert not _native.available()
    assert len(warnings) == 1
    with pytest.raises(recipe.CompilationError, match="wrong numbers; remove flags from CC"):
        _native.library()


@pytest.mark.usefixtures("fresh_compilation")
def test_a_library_without_a_function_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path, monkeypatch, 'exec $COMPILER "$@" -fvisibility=hidden')
    with pytest.raises(recipe.CompilationError, match="score_matching_forward_backward"):
        _native.library()


@pytest.mark.parametrize(
    "broken",
    [
        "score_matching_forward_backward",
        "latent_chain_forward",
        "latent_chain_backward",
        "latent_chain_moments",
        "score_points",
        "score_levels_at_points",
        "score_levels_follow",
        "score_levels_interpolate",
        "piecewise_integrate",
        "piecewise_errors",
        "piecewise_cell_errors",
        "piecewise_icdf",
        "value_sums_forward",
        "value_sums_backward",
        "set_network_forward",
        "set_network_backward",
        "context_walk",
        "normal_given_set",
        "normal_in_order",
        "level_losses",
    ],
)
def test_the_numbers_of_every_function_are_verified(broken: str) -> None:
    class Library:
        def __getattr__(self, name: str) -> object:
            return (lambda *_: 0.0) if name == broken else getattr(_native.library(), name)

    assert first_wrong_result(_native.library()) is None
    assert broken.startswith(first_wrong_result(cast(CDLL, Library())) or "none")


@pytest.mark.parametrize(
    ("instructions", "step"), [("-mno-avx", 8), ("-mavx2 -mfma -mno-avx512f", 16), ("-mavx512f -mavx512dq", 64)]
)
def test_every_vector_width_gives_the_same_results(instructions: str, step: int) -> None:
    """Each width runs in its own process, because a loaded library cannot be replaced."""
    if platform.machine() not in {"x86_64", "AMD64"} or not Path("/proc/cpuinfo").exists():
        pytest.skip("needs an x86-64 processor, and /proc/cpuinfo to identify it")
    flags = set(Path("/proc/cpuinfo").read_text().split())
    needed = {word.removeprefix("-m") for word in instructions.split() if not word.startswith("-mno")}
    if not needed <= flags:
        pytest.skip(f"this processor has no {instructions}")
    code = f"""
import torch, warnings
from arcsm import ScoreHead
from arcsm._native import build, recipe
recipe.OF_THIS_PROCESSOR, recipe.FLAGS = ((),), (*recipe.FLAGS, *{instructions.split()!r})
from arcsm.objectives.fused import fused_score_matching
warnings.simplefilter("error")
torch.manual_seed(0)
head = ScoreHead(3, (20, 20), sinusoids=1)
context, x, one = torch.randn(300, 3, requires_grad=True), torch.randn(300), torch.ones(())
result = []
for compiled in (False, True):
    loss = fused_score_matching(head, context, x, 0.5, one, one, one, compiled)
    result.append(torch.autograd.grad(loss, [context, *head.parameters()]))
from arcsm.implicit.networks.autoregressive_map import autoregressive_map
inputs = [torch.randn(70, 5, 9), torch.randn(70, 5), torch.randn(5, 9), torch.randn(5, 5, 9) / 2, torch.randn(5, 9) / 9]
for dtype in (torch.float64, torch.float32):  # double precision runs in torch
    leaves = [t.to(dtype).requires_grad_() for t in inputs]
    u = autoregressive_map(*leaves)
    result[dtype == torch.float32] += (u, *torch.autograd.grad(u.square().sum(), leaves))
from arcsm.conditionals.conditionals import Accuracy, Conditionals, compiled_scores
with torch.no_grad():
    for number, scores in enumerate((None, compiled_scores(head))):
        projection = head.project(context)
        conditionals = Conditionals(head, projection, (3.0, 0.1), "flow", Accuracy(1e-3), True, compiled=scores)
        result[number] += (conditionals.score(x, 0.3), conditionals.carry(x, 1e-3, up=True).x)
for in_torch, ours in zip(*result, strict=True):
    in_torch = in_torch.to(ours)
    torch.testing.assert_close(ours, in_torch, rtol=1e-4, atol=1e-4 * in_torch.abs().max().item())
print(build.library().vector_step())
"""
    environment = os.environ | {"CC": str(COMPILER)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == step


@pytest.fixture
def prebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in place of that of the libraries in the package, with one for each kind of processor."""
    monkeypatch.setattr(build, "files", lambda _: tmp_path)
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    source = Path(build.__file__).parent
    recipe.compile_library([str(COMPILER)], source, [()], folder / "portable.so")
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


@pytest.mark.usefixtures("fresh_compilation")
def test_a_library_in_the_package_needs_no_compiler(prebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "find_compiler", None)
    assert _native.available()
    build._compiled_library.cache_clear()
    monkeypatch.setenv("CC", "none")
    with pytest.raises(recipe.CompilationError):  # CC asks for another one
        _native.library()


def test_memory_and_undefined_behaviour_are_clean() -> None:
    """The checks of all functions, whose sizes are odd, with the sanitizers of the compiler."""
    runtime = subprocess.run(
        [str(COMPILER), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip("needs the address sanitizer of gcc")
    code = """
import ctypes, sys, tempfile
from pathlib import Path
from arcsm._native import interface, recipe, verification
recipe.FLAGS = (*recipe.FLAGS, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
with tempfile.TemporaryDirectory() as folder:
    path = recipe.compile_library([sys.argv[1]], Path(recipe.__file__).parent, [()], Path(folder, "checked.so"))
    code = ctypes.CDLL(str(path))
interface.declare(code)
print(verification.first_wrong_result(code))
"""
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(COMPILER)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "None"
