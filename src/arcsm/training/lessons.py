"""What a distilled model learns from: rows of its teacher, and log densities of their conditionals."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from arcsm._runtime.conditions import Condition, is_condition, map_condition, tensors_of
from arcsm._runtime.progress import track
from arcsm._runtime.random import fold_in
from arcsm.conditionals.traversal import ConditionalsBuilder
from arcsm.heads import Head
from arcsm.heads.located import Located
from arcsm.model import AutoregressiveModel
from arcsm.objectives.base import context_noise
from arcsm.training.data import as_condition, as_tensor, check_condition

TOLERANCE = 1e-3  #: Nats, of the teacher's log densities.
_ROWS_AT_A_TIME = 1_024
_SPREADS = 0.3, 5.0  # largest distance of points near a value, in standard deviations; log of its ratio to the smallest
_FAR = 3.0, 30.0  # distances of points far out, in standard deviations
_REPORTED_ORDERS = 4
_DRAWS, _POINTS, _REPORT, _ORDERS = 1, 2, 5, 6  # purposes of random numbers


class Lesson(NamedTuple):
    """Conditionals of the teacher for one head of the student; the units of a located head are divided out."""

    context: Tensor  # (N, C)
    points: Tensor  # (N, 4): the value of the row, one near it, that of another row, and one far out
    log_prob: Tensor  # (N, 4), of the teacher
    weight: Tensor  # (N, 1)


def checked_rows(model: AutoregressiveModel, x: Any, name: str) -> Tensor:
    """Return rows as a tensor ``(N, D)`` on the device and in the precision of a model."""
    x = as_tensor(x, name)
    if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != model.features or not len(x):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name}: expected rows (N, {model.features}), at least one, got {got}")
    x = x.to(model.shift)
    model.check_levels(x, name)
    return x


def checked_condition(model: AutoregressiveModel, condition: Any, x: Tensor | None, name: str) -> Condition | None:
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


class Part(NamedTuple):
    """Rows in data units, their conditions, and the order of their densities; ``None`` for that of the context."""

    x: Tensor
    condition: Condition | None
    order: list[int] | None


def in_parts(x: Tensor, condition: Condition | None, orders: Sequence[list[int] | None]) -> Iterator[Part]:
    """Divide rows among orders."""
    for number, order in enumerate(orders):
        its = slice(number, None, len(orders))
        if len(x[its]):
            yield Part(x[its], map_condition(lambda part, its=its: part[its], condition), order)


class TeacherRows:
    """Rows that a teacher draws and, if there are any, given ones.

    The teacher is a copy in single precision whose data are in standardised units: in those of the data, rows of
    columns with a large mean would lose digits.
    """

    def __init__(
        self,
        model: AutoregressiveModel,
        level: int,
        x: Any,
        condition: Condition | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.level, self.seed, self.device = model, level, seed, device
        self.teacher = copy.deepcopy(model).to(self.device).float().eval()
        if "image_shape" not in model.metadata:  # whose samples have bounds, in units of the data
            self.teacher.set_standardisation(0.0, 1.0)
        x = None if x is None else checked_rows(model, x, "x_train")
        self.given = None if x is None else model.standardise(x).to(self.device, torch.float32)
        condition, classes = checked_condition(model, condition, x, "condition_train"), model.context.classes
        if condition is None and classes:
            condition = torch.arange(classes)
        self.condition = map_condition(lambda part: part.to(self.device), condition)

    def generator(self, purpose: int, number: int = 0) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(fold_in(self.seed, purpose, number))

    def orders(self) -> list[list[int] | None]:
        """Return orders for the report: that of the context, and random ones if it has every order."""
        context, generator = self.model.context, torch.Generator().manual_seed(fold_in(self.seed, _ORDERS, 0))
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

    def fresh(self, count: int) -> list[Part]:
        """Return about so many fresh rows of the teacher itself, in some orders."""
        model, generator = self.model, self.generator(_REPORT)
        source = torch.Generator(model.shift.device).manual_seed(fold_in(self.seed, _REPORT, 1))
        parts, orders = list[Part](), self.orders()
        for order in orders:
            n = -(-count // len(orders))
            condition = map_condition(lambda part: part.to(model.shift.device), self._chosen(n, generator)[1])
            drawn = model.sample(n, generator=source, condition=condition, level=self.level, order=order)
            parts.append(Part(drawn, condition, order))
        return parts


@torch.no_grad()
def lessons_of(rows: TeacherRows, conditionals: int) -> dict[int, Lesson]:
    """Return at least so many ``conditionals`` of the teacher, by the number of their head."""
    teacher, found, count = rows.teacher, dict[int, list[Lesson]](), 0
    build = teacher.conditionals_builder(rows.level, tol=TOLERANCE)
    kinds, number = 1 if rows.given is None else 2, 0
    size = min(_ROWS_AT_A_TIME, -(-conditionals // (kinds * teacher.features)))
    with track("conditionals", conditionals) as work:
        while count < conditionals or number % kinds:
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
            work(min(count, conditionals) - min(done, conditionals))
            number += 1
    return {part: Lesson(*map(torch.cat, zip(*lessons, strict=True))) for part, lessons in found.items()}


def _lesson(
    build: ConditionalsBuilder,
    head: Head,
    context: Tensor,
    values: Tensor,
    others: Tensor,
    weight: Tensor,
    generator: torch.Generator,
) -> Lesson:
    """Return the log densities of conditionals at the points from which the student learns them."""

    def uniform() -> Tensor:
        return torch.rand(values.shape, generator=generator, device=values.device)

    log_unit = Located.split(context).log_scale if head.located else torch.zeros_like(values)
    largest, log_ratio = _SPREADS
    normal = torch.randn(values.shape, generator=generator, device=values.device)
    near = values + normal * largest * torch.exp(log_unit - log_ratio * uniform())
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
    return Lesson(*(part[is_finite] for part in kept))
