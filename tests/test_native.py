"""Machine code that is compiled on the user's machine: what goes wrong is one line, and never a crash."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from arcsm import _native
from arcsm._native import build
from arcsm.implicit import AutoregressiveEncoder, DenseTrunk
from arcsm.implicit.networks.autoregressive_map import autoregressive_map, conditional_moments

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, and none is on the path")


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What other tests have compiled is forgotten, and what this one compiles is."""
    monkeypatch.delenv("CC", raising=False)
    build._attempt.cache_clear()
    yield
    build._attempt.cache_clear()


def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """A shell script in the compiler's place; ``$COMPILER`` is the true one."""
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\nCOMPILER={COMPILER}\n{script}\n", encoding="latin-1")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    return path


@pytest.mark.usefixtures("nothing_compiled")
def test_it_is_compiled_once_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    compiler(tmp_path, monkeypatch, f'echo call >> {calls}; exec $COMPILER "$@"')
    folder = tmp_path / "a folder, ç"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert _native.available()
    assert _native.library() is _native.library()
    assert calls.read_text() == "call\n"
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("nothing_compiled")
def test_a_compiler_with_arguments_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"env {COMPILER}")
    assert _native.available()


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("echo 'walk.c:1: error: it is Monday' >&2; exit 1", "error: it is Monday"),
        ("printf 'erreur: \xe9' >&2; exit 1", "erreur: "),
        ("exit 1", "it failed"),
        ("exit 0", "made.so"),
    ],
)
def test_a_compiler_that_fails_is_one_line_and_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, cause: str
) -> None:
    path = compiler(tmp_path, monkeypatch, script)
    assert not _native.available()
    with pytest.raises(build.CompilationError, match=cause) as caught:
        _native.library()
    assert len(str(caught.value).splitlines()) == 1
    path.unlink()
    assert not _native.available()


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("command", ["no-such-compiler", "gcc '", "/"])
def test_a_command_that_is_none_is_one_line(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    with pytest.raises(build.CompilationError):
        _native.library()


@pytest.mark.usefixtures("nothing_compiled")
def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    with pytest.raises(build.CompilationError, match="no such folder"):
        _native.library()


@pytest.mark.usefixtures("nothing_compiled")
def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    compiler(tmp_path, monkeypatch, f"sleep 600 & echo $! > {started}; wait")
    monkeypatch.setattr(build, "_SECONDS", 5.0)
    begun = time.monotonic()
    with pytest.raises(build.CompilationError, match="not done after 5 seconds"):
        _native.library()
    assert time.monotonic() - begun < 60.0
    child = int(started.read_text())
    for _ in range(100):  # until whoever inherits it has seen that it ended
        try:
            if ") Z" in Path(f"/proc/{child}/stat").read_text():
                return
        except OSError:  # there is none any more
            return
        time.sleep(0.1)
    pytest.fail("its child goes on")


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("unknown", ["*-march=native*|*-mcpu=native*", "*-march=native*"])
def test_what_the_compiler_or_its_assembler_does_not_know_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unknown: str
) -> None:
    script = f'case "$*" in {unknown}) echo "Error: no such instruction" >&2; exit 1;; esac; exec $COMPILER "$@"'
    compiler(tmp_path, monkeypatch, script)
    assert _native.available()


def arguments(**changes: Tensor | list[Tensor] | bool) -> dict[str, object]:
    """A walk of five points through layers of four and three units."""
    sizes = [(4, 3 + 2), (4,), (3, 4), (3,), (1, 3), (1,)]
    given: dict[str, object] = {
        "context": torch.randn(5, 3),
        "others": torch.randn(5, 2),
        "slopes": torch.ones(5, 1),
        "points": torch.randn(6, 5),
        "parameters": [torch.randn(size) for size in sizes],
        "residual": False,
        "tangent": True,
    }
    return given | changes


WEIGHTS = [torch.randn(4, 5), torch.randn(4), torch.randn(1, 4), torch.randn(1)]


