"""The training methods of autoencoders: which settings go together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from arcsm.implicit import EntropyGradient, VAEConfig, VAETrainConfig, fit_vae, load_vae, save_vae
from arcsm.implicit.vae.methods import build_estimator
from arcsm.implicit.vae.training import VAETask
from arcsm.training.run_config import apply_change
from small_vaes import IMAGES, image_rows, seeded, small_vae, vae_config, vae_for


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("elbo", {"encoder": "implicit"}, "elbo requires encoder=gaussian, and vice versa"),
        ("csm", {"encoder": "gaussian"}, "elbo requires encoder=gaussian, and vice versa"),
        ("csm", {"encoder": "implicit"}, "csm needs an autoregressive encoder"),
        ("ssm-ar", {"encoder": "implicit"}, "ssm-ar needs an autoregressive encoder"),
        ("ssm", {"encoder": "implicit", "whitened": True}, "whitened: expected an encoder with units of its own"),
        (
            "ssm",
            {"encoder": "implicit", "score_noise": {"sigma_max": 1.0, "sigma_min": 0.1}},
            "score_noise: expected None for ssm",
        ),
        ("elbo", {"encoder": "gaussian", "whitened": True}, "expected neither for elbo"),
        (
            "ssm",
            {"encoder": "autoregressive", "whitened": "conditionals"},
            "whitened: conditionals are for csm and ssm-ar, got ssm",
        ),
        (
            "ssm",
            {"encoder": "implicit", "plain_scores": True},
            "plain_scores: expected false for ssm, which has no head",
        ),
        ("ssm", {"encoder": "implicit", "centred": True}, "centred: expected an autoregressive encoder"),
        ("stein", {"encoder": "implicit", "warm_start": 1}, "warm_start: expected 0 for stein, which learns no scores"),
    ],
)
def test_incompatible_settings_are_rejected(method: str, changes: dict[str, object], message: str) -> None:
    parts = VAEConfig.model_validate({"latents": 2, "hidden_features": (8,), "encoder": changes.pop("encoder")})
    with pytest.raises(ValueError, match=message):
        fit_vae(parts.build(IMAGES), image_rows(20), image_rows(5), vae_config(method, **changes))


@pytest.mark.parametrize(
    ("method", "changes", "helps"),
    [
        ("elbo", {}, None),
        ("stein", {}, "more particles (4)"),
        ("ssm", {}, "model.encoder=autoregressive with train.whitened=true, then more score_steps (1), another "),
        ("ssm-ar", {}, "train.whitened=conditionals, then more score_steps"),
        ("csm", {"whitened": True}, "train.whitened=conditionals, then more score_steps"),
        ("csm", {"whitened": "conditionals", "score_steps": 2}, ": more score_steps (2), another score_learning_rate"),
    ],
)
def test_suggested_remedies_are_valid_settings(method: str, changes: dict[str, object], helps: str | None) -> None:
    vae = vae_for(method)
    task = VAETask(vae, image_rows(40), image_rows(10), vae_config(method, **changes))
    advice = task.explain("a reason")
    assert advice.startswith("a reason. The model holds the average of the weights so far; lower learning_rate (0.001)")
    if helps is None:
        assert advice.endswith("(0.001)")
        return
    assert helps in advice
    tree = {"train": task.config.model_dump(), "model": vae.parts.model_dump()}
    for change in re.findall(r"(?:train|model)\.\w+=\w+", helps):
        apply_change(tree, change)
    changed = VAEConfig(**tree["model"]).build(IMAGES)
    assert isinstance(build_estimator(changed, VAETrainConfig(**tree["train"])), EntropyGradient)


@pytest.mark.parametrize("method", ["csm", "ssm-ar", "ssm", "stein"])
def test_a_masked_encoder_is_trained_saved_and_loaded(method: str, tmp_path: Path) -> None:
    vae = small_vae("masked")
    before = vae.encode(image_rows(3), 2, seeded())
    plain = {"plain_scores": True} if method in ("csm", "ssm-ar") else {}
    result = fit_vae(vae, image_rows(40), image_rows(10), vae_config(method, **plain))
    assert result.steps == 6
    after = vae.encode(image_rows(3), 2, seeded())
    assert not torch.equal(before, after)
    save_vae(vae, tmp_path / "vae.safetensors")
    torch.testing.assert_close(load_vae(tmp_path / "vae.safetensors").encode(image_rows(3), 2, seeded()), after)


def test_a_masked_encoder_has_no_units_of_its_own() -> None:
    with pytest.raises(ValueError, match="whitened: expected an encoder with units of its own"):
        fit_vae(small_vae("masked"), image_rows(20), image_rows(5), vae_config("csm", whitened=True))
