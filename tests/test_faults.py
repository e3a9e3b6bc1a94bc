"""What goes wrong on real machines: signals, full disks, hostile and enormous files. Nothing is lost; it is said."""

from __future__ import annotations

import io
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import arcsm
from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead, TrainConfig, load
from arcsm._runtime import signals
from arcsm._runtime.batching import map_slices
from arcsm._runtime.signals import Terminated, raise_on_sigterm, stop_requested
from arcsm.cli import application, models
from arcsm.data import read_array, read_frame, read_images, read_table
from arcsm.training import density
from arcsm.training.checkpoint import STATE_NAME
from small_runs import COMMAND, PATIENCE, TINY, at_work, environment

# Signals ------------------------------------------------------------------------------------------------------------


def build() -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(MADE(2, 4, (8,)), ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 4))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_step_and_keeps_it(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(steps=9, batch_size=8, device="cpu", checkpoint_seconds=1e9)
    whole = build()
    arcsm.fit(whole, x, x, config)
    advance = density.DensityTask.advance

    def signalled(trainer: density.DensityTask) -> float:
        if trainer.step == 4:
            signal.raise_signal(number)  # in the middle of a step
        return advance(trainer)

    monkeypatch.setattr(density.DensityTask, "advance", signalled)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="after step 5"):
        arcsm.fit(build(), x, x, config, run=tmp_path)
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    resumed = build()
    arcsm.fit(resumed, x, x, config, run=tmp_path, resume=True)
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name


def test_a_run_that_had_stopped_early_stays_stopped(tmp_path: Path) -> None:
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(
        steps=4000, batch_size=8, learning_rate=5e-2, validate_every=2, patience=2, ema=0.0, device="cpu"
    )
    first, second = build(), build()
    result = arcsm.fit(first, x, x[:8], config, run=tmp_path)
    assert result.stopped_early
    again = arcsm.fit(second, x, x[:8], config, run=tmp_path, resume=True)
    assert (again.steps, again.stopped_early) == (result.steps, True)
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, second.state_dict()[name]), name


def test_a_second_signal_stops_at_once() -> None:
    with stop_requested() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_command_that_is_terminated_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arcsm.save(build(), tmp_path / "model.safetensors")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "scores.csv").write_text("of before")
    written = []

    def terminated(*_: object) -> None:
        written.extend(path.name for path in tmp_path.iterdir() if "tmp" in path.name)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(models, "log_probs", terminated)
    command = ["arcsm", "score", *(str(tmp_path / name) for name in ("model.safetensors", "rows.csv"))]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "scores.csv")])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            application.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 143
    assert capsys.readouterr().err == "arcsm: terminated\n"
    assert len(written) == 1  # it came in the middle
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "rows.csv", "scores.csv"]
    assert (tmp_path / "scores.csv").read_text() == "of before"


def test_what_ends_a_command_does_not_end_its_cleaning_up() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []
    try:
        raise_on_sigterm()
        signal.raise_signal(signal.SIGTERM)
    except Terminated:
        signal.raise_signal(signal.SIGTERM)
        cleaned.append(True)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert cleaned == [True]


