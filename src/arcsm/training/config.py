"""How to train: the settings of :func:`arcsm.fit`, and the objective that they name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from arcsm import registry
from arcsm.errors import TrainingWarning, warn
from arcsm.heads import ScoreHead
from arcsm.model import AutoregressiveModel

_OBJECTIVE_SETTINGS = ("mix", "weighting", "sigma", "slices", "projections", "variance_reduced", "joint")


class TrainConfig(BaseModel):
    """How to train. Unknown keys and wrong types are errors.

    Attributes:
        objective: The training objective, a name in :mod:`arcsm.objectives`.
        mix: For csm with a ladder: a number, or ``"auto"``. Without a ladder there is the paper's 1 alone, which the
            default then means.
        weighting: For csm and dsm with a ladder: ``"natural"`` or ``"sigma2"``.
        sigma: For dsm: one noise level in place of the ladder.
        slices: For ssm: projections a row.
        projections: For ssm: their law.
        variance_reduced: For ssm.
        joint: For sm and ssm, and for dsm with ``sigma``, of normalised heads: the field that is matched.
        steps: Optimiser steps.
        epochs: Passes over the data, in place of ``steps``; of each the rows that fill whole batches, others each time.
        batch_size: Rows a step, over all processes.
        accumulate: Parts that each process computes its share of a step's rows in, one after another, so that it needs
            less memory. But for dropout, ``hide``, ``mix="auto"`` and rounding, the weights are the same.
        optimizer: ``"adam"`` or ``"adamw"``.
        learning_rate: Its peak, but for cosines that fall before the warm-up ends.
        weight_decay: Decoupled, for adamw.
        schedule: ``"constant"`` or ``"cosine"``, down to zero over all steps.
        warmup_steps: Steps of linear warm-up, whose share the rate is multiplied by.
        clip_norm: Largest norm of the gradient; ``None`` for no clipping.
        ema: Decay of the average of the weights that is validated and kept; 0 for the weights themselves.
        dequantise: Width of the uniform noise added to each batch, in data units; one, or one for each column.
        standardise: Shift and scale from the training data: for each column, one for all, one shift without a scale
            (``"centre"``), or none.
        validate_every: Steps between validations.
        validation_rows: Largest number of rows validated on.
        patience: With held-out rows, stop after so many validations without a better one; ``None`` for never.
        checkpoint_seconds: Seconds between training checkpoints (one is always written at the end).
        seed: Seed of all randomness.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        precision: ``"32-true"``; or ``"bf16-mixed"`` or ``"16-mixed"``, for products in half of it (a walk in C stays
            in single precision).
        compiled: Whether to walk through the score network in machine code: on a processor in C, which needs a C
            compiler and a second, elsewhere by ``torch.compile``, which takes a minute to begin. ``"auto"``: in C on a
            processor if a compiler is found. Other losses than csm and dsm have no such walk.
        tensorboard: Log to TensorBoard too (needs the extra ``tensorboard``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    objective: str = "csm"
    mix: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = (
        0.3  # the best fixed value on all sets of the experiment "mix"
    )
    weighting: Literal["natural", "sigma2"] = "natural"
    sigma: float | None = Field(None, gt=0)
    slices: int = Field(1, ge=1)
    projections: Literal["gaussian", "rademacher", "sphere"] = "rademacher"
    variance_reduced: bool = True
    joint: bool | None = None
    steps: int = Field(5000, ge=1, strict=True)
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(128, ge=1, strict=True)
    accumulate: int = Field(1, ge=1)
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    clip_norm: float | None = Field(10.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    dequantise: Annotated[float, Field(ge=0)] | tuple[Annotated[float, Field(ge=0)], ...] = 0.0
    standardise: Literal["columns", "global", "centre", "none"] = "columns"
    validate_every: int = Field(250, ge=1)
    validation_rows: int = Field(10_000, ge=1)
    patience: int | None = Field(None, ge=1)
    checkpoint_seconds: float = Field(60.0, ge=0)
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    compiled: bool | Literal["auto"] = "auto"
    tensorboard: bool = False

    @model_validator(mode="after")
    def _check_objective(self) -> Self:
        registry.find("objective", self.objective)
        return self


def check_objective(model: AutoregressiveModel, config: TrainConfig) -> None:
    """Without a ladder there is no other mix than the paper's; with one, some objectives leave most of it untrained.

    Raises:
        ValueError: for another mix that was asked for.

    Warns:
        TrainingWarning: for an objective that trains one noise level of several.
    """
    default = TrainConfig.model_fields["mix"].default
    if config.objective == "csm" and model.noise is None and config.mix not in (1.0, default):
        raise ValueError(f"mix: a model without a noise ladder is trained with mix=1, got {config.mix}")
    of_one_level = config.objective in ("ssm", "sm") or (config.objective == "dsm" and config.sigma is not None)
    if of_one_level and isinstance(model.head, ScoreHead) and model.noise is not None and model.noise.levels > 1:
        warn(
            f"{config.objective} trains one noise level of the model's {model.noise.levels}, and its densities and "
            "samples go through all by default: give it a ladder of one level, or none",
            TrainingWarning,
        )


def objective_of(config: TrainConfig) -> Callable[..., Tensor]:
    """Return the objective with those settings of the configuration that it takes as keywords."""
    function = registry.find("objective", config.objective)
    settings = {name: getattr(config, name) for name in _OBJECTIVE_SETTINGS}
    settings["compiled"] = None if config.compiled == "auto" else config.compiled
    accepted = inspect.signature(function).parameters
    settings = {name: value for name, value in settings.items() if name in accepted}

    def objective(model: AutoregressiveModel, x: Tensor, **arguments: Any) -> Tensor:
        if config.objective == "csm" and model.noise is None:
            return function(model, x, **{**settings, "mix": 1.0}, **arguments)
        return function(model, x, **settings, **arguments)

    return objective
