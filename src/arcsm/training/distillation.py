"""Distillation: a model whose conditionals have a closed form, from one whose conditionals are integrated."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from arcsm._runtime.conditions import Condition, map_condition
from arcsm._runtime.devices import resolve_device
from arcsm._runtime.modes import torch_threads
from arcsm._runtime.progress import track
from arcsm._runtime.random import fold_in
from arcsm.errors import TrainingWarning, warn
from arcsm.heads import MixedHead, SplineHead
from arcsm.model import AutoregressiveModel, without_compilation
from arcsm.training.lessons import (
    TOLERANCE,
    Lesson,
    Part,
    TeacherRows,
    checked_condition,
    checked_rows,
    in_parts,
    lessons_of,
)
from arcsm.training.optimization import AdamW, averaging

_WEIGHTS = 1.0, 0.5, 0.25, 0.25  # of the errors at the points of a conditional
_DEPTH = 10.0  # nats below zero from which on errors count relative to the depth
MUCH_LOST = 0.1  #: Nats a row that the density of a student may lose without a warning.
_LEAST_UNIT = 1e-3  # of the features of contexts
_EMA, _WARMUP, _WEIGHT_DECAY, _CLIP_NORM = 0.99, 50, 1e-4, 1.0
_BATCHES, _INITIAL = 3, 4  # purposes of random numbers, besides those of the lessons


class DistilConfig(BaseModel):
    """How to distil a model.

    Attributes:
        conditionals: Number of the teacher's conditionals that the student learns from.
        steps: Optimizer steps.
        batch_size: Conditionals per step.
        learning_rate: Peak learning rate, after a warm-up; it falls to zero along a cosine.
        hidden_features: Units of each hidden layer of the student's :class:`~arcsm.SplineHead`.
        bins: Number of bins of its splines.
        bound: End of its splines, in units of the scale of a conditional.
        report_rows: Rows of the teacher, and at most as many given ones, by which the result is judged.
        seed: Seed of all randomness.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    conditionals: int = Field(80_000, ge=1, strict=True)
    steps: int = Field(3_000, ge=1, strict=True)
    batch_size: int = Field(512, ge=1, strict=True)
    learning_rate: float = Field(1e-2, gt=0)
    hidden_features: tuple[int, ...] = (64, 64)
    bins: int = Field(16, ge=2, strict=True)
    bound: float = Field(6.0, gt=0)
    report_rows: int = Field(1_000, ge=2, strict=True)
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"


def distil(
    model: AutoregressiveModel,
    x_train: Tensor | NDArray[Any] | None = None,
    x_valid: Tensor | NDArray[Any] | None = None,
    condition_train: Condition | None = None,
    condition_valid: Condition | None = None,
    level: int = -1,
    config: DistilConfig | None = None,
    progress: bool = False,
) -> AutoregressiveModel:
    """Return a model whose conditionals have a closed form, with the density of a model with scores.

    The student has the teacher's context, as it is, and in place of each head with scores a
    :class:`~arcsm.SplineHead`: one evaluation gives a density, a distribution function or a quantile. It learns the
    teacher's log densities, by least squares, for conditionals that the teacher's own rows lead to: at the value of a
    row, near it, at the value of another row, and far out, so that outliers keep their rank. Levels of nominal columns
    keep their probabilities.

    The student has no noise ladder. Its density is that of the teacher at a noise level, so of the data plus this
    noise. Smooth densities are learned almost exactly. One with narrow spikes, from a small noise, loses much.
    ``metadata["distillation"]`` of the student says how much.

    Arguments:
        model: The teacher.
        x_train: Rows ``(N, D)`` like those that will be scored. About half of the conditionals are then theirs: a
            density that is narrower than the data needs it.
        x_valid: Held-out rows, whose loss of log density is reported beside that of the teacher's rows.
        condition_train: Conditions of the training rows, and of the teacher's rows, as in :func:`arcsm.fit`. Without
            training rows, a model with classes alone has a default: random classes.
        condition_valid: Conditions of the held-out rows.
        level: Noise level of the teacher.
        config: Sizes and seeds.
        progress: Show progress; see :func:`arcsm.fit`.

    Returns:
        The student, on the teacher's device and in its precision. Its ``metadata["distillation"]`` holds the standard
        deviation ``sigma`` of the noise (``None`` without a ladder); ``kl``, an estimate of the Kullback-Leibler
        divergence of the student from the teacher; and ``loss``, the mean by which the log densities of ``x_valid`` are
        too low, if given. Both have a ``mean`` and a ``standard_error``, in nats a row, and are means over some orders
        of a context that has every order.

    Raises:
        ValueError: If all heads of the model have a closed form already, rows or conditions do not fit the model, or
            conditions are missing.

    Warns:
        TrainingWarning: If more than 0.1 nats a row were lost.

    Example:
        >>> from arcsm import MADE, AutoregressiveModel, NoiseLadder, ScoreHead
        >>> teacher = AutoregressiveModel(MADE(2, 4, (16,)), ScoreHead(4, (16,)), NoiseLadder(1.0, 0.1, 5))
        >>> student = distil(teacher, config=DistilConfig(conditionals=500, steps=5, device="cpu"))
        >>> student.log_prob(torch.zeros(3, 2)).shape, sorted(student.metadata["distillation"]["kl"])
        (torch.Size([3]), ['mean', 'standard_error'])
    """
    config = DistilConfig() if config is None else config
    model = without_compilation(model)
    student = _student(model, config)
    valid = None if x_valid is None else checked_rows(model, x_valid, "x_valid")
    if valid is None and condition_valid is not None:
        raise ValueError("condition_valid: expected rows, too; give x_valid")
    if valid is not None:
        condition_valid = checked_condition(model, condition_valid, valid, "condition_valid")
    device = resolve_device(config.device)
    rows = TeacherRows(model, level, x_train, condition_train, config.seed, device)
    with track("distilling", 10, progress) as work:
        with work.part(4):
            lessons = lessons_of(rows, config.conditionals)
        with work.part(6):
            _learn(student, lessons, config, device)
    student = student.to(model.shift).eval()
    report: dict[str, Any] = {
        "sigma": model.sigma(level),
        "kl": _loss(model, student, rows.fresh(config.report_rows), level),
    }
    if valid is not None:
        some, orders = config.report_rows, rows.orders()
        few = map_condition(lambda part: part[:some].to(valid.device), condition_valid)
        report["loss"] = _loss(model, student, list(in_parts(valid[:some], few, orders)), level)
    student.metadata["distillation"] = report
    if report["kl"]["mean"] > MUCH_LOST:
        warn(
            f"the density lost {report['kl']['mean']:.2g} nats a row: it may have narrow spikes; more steps, bins or "
            "hidden features may help",
            TrainingWarning,
        )
    return student


