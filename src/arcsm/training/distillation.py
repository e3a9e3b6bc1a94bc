"""Distillation: a model whose conditionals have a closed form, from one whose conditionals are integrated."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from arcsm._runtime.conditions import Condition, is_condition, map_condition, tensors_of
from arcsm._runtime.devices import resolve_device
from arcsm._runtime.modes import torch_threads
from arcsm._runtime.progress import track
from arcsm._runtime.random import fold_in
from arcsm.conditionals.traversal import ConditionalsBuilder
from arcsm.errors import TrainingWarning, warn
from arcsm.heads import Head, MixedHead, SplineHead
from arcsm.heads.located import Located
from arcsm.model import AutoregressiveModel, without_compilation
from arcsm.objectives.base import context_noise
from arcsm.training.data import as_condition, as_tensor, check_condition
from arcsm.training.optimization import AdamW, averaging

_ROWS_AT_A_TIME = 1_024
_TOLERANCE = 1e-3  # nats, of the teacher's log densities
_SPREADS = 0.3, 5.0  # largest distance of points near a value, in standard deviations; log of its ratio to the smallest
_FAR = 3.0, 30.0  # distances of points far out, in standard deviations
_WEIGHTS = 1.0, 0.5, 0.25, 0.25  # of the errors at the points of a conditional
_DEPTH = 10.0  # nats below zero from which on errors count relative to the depth
_POOR = 0.1  # nats a row, from which on a warning is due
_LEAST_UNIT = 1e-3  # of the features of contexts
_EMA, _WARMUP, _WEIGHT_DECAY, _CLIP_NORM = 0.99, 50, 1e-4, 1.0
_REPORTED_ORDERS = 4
_DRAWS, _POINTS, _BATCHES, _INITIAL, _REPORT, _ORDERS = 1, 2, 3, 4, 5, 6  # purposes of random numbers


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


class _Lesson(NamedTuple):
    """Conditionals of the teacher for one head of the student; the units of a located head are divided out."""

    context: Tensor  # (N, C)
    points: Tensor  # (N, 4): the value of the row, one near it, that of another row, and one far out
    log_prob: Tensor  # (N, 4), of the teacher
    weight: Tensor  # (N, 1)


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
    noise. Smooth densities are learned to about a hundredth of a nat a row; one with narrow spikes, from a small noise,
    loses much more. ``metadata["distillation"]`` of the student says how much, in nats a row.

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
    valid = None if x_valid is None else _checked(model, x_valid, "x_valid")
    if valid is None and condition_valid is not None:
        raise ValueError("condition_valid: expected rows, too; give x_valid")
    if valid is not None:
        condition_valid = _checked_condition(model, condition_valid, valid, "condition_valid")
    rows = _Rows(model, level, config, x_train, condition_train)
    with track("distilling", 10, progress) as work:
        with work.part(4):
            lessons = _lessons(rows, config)
        with work.part(6):
            _learn(student, lessons, config, rows.device)
    student = student.to(model.shift).eval()
    report: dict[str, Any] = {"sigma": model.sigma(level), "kl": _loss(model, student, rows.fresh(), level)}
    if valid is not None:
        some, orders = config.report_rows, rows.orders()
        few = map_condition(lambda part: part[:some].to(valid.device), condition_valid)
        report["loss"] = _loss(model, student, list(_in_parts(valid[:some], few, orders)), level)
    student.metadata["distillation"] = report
    if report["kl"]["mean"] > _POOR:
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


def _checked(model: AutoregressiveModel, x: Any, name: str) -> Tensor:
    """Return rows as a tensor ``(N, D)`` on the device and in the precision of a model."""
    x = as_tensor(x, name)
    if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != model.features or not len(x):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name}: expected rows (N, {model.features}), at least one, got {got}")
    x = x.to(model.shift)
    model.check_levels(x, name)
    return x


def _checked_condition(model: AutoregressiveModel, condition: Any, x: Tensor | None, name: str) -> Condition | None:
    """Return a condition as tensors, one for each row ``x (N, D)``, if there are rows.

    Without rows there may be none for classes alone.
    """
    context = model.context
    if condition is None:
        if context.is_conditional and (x is not None or context.condition_features):
            raise ValueError(f"{name}: expected the conditions of rows, which this model needs, got None")
        return None
    condition = as_condition(condition)
    parts = tensors_of(condition) if is_condition(condition) else []
    try:
        reference = torch.atleast_1d(parts[0]) if x is None and parts else x
        check_condition(context, cast(Tensor, reference), condition)
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).removeprefix('condition: ')}") from error
    return condition  # type: ignore[no-any-return]


class _Part(NamedTuple):
    """Rows in data units, their conditions, and the order of their densities; ``None`` for that of the context."""

    x: Tensor
    condition: Condition | None
    order: list[int] | None


def _in_parts(x: Tensor, condition: Condition | None, orders: Sequence[list[int] | None]) -> Iterator[_Part]:
    """Divide rows among orders."""
    for number, order in enumerate(orders):
        its = slice(number, None, len(orders))
        if len(x[its]):
            yield _Part(x[its], map_condition(lambda part, its=its: part[its], condition), order)


def _loss(
    model: AutoregressiveModel, student: AutoregressiveModel, parts: Sequence[_Part], level: int
) -> dict[str, float | None]:
    """Return by how much the student's log densities of rows are too low, in the mean, and its standard error."""
    with torch.no_grad():
        lost = torch.cat(
            [
                model.log_prob(part.x, level, part.condition, order=part.order, tol=_TOLERANCE)
                - student.log_prob(part.x, condition=part.condition, order=part.order)
                for part in parts
            ]
        ).double()
    error = float(lost.std()) / math.sqrt(len(lost)) if len(lost) > 1 else None
    return {"mean": float(lost.mean()), "standard_error": error}