def test_a_signal_that_was_lost_while_an_object_was_dropped_counts_when_it_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    monkeypatch.setattr(signals, "_CLEANING_UP", 0.05)
    try:
        raise_on_sigterm()
        Dropped()
        assert len(lost) == 1
        time.sleep(0.1)
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("started", [True, False])
def test_one_of_several_processes_is_ended_by_the_signal_itself(started: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(application, "was_started", lambda: started)
    monkeypatch.setattr(application, "run", lambda _: 0)
    try:
        with pytest.raises(SystemExit):
            application.main()
        # alone, what comes while it ends does not cut its tidying up short
        assert signal.getsignal(signal.SIGTERM) == (before if started else signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_who_starts_several_processes_is_terminated_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def terminated(*_: object) -> int:
        raise Terminated

    monkeypatch.setattr(application, "start", terminated)
    command = ["train", "toy-rings", "--out", str(tmp_path / "run"), "--devices", "2"]
    assert application.run(command) == 143
    assert capsys.readouterr().err == "arcsm: terminated\n"


def test_parts_that_have_not_begun_are_not_waited_for() -> None:
    begun = []

    def part(rows: slice) -> None:
        begun.append(rows)
        time.sleep(0.0 if len(begun) == 1 else 0.05)
        raise Terminated

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(Terminated):
            map_slices(part, [slice(0, 1)] * 200, torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    assert len(begun) < 200


#: Threads give way after a microsecond, so that some are still on their way when the first part fails.
_FAILS_AT_ONCE = """
import sys, torch
from arcsm._runtime.batching import map_slices

def part(rows):
    raise KeyError(rows.start)

torch.set_num_threads(3)
sys.setswitchinterval(1e-6)
for _ in range(300):
    try:
        map_slices(part, [slice(0, 1), slice(1, 2)], torch.device("cpu"))
    except KeyError as error:
        assert error.args == (0,)
print(torch.get_num_threads())
"""


def test_a_part_that_fails_at_once_leaves_no_thread_waiting() -> None:
    command = [sys.executable, "-c", _FAILS_AT_ONCE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_one_of_several_processes_takes_all_signals_as_one() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with stop_requested(patient=True) as asked:
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
            assert asked()
        signal.raise_signal(signal.SIGTERM)  # would end the process
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with stop_requested(patient=True):
        pass
    assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    try:
        with pytest.raises(KeyboardInterrupt), stop_requested(patient=True):
            raise KeyboardInterrupt  # another was asked
        signal.raise_signal(signal.SIGTERM)  # would end the process
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_PATIENT = """
import sys
from arcsm._runtime import signals
from arcsm._runtime.signals import stop_requested

with stop_requested(patient=True) as asked:
    print("ready", flush=True)
    sys.stdin.read()
    print(asked())
"""


def test_a_signal_may_come_while_another_is_taken() -> None:
    """By chance: what takes a lock in its handler comes through sometimes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", _PATIENT], text=True, **pipes) as patient:
        assert patient.stdout is not None
        assert patient.stdout.readline() == "ready\n"
        for _ in range(10_000):  # some of them while the handler runs
            patient.send_signal(signal.SIGTERM)
            time.sleep(1e-5)
        try:
            said, errors = patient.communicate(timeout=60)
        finally:
            patient.kill()
    assert (said, errors) == ("True\n", "")


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (8, 1e9))
    advance = density.DensityTask.advance

    def signalled(trainer: density.DensityTask) -> float:
        if trainer.step == 2:
            signal.raise_signal(signal.SIGINT)
        return advance(trainer)

    monkeypatch.setattr(density.DensityTask, "advance", signalled)
    assert application.run(["train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "interrupted after step 3; continue with: arcsm train" in said
    again = said.partition("continue with: arcsm ")[2].split()
    monkeypatch.undo()
    assert application.run(again) == 0
    assert load(tmp_path / "run").features == 64


@pytest.mark.slow
def test_thirty_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (6000, 0.0))  # a checkpoint after every step: most kills hit one
    moments = random.Random(0)

    def start(folder: str) -> AbstractContextManager[subprocess.Popen[str]]:
        return at_work(*COMMAND, "train", tmp_path / "tiny.yaml", "--out", tmp_path / folder, "--resume")

    state = tmp_path / "killed" / STATE_NAME
    killed = 0
    while killed < 30:
        begun = state.stat().st_mtime_ns if state.exists() else 0
        with start("killed") as process:
            while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == begun):
                time.sleep(0.01)
            time.sleep(moments.uniform(0.0, 0.4))
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
        killed += 1
    assert killed == 30
    for folder in ("killed", "whole"):
        with start(folder) as process:
            said = process.communicate(timeout=4 * PATIENCE)
        assert process.returncode == 0, said
    mine, expected = (load(tmp_path / folder).state_dict() for folder in ("killed", "whole"))
    for name, weights in expected.items():
        assert torch.equal(weights, mine[name]), name


# Disks --------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (20, 1e9))
    run = [*COMMAND, "train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]
    subprocess.run(run, env=environment(), check=True, capture_output=True, timeout=PATIENCE)
    kept = (tmp_path / "run" / "model.safetensors").read_bytes()

    # writes fail, as on a full disk, rather than kill; in blocks of 512 bytes
    full = ["sh", "-c", 'trap "" XFSZ; ulimit -f 4; exec "$@"', "sh"]
    sample = [*COMMAND, "sample", str(tmp_path / "run"), "-n", "64", "--out", str(tmp_path / "run" / "model.npy")]
    train = [*run[:-1], str(tmp_path / "new")]
    watched = [
        *run[:-1],
        str(tmp_path / "watched"),
        "--set",
        "train.tensorboard=true",
        "--set",
        "train.validate_every=1",
    ]
    for command, file in (
        (sample, tmp_path / "run" / "model.npy"),
        (train, tmp_path / "new" / "state.safetensors"),
        (watched, tmp_path / "watched" / "tensorboard"),
    ):
        with at_work(*full, *command) as done:
            said = done.communicate(timeout=PATIENCE)[1]
        assert done.returncode == 1, said
        assert f"{file}: cannot be written" in said
        assert len(said.strip().splitlines()) == 1
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == kept
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if "tmp" in path.name) == []
    assert not (tmp_path / "run" / "model.npy").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY % (3, 1e9))
    (tmp_path / "file").write_text("in the way")
    assert application.run(["train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "file" / "run")]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said
    assert "Traceback" not in said


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write anywhere; these tests may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_folders_that_may_only_be_read_are_named_and_left_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as name:  # that of pytest is closed to others
        folder = Path(name)
        rows, gaps, run = folder / "rows.csv", folder / "gaps.csv", folder / "run"
        lines = [f"{i % 7},{i % 5 + 0.5 * i}" for i in range(60)]
        rows.write_text("\n".join(["a,b", *lines]))
        gaps.write_text("\n".join(["a,b", *lines, "3,"]))
        (folder / "tiny.yaml").write_text(TINY.replace("{kind: digits}", f"{{kind: table, path: {rows}}}") % (4, 1e9))
        assert application.run(["train", str(folder / "tiny.yaml"), "--out", str(run)]) == 0
        assert application.run(["report", str(run), "--samples", "4"]) == 0  # what is imported late is now there
        before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        capsys.readouterr()
        commands = [
            ["train", str(folder / "tiny.yaml"), "--out", str(folder / "new")],
            ["train", str(run / "config.yaml"), "--out", str(run), "--resume"],
            ["sample", str(run), "-n", "4", "--out", str(folder / "s.npy")],
            ["score", str(run), str(rows), "--out", str(folder / "scores.csv")],
            ["detect", str(rows), str(rows), "--out", str(folder / "found.csv")],
            ["impute", str(gaps), "--out", str(folder / "filled.csv")],
            ["report", str(run), "--samples", "4", "--out", str(folder / "page.html")],
            ["reproduce", "modes", "--preset", "smoke", "--out", str(folder / "r"), "--work", str(folder / "w")],
        ]
        for command in commands:
            with as_nobody():
                code = application.run(command)
            said = capsys.readouterr().err.strip().splitlines()
            assert code == 1, command
            assert len(said) == 1, said
            assert said[0].startswith(f"arcsm: {folder}"), said
            assert "ermission denied" in said[0], said
        assert before == {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)


# Hostile and enormous files -----------------------------------------------------------------------------------------


def zip_bomb(path: Path) -> Path:
    """An archive of a few kilobytes that says it unpacks to a tebibyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        content = io.BytesIO()
        np.save(content, np.zeros((1000, 10)))
        archive.writestr("x.npy", content.getvalue())
    raw = bytearray(path.read_bytes())
    size = struct.pack("<I", 0xFFFFFFFE)
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):  # of the directory, and of the member
        place = raw.find(signature) + offset
        raw[place : place + 4] = size
    path.write_bytes(bytes(raw))
    return path


def huge_header(path: Path) -> Path:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10)})
    path.write_bytes(content.getvalue() + bytes(100))
    return path