@pytest.mark.parametrize(
    "changes",
    [
        {"context": torch.randn(5, 4)},
        {"context": torch.randn(6, 3)},
        {"context": torch.randn(15)},
        {"others": torch.randn(4, 2)},
        {"slopes": torch.ones(5, 3)},
        {"slopes": torch.ones(1, 1)},
        {"points": torch.randn(5, 5)},
        {"points": torch.randn(6, 4)},
        {"parameters": []},
        {"parameters": WEIGHTS[2:]},
        {"parameters": WEIGHTS[:3]},
        {"parameters": [WEIGHTS[0], torch.randn(3), *WEIGHTS[2:]]},
        {"parameters": [WEIGHTS[0].T.contiguous(), *WEIGHTS[1:]]},
        {"parameters": [*WEIGHTS[:2], torch.randn(2, 4), torch.randn(2)]},
        {"residual": True},
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(changes: dict[str, Tensor | list[Tensor] | bool]) -> None:
    _native.walk(**arguments())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not belong together"):
        _native.walk(**arguments(**changes))  # type: ignore[arg-type]


def test_tensors_that_it_cannot_walk_are_refused() -> None:
    with pytest.raises(TypeError, match="float32"):
        _native.walk(**arguments(others=torch.randn(5, 2, dtype=torch.float64)))  # type: ignore[arg-type]


def test_no_points_give_nothing() -> None:
    none = {"context": torch.empty(0, 3), "others": torch.empty(0, 2), "slopes": torch.empty(0, 1)}
    loss, by_context, gradients = _native.walk(**arguments(**none, points=torch.empty(6, 0)))  # type: ignore[arg-type]
    assert loss == 0.0
    assert by_context.shape == (0, 3)
    assert all(bool((gradient == 0.0).all()) for gradient in gradients)


def latents(rows: int, count: int, units: int) -> list[Tensor]:
    """What a chain is made of, as :func:`arcsm._native.chain` takes it."""
    shapes = [(rows, count, units), (rows, count), (count, units), (count, count, units), (count, units)]
    fixed, noise, of_noise, of_latents, output = (torch.randn(shape) for shape in shapes)
    return [fixed, noise, of_noise, of_latents / count**0.5, output / units]


def chain_and_gradients(given: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    given = [t.to(dtype).requires_grad_() for t in given]
    u = autoregressive_map(*given)
    downstream = torch.linspace(-1.0, 1.0, u.numel(), dtype=dtype).view_as(u)
    return [u.detach(), *torch.autograd.grad((u * downstream).sum(), given)]


@pytest.mark.parametrize(("rows", "count", "units"), [(1, 1, 1), (5, 3, 7), (64, 8, 32), (129, 16, 32), (300, 4, 33)])
def test_a_chain_of_latents_and_its_way_back(
    rows: int, count: int, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against double precision, which walks in torch."""
    given, calls, chain = latents(rows, count, units), [], _native.chain
    exact = chain_and_gradients(given, torch.float64)
    monkeypatch.setattr(_native, "chain", lambda *tensors: calls.append(len(tensors[0])) or chain(*tensors))
    for wanted, found in zip(exact, chain_and_gradients(given, torch.float32), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0.0, atol=5e-6 * max(1.0, wanted.abs().max().item()))
    assert calls == [rows]


@pytest.mark.parametrize(("rows", "count", "units"), [(1, 1, 1), (5, 3, 7), (129, 16, 32), (600, 4, 33), (0, 3, 4)])
def test_the_moments_of_conditionals(rows: int, count: int, units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against double precision, which walks in torch."""
    fixed, u, of_noise, of_latents, output = latents(rows, count, units)
    given = [fixed, u, of_noise, of_latents, 5.0 * output]
    calls, moments = [], _native.chain_moments
    exact = conditional_moments(*(t.double() for t in given))
    monkeypatch.setattr(_native, "chain_moments", lambda *args: calls.append(len(args[0])) or moments(*args))
    for wanted, found in zip(exact, conditional_moments(*given), strict=True):
        assert found.shape == (rows, count)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert calls == [rows]


def test_moments_of_what_does_not_belong_together_are_refused() -> None:
    given = latents(5, 3, 4)
    with pytest.raises(ValueError, match="these shapes do not belong together"):
        _native.chain_moments(given[0], given[1][:4], *given[2:], [0.0], [1.0])
    for nodes, weights in (([], []), ([0.0] * 17, [0.1] * 17), ([0.0, 1.0], [1.0])):
        with pytest.raises(ValueError, match="nodes: expected 1 to 16 with a share each"):
            _native.chain_moments(*given, nodes, weights)


def test_a_chain_of_rows_that_lie_anywhere() -> None:
    fixed, noise, *weights = latents(10, 3, 4)
    spread = torch.randn(10, 6)
    spread[:, ::2] = noise
    wanted = _native.chain(fixed, noise, *weights).u
    assert torch.equal(
        _native.chain(fixed.transpose(0, 1).contiguous().transpose(0, 1), spread[:, ::2], *weights).u, wanted
    )


def test_a_chain_of_small_sums_keeps_their_digits() -> None:
    fixed = torch.logspace(-6.0, 0.5, 50).unsqueeze(-1).unsqueeze(-1)
    zero, one = torch.zeros(50, 1), torch.ones(1, 1)
    found = _native.chain(fixed, zero, one, one.unsqueeze(0), one).u
    torch.testing.assert_close(found.double(), fixed.double().tanh().squeeze(-1), rtol=1e-6, atol=0.0)


def test_chains_of_many_rows_are_shared_by_threads() -> None:
    given, threads = latents(3000, 3, 4), torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(chain_and_gradients(given, torch.float32))
            assert len(_native.chain(*given).kept) == count
    finally:
        torch.set_num_threads(threads)
    for one, several in zip(*found, strict=True):
        torch.testing.assert_close(several, one, rtol=1e-5, atol=1e-5 * one.abs().max().item())


def test_a_chain_of_no_rows() -> None:
    assert [t.shape for t in chain_and_gradients(latents(0, 3, 4), torch.float32)] == [
        (0, 3), (0, 3, 4), (0, 3), (3, 4), (3, 3, 4), (3, 4),
    ]  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_chain_keeps_what_is_not_a_number_to_its_row(value: float) -> None:
    given = latents(70, 4, 5)
    given[1][66, 1] = value
    u = _native.chain(*given).u
    wrong = ~u.isfinite()
    assert wrong[66].tolist() == [False, True, True, True] if value != value else bool(wrong[66, 1])
    assert not bool(wrong[torch.arange(70) != 66].any())


def test_what_stands_in_for_tensors_is_drawn_in_torch() -> None:
    encoder = AutoregressiveEncoder(DenseTrunk(5, (16,)), 3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert encoder(torch.randn(4, 5), torch.randn(4, 7, 3)).shape == (4, 7, 3)
    exported = torch.export.export(encoder, (torch.randn(4, 5), torch.randn(4, 7, 3))).module()
    x, noise = torch.randn(4, 5), torch.randn(4, 7, 3)
    with torch.no_grad():
        torch.testing.assert_close(exported(x, noise), encoder(x, noise))


@pytest.mark.parametrize("wrong", ["by_u of another shape", "by_u of doubles", "u of fewer rows", "kept of fewer rows"])
def test_the_way_back_takes_what_belongs_to_it_alone(wrong: str) -> None:
    given = latents(150, 3, 4)
    there, by_u = _native.chain(*given), torch.ones(150, 3)
    _native.chain_back(by_u, *given[1:], there)
    fewer = _native.chain(given[0][:50], given[1][:50], *given[2:])
    arguments = {
        "by_u of another shape": (torch.ones(1, 1), there),
        "by_u of doubles": (by_u.double(), there),
        "u of fewer rows": (by_u, _native.Chained(fewer.u, there.kept)),
        "kept of fewer rows": (by_u, _native.Chained(there.u, fewer.kept)),
    }[wrong]
    with pytest.raises((ValueError, TypeError), match=r"expected|belong"):
        _native.chain_back(arguments[0], *given[1:], arguments[1])


@pytest.mark.parametrize("place", range(5))
def test_chains_of_shapes_that_do_not_belong_together_are_refused(place: int) -> None:
    given = latents(5, 3, 7)
    _native.chain(*given)
    with pytest.raises(ValueError, match="do not belong together"):
        _native.chain(*given[:place], given[place][:-1], *given[place + 1 :])
    with pytest.raises(TypeError, match="float32"):
        _native.chain(*given[:place], given[place].double(), *given[place + 1 :])


@pytest.mark.usefixtures("nothing_compiled")
def test_without_a_compiler_latents_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given = latents(20, 5, 6)
    in_c = chain_and_gradients(given, torch.float32)
    monkeypatch.setenv("CC", "no-such-compiler")
    build._attempt.cache_clear()
    for wanted, found in zip(in_c, chain_and_gradients(given, torch.float32), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("instructions", "step"), [("-mno-avx", 8), ("-mavx2 -mfma -mno-avx512f", 16), ("-mavx512f -mavx512dq", 64)]
)
def test_every_width_of_vectors_computes_the_same(instructions: str, step: int) -> None:
    """In a process of its own for each, as a library stays as it was loaded."""
    if platform.machine() not in {"x86_64", "AMD64"} or not Path("/proc/cpuinfo").exists():
        pytest.skip("is about processors of x86-64, and asks Linux which one this is")
    flags = set(Path("/proc/cpuinfo").read_text().split())
    needed = {word.removeprefix("-m") for word in instructions.split() if not word.startswith("-mno")}
    if not needed <= flags:
        pytest.skip(f"this processor has no {instructions}")
    code = f"""
import torch, warnings
from arcsm import ScoreHead
from arcsm._native import build
build._NATIVE, build._FLAGS = ((),), (*build._FLAGS, *{instructions.split()!r})
from arcsm.objectives.fused import fused_score_matching
warnings.simplefilter("error")
torch.manual_seed(0)
head = ScoreHead(3, (20, 20), sinusoids=1)
context, x, one = torch.randn(300, 3, requires_grad=True), torch.randn(300), torch.ones(())
found = []
for compiled in (False, True):
    loss = fused_score_matching(head, context, x, 0.5, one, one, one, compiled)
    found.append(torch.autograd.grad(loss, [context, *head.parameters()]))
from arcsm.implicit.networks.autoregressive_map import autoregressive_map
given = [torch.randn(70, 5, 9), torch.randn(70, 5), torch.randn(5, 9), torch.randn(5, 5, 9) / 2, torch.randn(5, 9) / 9]
for dtype in (torch.float64, torch.float32):  # the former in torch
    leaves = [t.to(dtype).requires_grad_() for t in given]
    u = autoregressive_map(*leaves)
    found[dtype == torch.float32] += (u, *torch.autograd.grad(u.square().sum(), leaves))
for in_torch, ours in zip(*found, strict=True):
    in_torch = in_torch.to(ours)
    torch.testing.assert_close(ours, in_torch, rtol=1e-4, atol=1e-4 * in_torch.abs().max().item())
print(build.library().vector_step())
"""
    environment = os.environ | {"CC": str(COMPILER)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == step
