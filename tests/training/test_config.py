"""Training settings."""

from __future__ import annotations

import pytest

from arcsm import TrainConfig


def test_unknown_keys_and_wrong_types_are_rejected() -> None:
    with pytest.raises(ValueError, match="compiled: a deterministic training has no compiled code"):
        TrainConfig(deterministic=True, compiled=True)
    with pytest.raises(ValueError, match="stepz"):
        TrainConfig(stepz=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="steps"):
        TrainConfig(steps="many")  # type: ignore[arg-type]