def wide_csv(path: Path) -> Path:
    path.write_text("\n".join([",".join(f"c{i}" for i in range(10**6)), ",".join(["1"] * 10**6)]) + "\n")
    return path


def huge_image(folder: Path) -> Path:
    folder.mkdir()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return folder


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "zip bomb": (lambda p: read_array(zip_bomb(p / "a.npz"), "x"), r"a\.npz\[x\]: takes 8\.0 GiB to unpack, but"),
    "header of 73 TiB": (lambda p: read_array(huge_header(p / "a.npy")), r"a\.npy: cannot be read"),
    "a million columns": (
        lambda p: read_table(wide_csv(p / "a.csv")),
        "expected at most 100,000 columns, got 1,000,000",
    ),
    "the same with names": (lambda p: read_frame(wide_csv(p / "a.csv")), "expected at most 100,000 columns"),
    "900 megapixels": (lambda p: read_images(huge_image(p / "a")), r"huge\.png: cannot be read"),
}


@pytest.mark.parametrize("name", CASES)
def test_enormous_files_are_refused_before_they_fill_the_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcsm._runtime.memory.free_memory", lambda: 4 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, complaint = CASES[name]
    with pytest.raises(ValueError, match=complaint):
        read(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_model_is_refused_or_right(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arcsm.save(build(), path)
    whole = path.read_bytes()
    generator = random.Random(seed)
    for _ in range(20):
        damaged = bytearray(whole)
        header = struct.unpack("<Q", whole[:8])[0]
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(8 + header)] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            found = arcsm.load(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 (some bits make sense)
            assert "\n" not in str(error)  # noqa: PT017
        else:  # a bit of a name or number that still makes sense
            assert bool(found.log_prob(torch.zeros(1, found.features)).isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("target", ["config", "table", "images", "model"])
def test_a_minute_of_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="needs the extra fuzz")
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "fuzz", target, "60"]
    more = {**environment(), "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=more, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr
