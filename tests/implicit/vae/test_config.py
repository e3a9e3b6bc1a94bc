"""Training settings of autoencoders."""

from __future__ import annotations

import pytest

from small_vaes import vae_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_noise": {"sigma_max": 1.0}}, "sigma_min"),
        ({"score_noise": {"sigma_max": 1.0, "sigma_min": 2.0}}, "expected at most sigma_max, 1"),
        ({"score_hidden": (0,)}, "score_hidden"),
    ],
)
def test_wrong_settings_are_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vae_config("csm", **changes)
