"""Progress is one bar with an estimate on a terminal, and a line every half minute elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from arcsm._runtime import progress
from arcsm._runtime.progress import one_command, track

Wait = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Return a function that moves the clock of the progress forward, without waiting."""
    now = 1_000.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(progress, "monotonic", lambda: now)
    return wait


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines that were printed on standard error, after checking that nothing else was printed."""
    output, error = capsys.readouterr()
    assert output == ""
    return error.splitlines()


def test_a_line_appears_every_half_minute(wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    with track("fitting", 10, enabled=True) as advance:
        for _ in range(10):
            wait(12.0)
            advance(note="loss 3")
    assert lines(capsys) == [
        "arcsm: fitting 30 %, about 84 s left, loss 3",
        "arcsm: fitting 60 %, about 48 s left, loss 3",
        "arcsm: fitting 90 %, about 12 s left, loss 3",
    ]


def test_a_command_of_many_short_phases_prints_as_if_it_were_one(
    wait: Wait, capsys: pytest.CaptureFixture[str]
) -> None:
    with one_command():
        for name in ("reading", "fitting", "scoring", "drawing"):
            with track(name, 2, enabled=True) as advance:
                wait(9.0)
                advance()
    assert lines(capsys) == ["arcsm: drawing 50 %, about 9 s left"]


def test_a_track_inside_another_refines_one_step(wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    with track("fitting", 100, enabled=True) as work, work.part(80), track("training", 4, enabled=True) as advance:
        for _ in range(3):
            wait(30.0)
            advance()
    assert lines(capsys) == [f"arcsm: fitting {done} %, about {left} left" for done, left in
                             ((20, "2 min"), (40, "2 min"), (60, "60 s"))]  # fmt: skip


def test_parts_take_as_many_steps_as_their_size_and_progress_never_goes_back() -> None:
    with track("scoring", 6, enabled=True) as work:
        seen = []
        for part in work.over(["ab", "cdef"], len):
            for _ in range(2):
                with track("inner", 2) as advance:
                    seen.append(work.completed)
                    advance()
                    seen.append(work.completed)
            assert part
        assert work.fraction == 1.0
    assert seen == [0.0, 1.0, 1.0, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_a_terminal_shows_an_estimate_after_the_first_step(wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name, value in {"TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with track("fitting", 4_000, enabled=True) as advance:
        wait(0.01)
        advance(note="loss 3")
    assert "1/4000" in terminal.getvalue()
    assert "about 40 s left" in terminal.getvalue()
    assert "loss 3" in terminal.getvalue()
    assert "arcsm:" not in terminal.getvalue()
