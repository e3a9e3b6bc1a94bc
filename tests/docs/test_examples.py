"""The example notebooks run, and show what they say."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from small_tables import seed_private_noise, use_small_models

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def has_few_false_alarms(found: dict[str, Any]) -> bool:
    caught = (found["selected"] & found["is_fraud"]).sum()
    return bool(caught >= 15 and found["selected"].sum() - caught <= 6)


def fills_best(found: dict[str, Any]) -> bool:
    *others, ours = sorted(found["errors"], key=found["errors"].get, reverse=True)
    return len(others) == 2 and ours == "arcsm"


def keeps_relations(found: dict[str, Any]) -> bool:
    own, public = found["findings"](found["people"]), found["findings"](found["public"][10.0])
    return bool(np.allclose(list(public.values()), list(own.values()), rtol=0.15))


def has_right_intervals(found: dict[str, Any]) -> bool:
    return bool(0.8 <= found["inside"].mean() <= 0.98)


def keeps_known_pixels(found: dict[str, Any]) -> bool:
    drawn, test = found["drawn"], found["test"][:8].unsqueeze(1)
    far = (found["test"][8:16].unsqueeze(1) - test)[..., 32:].square().mean()
    return bool((drawn[..., :32] == test[..., :32]).all() and (drawn - test)[..., 32:].square().mean() < far)


SHOWS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "odd_payments": has_few_false_alarms,
    "gaps_in_a_study": fills_best,
    "public_rows": keeps_relations,
    "predicted_intervals": has_right_intervals,
    "half_digits": keeps_known_pixels,
}


@pytest.fixture(autouse=True)
def figures() -> Any:
    plt.switch_backend("agg")
    yield
    plt.close("all")


def test_every_example_is_in_the_gallery_with_a_picture() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == SHOWS.keys()
    gallery = (EXAMPLES / "index.md").read_text(encoding="utf-8")
    for name in names:
        assert f"(../pictures/{name}.png)]({name}.py)" in gallery
        assert (EXAMPLES.parent / "pictures" / f"{name}.png").stat().st_size > 5_000


def test_an_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    runpy.run_path(str(EXAMPLES / "odd_payments.py"))
    assert plt.gcf().axes


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWS)
def test_an_example_shows_what_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed_private_noise(monkeypatch)
    assert SHOWS[name](runpy.run_path(str(EXAMPLES / f"{name}.py")))
