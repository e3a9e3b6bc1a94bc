"""Search for a single order of the dimensions in which held-out rows have a high density."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Unpack

import torch
from torch import Tensor

from arcsm._runtime.batching import map_slices, slices_for_cores
from arcsm._runtime.conditions import Condition, map_condition
from arcsm._runtime.progress import track
from arcsm._runtime.sizes import check_size
from arcsm.conditionals import Count
from arcsm.conditionals.traversal import Integration, checked_integration, warn_unconverged
from arcsm.heads import Head
from arcsm.model import AutoregressiveModel
from arcsm.queries.every_order import every_order

_LEAST_GAIN = 1e-9  # nats; a smaller one may be due to rounding
_MAX_EVALUATIONS = 1 << 30
_VALUES_AT_A_TIME = 1 << 15

Term = tuple[int, int]  #: a dimension, and the set of those before it as the bits of a number


def learned_order(
    model: AutoregressiveModel,
    x: Tensor,
    level: int = -1,
    condition: Condition | None = None,
    cells: Tensor | Sequence[float] | None = None,
    starts: int = 4,
    evaluations: int = 2_000,
    worst: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = False,
    **integration: Unpack[Integration],
) -> tuple[int, ...]:
    """Return a single order of the dimensions in which rows have a high mean log density.

    .. math:: \\max_\\pi \\; \\frac1N \\sum_n \\sum_i \\log q\\big(x^n_{\\pi_i} \\mid x^n_{\\pi_{<i}}\\big)

    A term depends on the *set* of dimensions before its own, so that orders share most of their terms. Each term is
    evaluated once. A local search swaps neighbours, which changes two terms, and then moves single dimensions to any
    other place, until neither gains. A dimension with a parent stays right behind it.

    The paper leaves open whether orders can be learned. Choose on rows that the model was not trained on, and judge the
    order on others: the maximum over orders is optimistic on the rows that chose it.

    Arguments:
        model: A model whose context is an :class:`~arcsm.AnyOrder`.
        x: Rows ``(N, D)`` in data units; NaN marks a missing value, whose term is 0.
        level: Noise level.
        condition: Condition of each row, as in :meth:`arcsm.AutoregressiveModel.score`.
        cells: Steps of discrete dimensions, as in :meth:`arcsm.AutoregressiveModel.log_prob`.
        starts: Number of random orders that the search starts from, besides that of the context.
        evaluations: Number of terms after which the search ends. A call of ``log_prob`` evaluates ``D``; moving every
            dimension to every place takes about :math:`3 D^2`. A batch of at most :math:`3 D` that has begun is
            finished.
        worst: Search for a low density.
        generator: Source of the random orders.
        progress: Show progress; see :func:`arcsm.fit`. The estimate assumes that all evaluations are needed.
        integration: As in :meth:`arcsm.AutoregressiveModel.log_prob`.

    Raises:
        ValueError: If the model does not have every order, there are no rows, ``starts`` is negative, or
            ``evaluations`` is below one.

    Warns:
        AccuracyWarning: Once a call, if some integrals missed ``tol``.

    References:
        Autoregressive Score Matching (Meng, Yu, Song, Song and Ermon, NeurIPS 2020), Section 8

    Example:
        >>> from arcsm import MADE, AnyOrder, AutoregressiveModel, GaussianHead
        >>> model = AutoregressiveModel(AnyOrder(3, 4, (8,), 8), GaussianHead(4))
        >>> order = learned_order(model, torch.randn(50, 3), generator=torch.Generator().manual_seed(0))
        >>> sorted(order), MADE(features=3, context_features=4, order=order).order == order
        ([0, 1, 2], True)
    """
    context = every_order(model)
    check_size("learned_order", least=0, starts=starts)
    check_size("learned_order", most=_MAX_EVALUATIONS, evaluations=evaluations)
    terms = _Terms(model, x, level, condition, cells, **integration)
    device = None if generator is None else generator.device
    randoms = [torch.randperm(model.features, generator=generator, device=device).tolist() for _ in range(starts)]
    with track("searching", evaluations, progress) as advance:
        search = _Search(terms, context.arranged, evaluations, -1.0 if worst else 1.0, advance)
        found = search.best_of([[d for d in order if d not in context.parents] for order in (context.order, *randoms)])
    warn_unconverged(terms.unconverged, len(terms.means) * len(x))
    return tuple(context.arranged(found))


def _terms_of(order: Iterable[int]) -> Iterator[Term]:
    """Yield the terms of the chain rule in an order."""
    before = 0
    for d in order:
        yield d, before
        before |= 1 << d


class _Terms:
    """Means over rows of the terms :math:`\\log q(x_d \\mid x_S)`, each evaluated once."""

    def __init__(
        self,
        model: AutoregressiveModel,
        x: Tensor,
        level: int,
        condition: Condition | None,
        cells: Tensor | Sequence[float] | None,
        **integration: Unpack[Integration],
    ) -> None:
        if x.ndim != 2 or not len(x):
            raise ValueError(f"x: expected at least one row (N, {model.features}), got {tuple(x.shape)}")
        self.model, self.context, self.z = model, every_order(model), model.standardise(x)
        model.check_levels(self.z)
        self.z = self.context.resolved(self.z)
        self.condition = model.standardise_condition(condition, self.z.shape[:-1])
        self.build = model.conditionals_builder(level, **checked_integration(integration))
        self.log_density = model.density_function(cells)
        self.means: dict[Term, float] = {}
        self.unconverged: Count = 0

    def evaluate(self, terms: Iterable[Term]) -> int:
        """Evaluate the terms that are not known yet; return their number."""
        new = [term for term in dict.fromkeys(terms) if term not in self.means]
        for head, columns in self.model.head.parts(self.model.features):
            its = [term for term in new if term[0] in columns]
            self.means.update(zip(its, self._means(head, its), strict=True))
        return len(new)

    def _means(self, head: Head, terms: Sequence[Term]) -> list[float]:
        """Return the mean terms of dimensions with the same head, which are cheaper together."""
        if not terms:
            return []
        z, device, features = self.z, self.z.device, self.model.features
        dimensions = torch.tensor([d for d, _ in terms], device=device)
        known = torch.tensor([[before >> d & 1 for d in range(features)] for _, before in terms], device=device).bool()

        def values(part: slice) -> tuple[Tensor, Count]:
            index = torch.arange(part.start, part.stop, device=device)  # term by term
            term, row = index // len(z), index % len(z)
            state = self.context.begin((len(row),), map_condition(lambda one: one[row], self.condition))
            self.context.observe_all(state, z[row].masked_fill(~known[term], torch.nan))
            columns, contexts = dimensions[term], z.new_empty(len(row), self.context.context_features)
            for d in columns.unique().tolist():
                chosen = (columns == d).nonzero()[:, 0]
                contexts[chosen] = self.context.conditional(state, d, chosen)
            conditionals, numbers = self.build(head.project(contexts), head), z[row, columns]
            found = self.log_density(conditionals, numbers.nan_to_num(nan=0.0), columns.tolist())
            found = found - torch.log(self.model.scale[columns])
            return torch.where(numbers.isnan(), 0.0, found).double(), conditionals.unconverged

        parts = slices_for_cores(len(terms) * len(z), max(1, _VALUES_AT_A_TIME // features), device)
        found = map_slices(values, parts, device)
        self.unconverged += sum(unconverged for _, unconverged in found)
        means: list[float] = torch.cat([part for part, _ in found]).view(len(terms), -1).mean(1).tolist()
        return means


class _Search:
    """A local search among orders of the dimensions without those that are parents, which ``arranged`` adds."""

    def __init__(
        self,
        terms: _Terms,
        arranged: Callable[[Sequence[int]], list[int]],
        evaluations: int,
        sign: float,
        advance: Callable[[float], None],
    ) -> None:
        self.terms, self.arranged, self.left, self.sign, self.advance = terms, arranged, evaluations, sign, advance

    def best_of(self, starts: Sequence[list[int]]) -> list[int]:
        """Return the best order found: by swaps from all starts, then by insertions from the best of these on."""
        found = [self.swap(starts[0])]
        found += [self.swap(start) for start in starts[1:] if self.left > 0]
        ranked = sorted(found, key=self.value, reverse=True)
        return max((self.insert(order) for order in ranked), key=self.value)

    def value(self, order: Sequence[int]) -> float:
        """Return the mean log density in an order, negative if it should be low."""
        terms = list(_terms_of(self.arranged(order)))
        self._evaluate(terms)
        return self.sign * sum(self.terms.means[term] for term in terms)

    def swap(self, order: list[int]) -> list[int]:
        """Swap neighbours while that gains. Disjoint pairs gain independently, so half of them are tried at a time."""
        order, gained = list(order), True
        value = self.value(order)
        while gained and self.left > 0:
            gained = False
            for first in (0, 1):
                pairs = range(first, len(order) - 1, 2)
                values = self._values([[*order[:i], order[i + 1], order[i], *order[i + 2 :]] for i in pairs])
                for i, other in zip(pairs, values, strict=True):
                    if other > value + _LEAST_GAIN:
                        order[i], order[i + 1], gained = order[i + 1], order[i], True
                value = self.value(order)
        return order

    def insert(self, order: list[int]) -> list[int]:
        """Move each dimension to its best place, then swap neighbours, while that gains."""
        value, gained = self.value(order), True
        while gained:
            gained = False
            for d in list(order):
                if self.left <= 0:
                    return order
                others = [e for e in order if e != d]
                moved = [[*others[:place], d, *others[place:]] for place in range(len(order))]
                values = self._values(moved)
                best = max(range(len(moved)), key=values.__getitem__)
                if values[best] > value + _LEAST_GAIN:
                    order, value, gained = moved[best], values[best], True
            if gained:
                order = self.swap(order)
                value = self.value(order)
        return order

    def _values(self, orders: Sequence[Sequence[int]]) -> list[float]:
        """Return the values of some orders, whose new terms are evaluated together."""
        self._evaluate(term for order in orders for term in _terms_of(self.arranged(order)))
        return [self.value(order) for order in orders]

    def _evaluate(self, terms: Iterable[Term]) -> None:
        count = self.terms.evaluate(terms)
        self.left -= count
        if count:
            self.advance(count)
