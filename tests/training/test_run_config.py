"""Run configurations: errors are one line with the path of the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcsm.data import TOYS
from arcsm.experiments import image_models
from arcsm.implicit.vae.runs import VAERunConfig
from arcsm.training import run_config

TEXT = """
name: tiny
data: {kind: toy, name: rings, rows: 200}
model:
  context: {kind: MADE, hidden_features: [8], context_features: 4}
  head: {kind: ScoreHead, hidden_features: [8]}
  noise: {sigma_max: 1.0, sigma_min: 0.1, levels: 3}
train: {steps: 3, batch_size: 32, device: cpu}
"""


def test_every_preset_builds_a_model_for_its_data() -> None:
    known = run_config.presets()
    assert {"digits", "mnist-made", "table", *(f"toy-{name.replace('_', '-')}" for name in TOYS)} <= known.keys()
    for name in known:
        tree = run_config.load_tree(name)
        assert tree["name"] == name
        if tree.get("kind") == "vae":
            config = run_config.validated(tree, name, VAERunConfig)
            assert config.model.build({"image_shape": [3, 32, 32], "levels": 256}).features == 3072
            continue
        parsed = run_config.load_config(name)
        model = parsed.model.build(12, {"image_shape": [3, 2, 2]})
        assert model.context.context_features == model.head.context_features


def test_image_presets_and_their_likelihood_partners_have_similar_sizes() -> None:
    partners = [name for name in run_config.presets() if name.endswith("-mle")]
    assert len(partners) == 6
    for name in partners:
        by_likelihood, by_scores = run_config.load_config(name), run_config.load_config(name.removesuffix("-mle"))
        assert by_likelihood.data == by_scores.data
        assert by_likelihood.model.noise is not None
        assert by_scores.model.noise is not None
        assert by_likelihood.model.noise["sigma_min"] == by_scores.model.noise["sigma_min"]
        counts = [
            sum(p.numel() for p in parsed.model.build(3072, {"image_shape": [3, 32, 32]}).parameters())
            for parsed in (by_likelihood, by_scores)
        ]
        assert abs(counts[0] - counts[1]) < 0.03 * counts[1]


def test_partners_of_image_presets_have_their_data_network_and_noise() -> None:
    for name in (*image_models.NAMES, image_models.CELEBA):
        ours, *others = map(run_config.load_config, image_models.partners(name))
        assert len(others) == (3 if "made" in name else 2)
        for other in others:
            assert other.data == ours.data
            assert other.model.noise is not None
            assert ours.model.noise is not None
            assert other.model.noise["sigma_min"] == ours.model.noise["sigma_min"]
            sizes = ({**parsed.model.context, "context_features": 0} for parsed in (ours, other))
            assert next(sizes) == next(sizes)


def test_a_written_configuration_is_read_back() -> None:
    parsed = run_config.parse_config(TEXT, "tiny.yaml", ["train.learning_rate=0.5"])
    again = run_config.parse_config(run_config.dump_config(parsed), "again")
    assert again == parsed
    assert again.train.learning_rate == 0.5


def test_changes_create_sections_and_accept_yaml_values() -> None:
    parsed = run_config.parse_config(TEXT, "t", ["model.noise=null", "model.context.hidden_features=[5, 6]"])
    assert parsed.model.noise is None
    assert parsed.model.context["hidden_features"] == [5, 6]


def test_changed_steps_override_the_epochs_of_a_preset() -> None:
    assert run_config.load_config("mnist-made").train.epochs == 20.0
    changed = run_config.load_config("mnist-made", ["train.steps=7"]).train
    assert (changed.steps, changed.epochs) == (7, None)
    later = run_config.load_config("mnist-made", ["train.steps=7", "train.epochs=2"]).train
    assert later.epochs == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.stepz=1", r"^t: train\.stepz: unknown key; did you mean steps\?$"),
        ("train.steps=many", r"^t: train\.steps: .*integer.*'many'$"),
        ("train.objective=xyz", r"^t: train\.objective: expected one of csm"),
        (
            "model.head.hiden_features=3",
            r"^t: model\.head\.hiden_features: unknown key; did you mean hidden_features\?$",
        ),
        ("model.head.kind=Nope", r"^t: model\.head\.kind: expected one of ScoreHead.*'Nope'"),
        ("model.noise.levels=x", r"^t: model\.noise\.levels: .*integer"),
        ("data.kind=nope", r"^t: data: .*nope"),
        ("data.rows=3", r"^t: data\.toy\.rows: "),
        ("nothing", "expected KEY=VALUE"),
        ("extra=1", r"^t: extra: unknown key"),
    ],
)
def test_mistakes_are_one_line_with_the_path(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run_config.parse_config(TEXT, "t", [change])
    assert "\n" not in str(caught.value)


def test_unknown_presets_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean digits"):
        run_config.load_config("digit")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    with pytest.raises(ValueError, match="not YAML"):
        run_config.load_config(str(broken))
    broken.write_text("- just a list")
    with pytest.raises(ValueError, match="expected keys name, data, model and train"):
        run_config.load_config(str(broken))
    broken.write_text("!!python/object/apply:os.system ['echo hostile']")
    with pytest.raises(ValueError, match="not YAML"):
        run_config.load_config(str(broken))