class _Rows:
    """Rows that a teacher draws and, if there are any, given ones.

    The teacher is a copy in single precision whose data are in standardised units: in those of the data, rows of
    columns with a large mean would lose digits.
    """

    def __init__(
        self,
        model: AutoregressiveModel,
        level: int,
        config: DistilConfig,
        x: Any,
        condition: Condition | None,
    ) -> None:
        self.device = resolve_device(config.device)
        self.model, self.level, self.config = model, level, config
        self.teacher = copy.deepcopy(model).to(self.device).float().eval()
        if "image_shape" not in model.metadata:  # whose samples have bounds, in units of the data
            self.teacher.set_standardisation(0.0, 1.0)
        x = None if x is None else _checked(model, x, "x_train")
        self.given = None if x is None else model.standardise(x).to(self.device, torch.float32)
        condition, classes = _checked_condition(model, condition, x, "condition_train"), model.context.classes
        if condition is None and classes:
            condition = torch.arange(classes)
        self.condition = map_condition(lambda part: part.to(self.device), condition)

    def generator(self, purpose: int, number: int = 0) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(fold_in(self.config.seed, purpose, number))

    def orders(self) -> list[list[int] | None]:
        """Return orders for the report: that of the context, and random ones if it has every order."""
        context, generator = self.model.context, torch.Generator().manual_seed(fold_in(self.config.seed, _ORDERS, 0))
        if not context.any_order:
            return [None]
        count = len(context.order)
        random = [torch.randperm(count, generator=generator).tolist() for _ in range(_REPORTED_ORDERS - 1)]
        return [None, *(context.arranged(order) for order in random)]

    def _chosen(self, n: int, generator: torch.Generator) -> tuple[Tensor, Condition | None]:
        """Return random indices of conditions or given rows, and the conditions."""
        counts = [len(part) for part in tensors_of(self.condition)] or [n if self.given is None else len(self.given)]
        index = torch.randint(counts[0], (n,), generator=generator, device=self.device)
        return index, map_condition(lambda part: part[index], self.condition)

    def draw(self, n: int, number: int) -> tuple[Tensor, Condition | None]:
        """Return the part of the rows with this number, ``(n, D)`` in standardised units, and their conditions.

        Of given rows, every other part has copies with noise, from none to as much as the teacher's rows have.
        """
        generator, teacher = self.generator(_DRAWS, number), self.teacher
        if self.given is not None and number % 2:
            index, condition = self._chosen(n, generator)
            z = self.given[index]
            amount = torch.rand(n, 1, generator=generator, device=self.device) * (teacher.sigma(self.level) or 0.0)
            noise = torch.randn(z.shape, generator=generator, device=self.device)
            return z + context_noise(teacher, amount * noise), condition
        condition = self._chosen(n, generator)[1]
        order = None
        if teacher.context.any_order:
            shuffled = torch.randperm(teacher.features, generator=generator, device=self.device)
            order = teacher.context.arranged(shuffled.tolist())
        sampler = "fast_flow" if teacher.noise is not None and not teacher.head.normalised else None
        drawn = teacher.sample(n, sampler, generator, condition, level=self.level, order=order)
        return teacher.standardise(drawn), condition

    def fresh(self) -> list[_Part]:
        """Return fresh rows of the teacher itself, in some orders."""
        model, generator = self.model, self.generator(_REPORT)
        source = torch.Generator(model.shift.device).manual_seed(fold_in(self.config.seed, _REPORT, 1))
        parts, orders = list[_Part](), self.orders()
        for order in orders:
            n = -(-self.config.report_rows // len(orders))
            condition = map_condition(lambda part: part.to(model.shift.device), self._chosen(n, generator)[1])
            drawn = model.sample(n, generator=source, condition=condition, level=self.level, order=order)
            parts.append(_Part(drawn, condition, order))
        return parts


@torch.no_grad()
def _lessons(rows: _Rows, config: DistilConfig) -> dict[int, _Lesson]:
    """Return what the student's new heads learn from, by the number of the head."""
    teacher, found, count = rows.teacher, dict[int, list[_Lesson]](), 0
    build = teacher.conditionals_builder(rows.level, tol=_TOLERANCE)
    kinds, number = 1 if rows.given is None else 2, 0
    size = min(_ROWS_AT_A_TIME, -(-config.conditionals // (kinds * teacher.features)))
    with track("conditionals", config.conditionals) as work:
        while count < config.conditionals or number % kinds:
            z, condition = rows.draw(size, number)
            generator = rows.generator(_POINTS, number)
            z = teacher.context.resolved(z)
            terms = teacher.training_terms(z, condition, generator)
            column = terms.select(torch.arange(teacher.features, device=z.device).expand_as(z))
            others = terms.select(z[torch.randperm(len(z), generator=generator, device=z.device)])
            values = terms.select(z)
            weight = torch.ones_like(values) if terms.weight is None else terms.weight
            done = count
            for part, (head, columns) in enumerate(teacher.head.parts(teacher.features)):
                if head.discrete or (head.normalised and teacher.noise is None):
                    continue
                is_its = torch.isin(column, torch.tensor(columns, device=z.device))
                its = (is_its & ~values.isnan()).nonzero()[:, 0]
                lesson = _lesson(build, head, terms.context[its], values[its], others[its], weight[its], generator)
                found.setdefault(part, []).append(lesson)
                count += len(its)
            if count == done:
                raise ValueError("model: no row that it draws has a value to learn from")
            work(min(count, config.conditionals) - min(done, config.conditionals))
            number += 1
    return {part: _Lesson(*map(torch.cat, zip(*lessons, strict=True))) for part, lessons in found.items()}


def _lesson(
    build: ConditionalsBuilder,
    head: Head,
    context: Tensor,
    values: Tensor,
    others: Tensor,
    weight: Tensor,
    generator: torch.Generator,
) -> _Lesson:
    """Return the log densities of conditionals at the points from which the student learns them."""

    def uniform() -> Tensor:
        return torch.rand(values.shape, generator=generator, device=values.device)

    log_unit = Located.split(context).log_scale if head.located else torch.zeros_like(values)
    largest, decades = _SPREADS
    normal = torch.randn(values.shape, generator=generator, device=values.device)
    near = values + normal * largest * torch.exp(log_unit - decades * uniform())
    others = torch.where(others.isnan(), near, others)
    distance = _FAR[0] * (_FAR[1] / _FAR[0]) ** uniform()
    far = torch.where(uniform() < 0.5, -distance, distance)
    points = torch.stack([values, near, others, far], 1)
    conditionals = build(head.project(context).repeat_interleave(points.shape[1], 0), head)
    log_prob = conditionals.log_prob(points.flatten()).view_as(points) + log_unit[:, None]
    if head.located:  # in units of the location and the scale
        points = Located.split(context.unsqueeze(1)).to_units(points)
        context = torch.cat([context[:, :-2], torch.zeros_like(context[:, -2:])], 1)
    is_finite = log_prob.isfinite().all(1)
    kept = (context, points, log_prob, weight[:, None])
    return _Lesson(*(part[is_finite] for part in kept))


def _learn(
    student: AutoregressiveModel, lessons: Mapping[int, _Lesson], config: DistilConfig, device: torch.device
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


def _error(head: SplineHead, lesson: _Lesson, size: int, generator: torch.Generator) -> Tensor:
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
