"""The settings of :func:`arcsm.fit`, and the objective that they configure."""

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
    """How to train a density. Unknown keys and wrong types are errors.

    Attributes:
        objective: Training objective, a name in :mod:`arcsm.objectives` or of a registered function.
        mix: Weight of csm in its mixture with dsm, a number or ``"auto"``; for csm with a ladder. Without a ladder the
            weight is 1, and the default means that.
        weighting: Weight of the noise levels, ``"natural"`` or ``"sigma2"``; for csm and dsm with a ladder.
        sigma: One noise level in place of the ladder; for dsm.
        slices: Projections per row; for ssm.
        projections: Distribution of the projections; for ssm.
        variance_reduced: Whether to use the variance-reduced form; for ssm.
        joint: Whether to match the joint score of a normalised head; for sm, ssm, and dsm with ``sigma``.
        steps: Optimizer steps.
        epochs: Passes over the data, in place of ``steps``. Each reshuffles the rows and drops the incomplete batch.
        batch_size: Rows per step, over all processes.
        accumulate: Number of parts in which each process computes its rows of a step, to save memory. Up to dropout,
            ``hide``, ``mix="auto"`` and rounding, the weights do not depend on it.
        optimizer: ``"adam"``, ``"adamw"`` or ``"muon"``: Muon for matrices between layers of at least 16 units
            (Jordan et al., 2024), AdamW for all other weights and for masked matrices, such as those of a MADE.
        learning_rate: Peak learning rate (a cosine that falls before the warm-up ends stays below it).
        score_rate_factor: Factor of the learning rate for heads without a closed form, such as score networks. With few
            rows, a context overfits before a score network at the same rate has moved away from its initial Gaussian.
            A custom scheduler that sets rates instead of scaling them cancels the factor.
        weight_decay: Decoupled weight decay, for adamw and muon.
        schedule: ``"constant"``, or ``"cosine"`` down to zero over all steps.
        warmup_steps: Steps over which a linear warm-up raises the learning rate from zero.
        clip_norm: Largest norm of the gradient; ``None`` for no clipping.
        ema: Decay of the exponential moving average of the weights that is validated and kept; 0 for no average.
        dequantise: Width of the uniform noise added to each batch, in data units; a number, or one per column. Nominal
            columns need 0.
        standardise: What the model's shift and scale are computed from: each column, all values (``"global"``), all
            values for the shift alone (``"centre"``), or nothing. A model then keeps its units, and the correlations
            of its context if it has any. Condition vectors are standardised by column, unless it is ``"none"``.
        validate_every: Steps between validations.
        log_every: Steps between rows of the log without a validation; ``None`` logs validations only.
        validation_rows: Largest number of held-out rows to use.
        patience: Number of validations without improvement that end the training; ``None`` for no early stopping.
        checkpoint_seconds: Seconds between training checkpoints; the end of training always writes one.
        seed: Seed of all randomness.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        precision: ``"32-true"``, or ``"bf16-mixed"`` or ``"16-mixed"`` for products in half precision (the C kernels
            stay in single precision).
        compiled: Whether to compile the score network of csm and dsm: on a CPU the C kernels, which need a C compiler
            and a second; elsewhere ``torch.compile``, which takes a minute. ``"auto"``: on a CPU with a compiler.
        deterministic: Whether the weights are the same, bit for bit, with any number of threads and with or without a C
            compiler, on one kind of processor: training then uses one thread, no compiled code, and only operations
            of PyTorch that are deterministic.
        tensorboard: Log to TensorBoard too, in the run's folder (needs the extra ``tensorboard``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    objective: str = "csm"
    mix: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = 0.3  # the best on all sets of the experiment "mix"
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
    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    score_rate_factor: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    clip_norm: float | None = Field(10.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    dequantise: Annotated[float, Field(ge=0)] | tuple[Annotated[float, Field(ge=0)], ...] = 0.0
    standardise: Literal["columns", "global", "centre", "none"] = "columns"
    validate_every: int = Field(250, ge=1)
    log_every: int | None = Field(None, ge=1)
    validation_rows: int = Field(10_000, ge=1)
    patience: int | None = Field(None, ge=1)
    checkpoint_seconds: float = Field(60.0, ge=0)
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    compiled: bool | Literal["auto"] = "auto"
    deterministic: bool = False
    tensorboard: bool = False

    @model_validator(mode="after")
    def _check_deterministic(self) -> Self:
        if self.deterministic and self.compiled is True:
            raise ValueError("compiled: a deterministic training has no compiled code; leave compiled out")
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> Self:
        registry.find("objective", self.objective)
        return self


def check_model_and_config(model: object, config: object) -> None:
    """Check the types of a model, which may be compiled, and of its configuration."""
    if not isinstance(getattr(model, "_orig_mod", model), AutoregressiveModel):
        wrapped = isinstance(getattr(model, "module", None), AutoregressiveModel)
        hint = "; give its module: fit divides batches among processes itself" if wrapped else ""
        raise TypeError(f"model: expected an AutoregressiveModel, got {type(model).__name__}{hint}")
    if not isinstance(config, TrainConfig):
        hint = "; give TrainConfig(**config)" if isinstance(config, dict) else ""
        raise TypeError(f"config: expected a TrainConfig, got {type(config).__name__}{hint}")


def check_objective(model: AutoregressiveModel, config: TrainConfig) -> None:
    """Check that the objective suits the model's noise levels, and warn if it trains one of several."""
    default = TrainConfig.model_fields["mix"].default
    if config.objective == "csm" and model.noise is None and config.mix not in (1.0, default):
        raise ValueError(f"mix: a model without a noise ladder is trained with mix=1, got {config.mix}")
    one_level = config.objective in ("ssm", "sm", "mle") or (config.objective == "dsm" and config.sigma is not None)
    if one_level and isinstance(model.head, ScoreHead) and model.noise is not None and model.noise.levels > 1:
        warn(
            f"{config.objective} trains one noise level of the model's {model.noise.levels}, but by default its "
            "densities and samples use all of them: give the model a ladder of one level, or none",
            TrainingWarning,
        )


def configured_objective(config: TrainConfig) -> Callable[..., Tensor]:
    """Return the objective that a configuration names, with the settings that it accepts as keywords."""
    function = registry.find("objective", config.objective)
    settings = {name: getattr(config, name) for name in _OBJECTIVE_SETTINGS}
    allowed = None if config.compiled == "auto" else config.compiled
    settings["compiled"] = False if config.deterministic else allowed
    accepted = inspect.signature(function).parameters
    settings = {name: value for name, value in settings.items() if name in accepted}

    def objective(model: AutoregressiveModel, x: Tensor, **arguments: Any) -> Tensor:
        if config.objective == "csm" and model.noise is None:
            return function(model, x, **{**settings, "mix": 1.0}, **arguments)
        return function(model, x, **settings, **arguments)

    return objective
