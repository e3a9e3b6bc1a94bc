"""The registry: registration of every kind of part, look-up by name, and parts of other packages."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

import arcsm
from arcsm import MADE, Context, GaussianHead, objectives, registry


@pytest.fixture(autouse=True)
def restored_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the parts that a test registers."""
    # a private name, because nothing but a test forgets parts
    monkeypatch.setattr(registry, "_PARTS", {seam: dict(registry.parts(seam)) for seam in registry._PARTS})


class EntryPoint:
    """An entry point of an installed package."""

    def __init__(self, part: Any) -> None:
        self.part, self.value = part, f"package.parts:{getattr(part, '__name__', part)}"

    def load(self) -> Any:
        if isinstance(self.part, Exception):
            raise self.part
        return self.part


def install(monkeypatch: pytest.MonkeyPatch, *parts: Any) -> list[str]:
    """Pretend that packages with these entry points are installed; return the groups that are looked up."""
    groups: list[str] = []

    def entry_points(group: str) -> list[EntryPoint]:
        groups.append(group)
        return [EntryPoint(part) for part in parts]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(registry, "_entry_points_loaded", False)
    return groups


class TaggedMADE(MADE):
    pass


class TaggedHead(GaussianHead):
    pass


def halved(model: Any, x: Tensor, condition: Any = None, generator: Any = None) -> Tensor:
    return 0.5 * objectives.csm(model, x, condition=condition, generator=generator)


def median(conditionals: Any, generator: Any = None) -> Tensor:
    return conditionals.icdf(conditionals.projection.new_full((len(conditionals),), 0.5))


PARTS: dict[registry.Seam, Any] = {"context": TaggedMADE, "head": TaggedHead, "objective": halved, "sampler": median}


@pytest.mark.parametrize("seam", PARTS)
def test_a_registered_part_is_found_by_its_name(seam: registry.Seam) -> None:
    part = PARTS[seam]
    assert registry.seam_of(part) == seam
    with pytest.raises(ValueError, match=f"{seam}: expected one of .*, got '{part.__name__}'"):
        registry.find(seam, part.__name__)
    assert arcsm.register(part) is part  # a decorator
    assert registry.find(seam, part.__name__) is registry.parts(seam)[part.__name__] is part


@pytest.mark.parametrize("part", [3, int, lambda x: x, MADE(2, 2, (4,))])
def test_nothing_but_parts_can_be_registered(part: Any) -> None:
    with pytest.raises(ValueError, match="part: expected a Context, a Head, a ConditionNet, an objective") as error:
        arcsm.register(part)
    assert "\n" not in str(error.value)


def test_an_unfinished_class_is_rejected_with_its_missing_methods() -> None:
    class Unfinished(Context):
        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            return x

    with pytest.raises(ValueError, match="register: Unfinished does not define begin, step"):
        arcsm.register(Unfinished)


def test_another_part_of_the_same_name_is_rejected() -> None:
    def csm(model: Any, x: Tensor, condition: Any = None, generator: Any = None) -> Tensor:
        return x.sum()

    csm.__module__ = None  # type: ignore[assignment] # as in a doctest
    with pytest.raises(ValueError, match=r"the objective csm of arcsm\.objectives\.csm is registered; rename yours"):
        arcsm.register(csm)
    taken = type("MADE", (MADE,), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match=r"the context MADE of arcsm\.contexts\.made is registered; rename yours"):
        arcsm.register(taken)
    assert registry.find("context", "MADE") is MADE


def test_a_part_that_is_defined_again_replaces_the_earlier_one() -> None:
    def define() -> type[MADE]:
        class Reloaded(MADE):
            pass

        return arcsm.register(Reloaded)

    first, second = define(), define()
    assert first is not second
    assert registry.find("context", "Reloaded") is second


@pytest.mark.parametrize("name", ["made", None, ["MADE"]])
def test_an_unknown_name_is_rejected_with_the_known_ones(name: Any) -> None:
    message = (
        r"model\.context\.kind: expected one of AnyOrder, MADE, PixelCNNPP.*, got .*; register a part of your own first"
    )
    with pytest.raises(ValueError, match=message) as error:
        registry.find("context", name, "model.context.kind")
    assert "\n" not in str(error.value)


def test_files_may_name_registered_parts_only() -> None:
    for seam, part in (("context", TaggedMADE(2, 2, (4,))), ("head", TaggedHead(2)), ("objective", halved)):
        kind = part if seam == "objective" else type(part)
        message = rf"{seam}: {kind.__name__} is not registered.*call arcsm\.register\({kind.__name__}\) first"
        with pytest.raises(ValueError, match=message):
            registry.check_registered(seam, part)
        arcsm.register(kind)
        registry.check_registered(seam, part)


def test_the_arguments_of_a_constructor_are_the_attributes_of_the_same_names() -> None:
    made = MADE(3, hidden_features=(4,))
    assert MADE(**registry.constructor_arguments(made)).config() == made.config()
    del made.residual
    with pytest.raises(ValueError, match=r"MADE: does not store its argument residual.*set self\.residual"):
        registry.constructor_arguments(made)


def test_a_configuration_of_an_older_version_is_completed_with_defaults() -> None:
    config = {
        "context": {"kind": "MADE", "features": 3, "residual": True},
        "head": {"kind": "GaussianHead"},
        "noise": 1,
    }
    completed = registry.complete_config(config)
    assert completed["context"]["residual"] is True
    assert completed["context"]["sinusoids"] == 0
    assert completed["head"] == {"kind": "GaussianHead", "context_features": 16}
    assert completed["noise"] == 1
    assert "sinusoids" not in config["context"]


def test_parts_of_installed_packages_are_loaded_once_and_only_if_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = install(monkeypatch, TaggedMADE, median)
    assert registry.find("context", "MADE") is MADE
    assert groups == []
    assert registry.find("context", "TaggedMADE") is TaggedMADE
    assert registry.find("sampler", "median") is median
    assert set(registry.parts("sampler")) > {"median", "langevin"}
    assert groups == [registry.ENTRY_POINT_GROUP] == ["arcsm.parts"]


@pytest.mark.parametrize("broken", [ImportError("no module named tensorflow"), 3, type("MADE", (MADE,), {})])
def test_a_broken_package_costs_a_warning_and_its_own_parts_only(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    install(monkeypatch, broken, TaggedMADE)
    with pytest.warns(UserWarning, match=r"entry point package\.parts:.* of arcsm\.parts is left out: "):
        assert registry.find("context", "TaggedMADE") is TaggedMADE
    assert registry.find("context", "MADE") is MADE
