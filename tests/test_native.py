"""Machine code compiled on the user's machine: kept, made anew where it is damaged, refused in one line."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arcsm.native import build, walk

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler, and none is on the path"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and nothing compiled yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    build.library.cache_clear()
    build._folder.cache_clear()
    yield tmp_path / "arcsm"
    build.library.cache_clear()
    build._folder.cache_clear()


def test_it_is_compiled_once_and_kept_where_only_the_user_can_write(cache: Path) -> None:
    build.library("walk")
    (kept,) = cache.iterdir()
    assert not stat.S_IMODE(cache.stat().st_mode) & 0o022
    written = kept.stat().st_mtime_ns
    build.library.cache_clear()
    build.library("walk")
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [written]


@pytest.mark.parametrize("damage", [b"", b"\x7fELF and then nothing"])
def test_a_damaged_library_is_made_anew(cache: Path, damage: bytes) -> None:
    build.library("walk")
    (kept,) = cache.iterdir()
    kept.unlink()
    kept.write_bytes(damage)
    # another process: this one has the library that was, by its name
    code = "from arcsm.native.build import library; print(library('walk').walk_step())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
    assert len(kept.read_bytes()) > 1000


def test_a_folder_that_others_can_write_to_is_not_trusted(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    build.library("walk")
    assert list(cache.iterdir()) == []


def test_a_compiler_that_fails_is_one_line(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("""#!/bin/sh\ncase "$*" in *-o*) echo 'walk.c:1: error: it is Monday' >&2; exit 1;; esac\n""")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(build.CompilationError, match=r"error: it is Monday$"):
        build.library("walk")
    assert not any(cache.iterdir())


def test_a_compiler_that_does_not_know_this_processor_compiles_for_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "old"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *native*) echo "error: unknown option" >&2; exit 1;; esac\n'
        f'exec {shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")} "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert build.library("walk").walk_step() > 0


def test_tensors_that_it_cannot_walk_are_refused() -> None:
    one = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match="float32"):
        walk(one, one, one, one, [], False, True)


@pytest.mark.parametrize("instructions", ["", "-mavx2 -mfma", "-mavx512f -mavx512dq"])
def test_every_width_of_vectors_computes_the_same(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own for each, as a library stays as it was loaded."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if not all(flag.removeprefix("-m") in flags for flag in instructions.split()):
        pytest.skip(f"this processor has no {instructions}")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    code = f"""
import torch, warnings
from arcsm import ScoreHead
from arcsm.native import build
build._NATIVE, build._FLAGS = (None,), (*build._FLAGS, *{instructions.split()!r})
from arcsm.fused import fused_score_matching
warnings.simplefilter("error")
torch.manual_seed(0)
head = ScoreHead(3, (20, 20), sinusoids=1)
context, x, one = torch.randn(300, 3, requires_grad=True), torch.randn(300), torch.ones(())
found = []
for compiled in (False, True):
    loss = fused_score_matching(head, context, x, 0.5, one, one, one, compiled)
    found.append(torch.autograd.grad(loss, [context, *head.parameters()]))
for eager, ours in zip(*found):
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4 * eager.abs().max().item())
print(build.library("walk").walk_step())
"""
    environment = os.environ | {"CC": str(compiler)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
