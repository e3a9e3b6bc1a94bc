"""The training methods of autoencoders: which settings go together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arcsm.implicit import VAEConfig, fit_vae, load_vae, save_vae
from arcsm.implicit.vae.training import VAETask
from small_vaes import IMAGES, image_rows, seeded, small_vae, vae_config, vae_for


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("elbo", {"encoder": "implicit"}, "elbo requires encoder=gaussian, and vice versa"),
        ("csm", {"encoder": "implicit"}, "csm needs an autoregressive encoder"),
        ("csm", {"encoder": "masked", "whitened": True}, "whitened: expected an encoder with units of its own"),
        ("elbo", {"encoder": "gaussian", "whitened": True}, "expected neither for elbo"),
        (
            "ssm",
            {"encoder": "implicit", "plain_scores": True},
            "plain_scores: expected false for ssm, which has no head",
        ),
        ("stein", {"encoder": "implicit", "warm_start": 1}, "warm_start: expected 0 for stein, which learns no scores"),
    ],
)
def test_incompatible_settings_are_rejected(method: str, changes: dict[str, object], message: str) -> None:
    parts = VAEConfig.model_validate({"latents": 2, "hidden_features": (8,), "encoder": changes.pop("encoder")})
    with pytest.raises(ValueError, match=message):
        fit_vae(parts.build(IMAGES), image_rows(20), image_rows(5), vae_config(method, **changes))


@pytest.mark.parametrize(
    ("method", "helps"),
    [
        ("elbo", "lower learning_rate (0.001)"),
        ("stein", "more particles (4)"),
        ("ssm", "model.encoder=autoregressive with train.whitened=true, then more score_steps (1), another "),
        ("csm", "train.whitened=conditionals, then more score_steps"),
    ],
)
def test_a_fault_is_explained_with_a_remedy_of_its_method(method: str, helps: str) -> None:
    task = VAETask(vae_for(method), image_rows(40), image_rows(10), vae_config(method))
    assert helps in task.explain("a reason")


@pytest.mark.parametrize("method", ["csm", "ssm", "stein"])
def test_a_masked_encoder_is_trained_saved_and_loaded(method: str, tmp_path: Path) -> None:
    vae = small_vae("masked")
    before = vae.encode(image_rows(3), 2, seeded())
    plain = {"plain_scores": True} if method == "csm" else {}
    result = fit_vae(vae, image_rows(40), image_rows(10), vae_config(method, **plain))
    assert result.steps == 6
    after = vae.encode(image_rows(3), 2, seeded())
    assert not torch.equal(before, after)
    save_vae(vae, tmp_path / "vae.safetensors")
    torch.testing.assert_close(load_vae(tmp_path / "vae.safetensors").encode(image_rows(3), 2, seeded()), after)