def _student(model: AutoregressiveModel, config: DistilConfig) -> AutoregressiveModel:
    """Return a copy of a model in which each head that has no closed form at its noise is a new SplineHead."""
    parts = model.head.parts(model.features)
    is_kept = [head.discrete or (head.normalised and model.noise is None) for head, _ in parts]
    if all(is_kept):
        raise ValueError("model: all its conditionals have a closed form already; there is nothing to distil")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold_in(config.seed, _INITIAL, 0))
        heads = [
            copy.deepcopy(head)
            if keep
            else SplineHead(head.context_features, config.bins, config.bound, config.hidden_features, head.located)
            for (head, _), keep in zip(parts, is_kept, strict=True)
        ]
    columns = {d: number for number, (_, its) in enumerate(parts) for d in its}
    head = heads[0] if len(heads) == 1 else MixedHead(heads, [columns[d] for d in range(model.features)])
    student = AutoregressiveModel(copy.deepcopy(model.context), head, metadata=model.metadata)
    for name, buffer in model.named_buffers(recurse=False):  # the units
        setattr(student, name, buffer.clone())
    return student


def _loss(
    model: AutoregressiveModel, student: AutoregressiveModel, parts: Sequence[Part], level: int
) -> dict[str, float | None]:
    """Return by how much the student's log densities of rows are too low, in the mean, and its standard error."""
    with torch.no_grad():
        lost = torch.cat(
            [
                model.log_prob(part.x, level, part.condition, order=part.order, tol=TOLERANCE)
                - student.log_prob(part.x, condition=part.condition, order=part.order)
                for part in parts
            ]
        ).double()
    error = float(lost.std()) / math.sqrt(len(lost)) if len(lost) > 1 else None
    return {"mean": float(lost.mean()), "standard_error": error}


def _learn(
    student: AutoregressiveModel, lessons: Mapping[int, Lesson], config: DistilConfig, device: torch.device
) -> None:
    """Train the new heads of the student in place."""
    parts = student.head.parts(student.features)
    pairs = [(cast(SplineHead, parts[part].head), lesson) for part, lesson in lessons.items()]
    network = nn.ModuleList(head for head, _ in pairs).to(device).float().train()
    for head, lesson in pairs:
        _standardise_contexts(head, lesson.context)
    average = AveragedModel(network, multi_avg_fn=averaging(_EMA))
    optimizer = AdamW(network.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY, fused=True)
    generator = torch.Generator(device).manual_seed(fold_in(config.seed, _BATCHES, 0))
    with torch_threads(1), torch.enable_grad(), track("learning", config.steps) as work:
        for step in range(config.steps):
            falling = 0.5 * (1.0 + math.cos(math.pi * step / config.steps))
            optimizer.param_groups[0]["lr"] = config.learning_rate * falling * min(1.0, (step + 1) / _WARMUP)
            losses = [_error(head, lesson, config.batch_size, generator) for head, lesson in pairs]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), _CLIP_NORM)
            optimizer.step()
            average.update_parameters(network)
            work(note=f"error {float(loss.detach()):.2g}")
    network.load_state_dict(average.module.state_dict())


def _error(head: SplineHead, lesson: Lesson, size: int, generator: torch.Generator) -> Tensor:
    """Return the mean error of log densities of random conditionals.

    An error counts in nats where the density is high, and in proportion to its depth where that is low.
    """
    chosen = torch.randint(len(lesson.weight), (size,), generator=generator, device=lesson.weight.device)
    context, points, truth, weight = (part[chosen] for part in lesson)
    log_prob = head.projected_log_prob(head.project(context).unsqueeze(1), points)
    error = (log_prob - truth) / (1.0 + (-truth / _DEPTH).clamp(min=0.0))
    losses = F.huber_loss(error, torch.zeros_like(error), reduction="none")
    return (losses * losses.new_tensor(_WEIGHTS) * weight).mean() / lesson.weight.mean()


@torch.no_grad()
def _standardise_contexts(head: SplineHead, context: Tensor) -> None:
    """Change the first layer of a new head as if the features of contexts ``(N, C)`` had mean 0 and variance 1."""
    layer = cast(nn.Linear, head.hidden[0] if len(head.hidden) else head.parameters_of)
    features = context[:, : layer.in_features]
    mean, unit = features.mean(0), features.std(0, correction=0).clamp(min=_LEAST_UNIT)
    layer.weight.div_(unit)
    layer.bias.sub_(layer.weight @ mean)
