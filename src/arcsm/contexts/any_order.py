"""One network for every order of the dimensions: orderless NADE."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from arcsm._native import available, context_walk, may_evaluate, supports
from arcsm._runtime.conditions import Condition
from arcsm._runtime.devices import constant, widest_float
from arcsm._runtime.random import Source
from arcsm._runtime.sizes import whole_numbers
from arcsm.contexts.any_order_steps import StepwiseAnyOrder, with_pairs
from arcsm.contexts.base import Order, TrainingTerms
from arcsm.contexts.known_sets import draw_sets, sum_before, weights_of_sets
from arcsm.contexts.linear_base import LinearBase, OnLine
from arcsm.contexts.linear_features import LinearFeatures
from arcsm.contexts.parents import Parents
from arcsm.contexts.set_networks import SetNetwork, SetNetworks, Sets
from arcsm.contexts.value_embedding import ValueEmbedding
from arcsm.errors import readable

_MAX_SINUSOIDS = 256  # of a context in C, which keeps them on its stack


class AnyOrder(StepwiseAnyOrder):
    """One network for the conditionals of every order of the dimensions (orderless NADE, any-order ARM).

    The context of a dimension is a function of the *set* :math:`S` of values that come before it:

    .. math:: c_d(x_S) = W_d\\, \\big( g(s) + A s \\big) + b_d, \\qquad
        s = \\tfrac{1}{\\sqrt{1 + |S|}} \\sum_{j \\in S} \\phi_j(x_j)

    Here :math:`\\phi_j` embeds the values of column :math:`j`, and :math:`g` is a residual network that all dimensions
    share. So any set of values can come first, and any other dimension next: :meth:`forward` takes any order,
    :meth:`observe` and :meth:`conditional` any set. Missing values (NaN) are not in the set.

    The last layer of :math:`g` is divided by its root mean square before its nonlinearity, so that contexts cannot grow
    until heads saturate: where few sets occur, all steps of a training push them in the same direction. The linear map
    :math:`A`, zero at first and scaled to be learned slowly, lets contexts follow values far from the mean. A condition
    adds to the first layer of :math:`g` and, linearly, to the result; so do the residuals of known values on a line.

    Training draws a set for each row, and the dimensions outside of it share one pass of :math:`g`; see
    :meth:`training_terms`.

    References:
        A Deep and Tractable Density Estimator (Uria, Murray and Larochelle, 2014), https://arxiv.org/abs/1310.1757
        Autoregressive Diffusion Models (Hoogeboom et al., 2022), https://arxiv.org/abs/2110.02037
        Root Mean Square Layer Normalization (Zhang and Sennrich, 2019), https://arxiv.org/abs/1910.07467

    Arguments:
        features: Number of dimensions :math:`D`.
        context_features: Size :math:`C` of the context of each dimension.
        hidden_features: Units of each layer of :math:`g`, all equal. The layers after the first are residual.
        embedding_features: Size of the vectors :math:`\\phi_j(x_j)`.
        condition_features: Size of a condition vector that every dimension sees; 0 for none.
        order: The order without another in the call, a permutation of ``range(features)``. Default: that of the
            columns, with parents right before their dimensions.
        classes: Number of class labels; 0 for none. The condition is as in :class:`MADE`.
        sinusoids: Number of frequencies, from 1 to ``max_frequency``, at which :math:`\\phi_j` sees sines and cosines
            of each value.
        max_frequency: The largest frequency, in radians per unit of standardised data.
        dropout: Fraction of the units of residual layers that training switches off.
        levels: Number of levels of each nominal column, whose values are the numbers of levels, and 0 for each numeric
            column. Default: all columns are numeric.
        parents: For each dimension that does not always have a value, the nominal dimension that says so: it has one
            where the parent has level 0, and is left out of every set elsewhere. Level 0 of a parent adds nothing to
            a set: its dimension's own value says more. A parent comes before its dimension in every order. -1 for the
            others. Default: all -1.
        targets: The dimensions that training predicts, such as the targets of a regression; the others are only ever
            known or unknown, and the conditionals that a model returns for them are not trained. Default: all.
        complete_share: Fraction of the rows of a training step in which all others are known; in the rest, a random
            subset is.
        condition_net: A network that embeds the condition first; see :class:`~arcsm.ConditionNet`.
        ordered: The nominal columns whose levels have an order, as numbers do. Vectors that vary slowly along the
            levels are learned first; see :class:`CategoricalHead`. Default: none.
        sinusoid_decay: The exponent :math:`p` of the amplitude :math:`f^{-p}` of the sine and cosine at frequency
            :math:`f`. If it is positive, slow changes along the values are learned before fast ones, and what single
            rows suggest is learned last.
        balance: How far training makes up for gaps that depend on values: from 0, not at all, to 1; see
            :meth:`training_terms`.
        located: The last two of the ``context_features`` are location and log scale of the best linear predictor of
            the dimension from the known values, where it is nearly exact, and else 0; a :class:`LocatedHead` models
            what it leaves. The network also sees how far each known value is from its prediction by the others, in
            units of the error. :func:`arcsm.fit` estimates the correlations.
        linear_features: Whether contexts also get what the best linear predictor says of the dimension given the known
            values: a mean, or one for each level, and the log of the error. With few rows, that is most of what can be
            learned. Each set takes time in proportion to the cube of the number of units: numbers, ranks, and levels of
            other nominal dimensions. :func:`arcsm.fit` estimates the correlations.
        small_sets: Sets of at most this many values have a network :math:`g` of their own, of the same size; 0 for
            none. What one or two values tell is learned last, after larger sets are overfitted; see
            :meth:`small_sets_only`.
        ranked: The nominal columns whose levels linear predictors treat as one number, the rank. Those that are not
            ``ordered`` are still learned level by level elsewhere, as suits numbers that need not resemble their
            neighbours. Default: the ``ordered`` ones.

    Example:
        >>> context = AnyOrder(features=3, context_features=2, hidden_features=(8, 8))
        >>> context(torch.zeros(5, 3)).shape, context(torch.zeros(5, 3), order=(2, 0, 1)).shape
        (torch.Size([5, 3, 2]), torch.Size([5, 3, 2]))
    """

    any_order = True
    missing = True
    levels: tuple[int, ...]

    def __init__(
        self,
        features: int,
        context_features: int = 16,
        hidden_features: Sequence[int] = (128, 128, 128),
        embedding_features: int = 128,
        condition_features: int = 0,
        order: Sequence[int] | None = None,
        classes: int = 0,
        sinusoids: int = 0,
        max_frequency: float = 20.0,
        dropout: float = 0.0,
        levels: Sequence[int] | None = None,
        parents: Sequence[int] | None = None,
        targets: Sequence[int] | None = None,
        complete_share: float = 0.9,
        condition_net: nn.Module | Mapping[str, Any] | None = None,
        ordered: Sequence[int] | None = None,
        sinusoid_decay: float = 0.0,
        balance: float = 0.0,
        located: bool = False,
        small_sets: int = 0,
        linear_features: bool = False,
        ranked: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.located = bool(located)
        self.network_features = context_features - 2 * self.located
        self.features, self.context_features = features, context_features
        self.hidden_features = whole_numbers("hidden_features", hidden_features)
        self.embedding_features = embedding_features
        self.sinusoids, self.max_frequency, self.dropout = sinusoids, float(max_frequency), float(dropout)
        self.sinusoid_decay, self.balance = float(sinusoid_decay), float(balance)
        self.levels = (0,) * features if levels is None else whole_numbers("levels", levels)
        self.parents = (-1,) * features if parents is None else whole_numbers("parents", parents)
        self.targets = tuple(range(features)) if targets is None else whole_numbers("targets", targets)
        self.ordered = () if ordered is None else whole_numbers("ordered", ordered)
        self.ranked = self.ordered if ranked is None else whole_numbers("ranked", ranked)
        self.complete_share = float(complete_share)
        self._parents = Parents(self.parents)
        self.set_condition(classes, condition_features, condition_net)
        self.check_sizes()
        self.check_small_sets(small_sets, least=0)
        self._parents.check(self.levels)
        self.check_targets(self._parents)
        self._default_order = tuple(self.arranged(range(features)))
        self.order = self._default_order if order is None else whole_numbers("order", order)
        if sorted(self.order) != list(range(features)):
            raise ValueError(f"order: expected a permutation of range({features}), got {self.order!r:.60}")
        self._parents.check_order(torch.tensor(self.order))

        self.values = ValueEmbedding(
            self.levels, embedding_features, sinusoids, self.max_frequency, self.ordered, self.sinusoid_decay
        )
        self.linear = LinearFeatures(self.levels, self.ranked) if linear_features else None
        self.networks = SetNetworks(small_sets, self._new_network)
        self.base = LinearBase(features) if self.located else None
        self._trains_small_sets = False

    def _new_network(self) -> SetNetwork:
        shape, condition_layer = (self.features, self.network_features), self.condition_layer
        return SetNetwork(
            shape, self.embedding_features, self.hidden_features, self.dropout, self.located,
            () if self.linear is None else self.linear.owners, condition_layer if self.is_conditional else None,
        )  # fmt: skip

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.base is not None:
            moved = fn(torch.zeros(1))
            if moved.dtype in (torch.float16, torch.bfloat16):
                raise ValueError("located: the linear base of an AnyOrder needs single precision; train in bf16-mixed")
            if widest_float(moved.device) != torch.float64:
                raise ValueError(
                    f"located: the linear base of an AnyOrder needs double precision, which {moved.device.type} does "
                    'not have; use device="cpu"'
                )
        return super()._apply(fn, recurse)

    @property
    def noise_scale(self) -> float | Tensor:  # type: ignore[override]
        return 1.0 if self.base is None else self.base.scales

    def check_order(self, order: Order | None, batch_shape: Sequence[int]) -> Tensor:
        checked = super().check_order(order, batch_shape)
        if order is not None:
            self._parents.check_order(checked)
        return checked

    def arranged(self, order: Sequence[int]) -> list[int]:
        """Return some dimensions in order, with the parent of each right before it unless it comes earlier."""
        return self._parents.arranged(order)

    def resolved(self, x: Tensor) -> Tensor:
        """Return rows ``(*, D)`` with NaN where a parent rules a value out, and with parents that a value implies."""
        return self._parents.resolved(x)

    @property
    def linear_features(self) -> bool:
        """Whether contexts get linear predictions."""
        return self.linear is not None

    @property
    def small_sets(self) -> int:
        """The largest number of values of the sets that have a network of their own; 0 if none has."""
        return self.networks.small_sets

    def config(self) -> dict[str, Any]:
        arguments = super().config()
        if type(self).__init__ is not AnyOrder.__init__:  # whose defaults may differ
            return arguments
        in_column_order = self.order == self._default_order
        levels = list(self.levels) if any(self.levels) else None
        parents = list(self.parents) if self._parents.of else None
        order = None if in_column_order else list(self.order)
        targets = None if len(self.targets) == self.features else list(self.targets)
        ranked = None if self.ranked == self.ordered else list(self.ranked)
        own = {"order": order, "levels": levels, "parents": parents, "targets": targets, "ranked": ranked}
        return {**arguments, **own, "ordered": list(self.ordered) or None}

    def forward(self, x: Tensor, condition: Condition | None = None, order: Order | None = None) -> Tensor:
        """Return the contexts of all dimensions in an order, ``(*, D, C)``.

        Arguments:
            x: Rows ``(*, D)`` in standardised units; NaN marks a missing value.
            condition: As in :meth:`Context.forward`.
            order: A permutation of the dimensions ``(D,)``, or one for each row ``(*, D)``. Default: ``self.order``.
        """
        self.check_input(x)
        shape = x.shape[:-1]
        order = self.check_order(order, shape)
        order = order if order.ndim == 1 else order.reshape(-1, self.features)
        x = x.reshape(-1, self.features)
        vectors, known = self._embed(x)
        totals, counts = sum_before(vectors, order), sum_before(known.unsqueeze(-1), order)  # (B, D, E), (B, D, 1)
        on_line = None if self.base is None else self.base.in_order(x, known, order)
        linear = None if self.linear is None else self.linear.in_order(x, known, order)
        return self._contexts(totals, counts, condition, shape, on_line, linear)

    def in_single_precision(self, x: Tensor, condition: Condition | None = None, order: Order | None = None) -> Tensor:
        """Return :meth:`forward` without gradients, if possible in C and in single precision, whatever the type of x.

        An order for each row, and more than a few hundred sinusoids, need torch.
        """
        self.check_input(x)
        shape = x.shape[:-1]
        checked = self.check_order(order, shape)
        x = x.reshape(-1, self.features)
        values, weights = x.detach().float(), [weight.detach().float() for weight in self.parameters()]
        is_possible = checked.ndim == 1 and self.sinusoids <= _MAX_SINUSOIDS and may_evaluate()
        if not is_possible or not supports(values, *weights) or not available():
            return self(x.reshape(*shape, self.features), condition, order)
        is_known = (~self._parents.left_out(x)).to(x)
        on_line = None if self.base is None else self.base.in_order(x, is_known, checked)
        linear = None if self.linear is None else self.linear.in_order(values, is_known.float(), checked).to(x)
        condition = self.embed_condition(condition, shape)
        terms = self.networks.condition_terms(condition, len(x)) if self.is_conditional else None
        residuals = None if on_line is None else on_line.residuals.float()
        walked, known = self.networks.walked(terms, self._columns_on_line), is_known.float()
        vectors = self.values.vectors().to(torch.float32)
        contexts = context_walk(vectors, walked, self.small_sets, checked.tolist(), values, known, residuals).to(x)
        if linear is not None:
            is_small = None
            if self.small_sets:
                is_small = sum_before(is_known.unsqueeze(-1), checked) <= self.small_sets
            contexts = self.networks.with_units(contexts, linear, is_small)
        contexts = contexts if on_line is None else with_pairs(contexts, on_line.pairs)
        return contexts.reshape(*shape, self.features, self.context_features)

    def given_others(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the contexts of all dimensions given all other known values, ``(*, D, C)``; see :meth:`forward`."""
        self.check_input(x)
        shape, x = x.shape[:-1], x.reshape(-1, self.features)
        vectors, known = self._embed(x)
        known = known.unsqueeze(-1)
        totals, counts = vectors.sum(1, keepdim=True) - vectors, known.sum(1, keepdim=True) - known
        for d, parent in self._parents.of.items():  # a value of d would reveal the level of its parent
            totals[:, parent] -= vectors[:, d]
            counts[:, parent] -= known[:, d]
        on_line = None
        if self.base is not None:
            on_line = self.base.given_others(x, known[..., 0])
            for d, parent in self._parents.of.items():
                on_line.residuals[:, parent] = on_line.residuals[:, d]
        linear = None if self.linear is None else self.linear.given_others(x, known[..., 0], self._parents.of)
        return self._contexts(totals, counts, condition, shape, on_line, linear)

    def _contexts(
        self,
        total: Tensor,
        count: Tensor,
        condition: Condition | None,
        shape: Sequence[int],
        on_line: OnLine | None,
        linear: Tensor | None,
    ) -> Tensor:
        """Return contexts ``(*, D, C)`` of dimensions, given sets with ``total (B, D, E)`` and ``count (B, D, 1)``."""
        condition = self.embed_condition(condition, shape)
        terms = [term.unsqueeze(1) for term in self.networks.condition_terms(condition, total.shape[0])]
        residuals = None if on_line is None else on_line.residuals
        contexts = self.networks.of_each(Sets(total, count, terms, residuals, self._columns_on_line, linear))
        contexts = contexts if on_line is None else with_pairs(contexts, on_line.pairs)
        return contexts.reshape(*shape, self.features, self.context_features)

    def training_terms(self, x: Tensor, condition: Condition | None = None, generator: Source = None) -> TrainingTerms:
        """Return the conditionals of a random set of known values for each row ``(B, D)``.

        A row with :math:`m` known values gets a set of size :math:`k`, uniform on 0 to :math:`m - 1`; the sizes are
        stratified over the rows. A dimension and its parent count as one value. The other :math:`m - k` values are
        predicted from it, with the weight :math:`m / (m - k)`. In expectation, the weighted sum of their losses is the
        mean, over all orders, of the loss of the row:

        .. math:: \\mathbb{E}_{\\pi} \\sum_{i=1}^{m} \\ell(x_{\\pi_i} \\mid x_{\\pi_{<i}}) =
            \\mathbb{E}_{k, \\pi}\\, \\frac{m}{m - k} \\sum_{i > k} \\ell(x_{\\pi_i} \\mid x_{\\pi_{\\le k}})

        If values are missing, rows with few known ones have small sets more often than others have, and the
        conditionals given few values are mostly those of such rows. That is a bias where missing values depend on other
        ones. There are :math:`\\binom{m - 1}{k}` sets of size :math:`k` to predict a value from, so with a further
        weight in proportion to :math:`m \\binom{m - 1}{k}`, all rows that have a set and a value count equally. Large
        sets then come from few rows. ``balance`` limits the loss: the weight has a power of at most 1, such that their
        effective number stays at least the fraction ``1 - balance / 2``.

        Within :meth:`small_sets_only`, sizes are uniform on 0 to ``small_sets``, and the sum is that of the first
        values.

        With ``targets``, all of this is about them: :math:`m` is the number of known ones, and the other values that a
        set has come before them in every order.
        """
        self.check_input(x)
        is_value = (~self._parents.left_out(x)).to(x)
        is_target = None
        if len(self.targets) < self.features:
            are_targets = tuple(d in self.targets for d in range(self.features))
            is_target = constant(are_targets, torch.bool, x.device)
        most = self.small_sets if self._trains_small_sets else None
        total, size, known = draw_sets(x, self._parents, is_target, self.complete_share, generator, most)
        present = ~x.isnan() if is_target is None else ~x.isnan() & is_target
        for d, parent in self._parents.of.items():
            present[:, d] &= x[:, parent] < 0.5
        known_values = known * is_value
        sums = self.values.sums(x, known_values)  # (B, E)
        on_line = None if self.base is None else self.base(x, known_values)
        condition = self.embed_condition(condition, x.shape[:-1])
        residuals = None if on_line is None else on_line.residuals[:, 0]  # of the one set of a row
        terms = self.networks.condition_terms(condition, x.shape[0])
        linear = None if self.linear is None else self.linear(x, known_values)
        sets = Sets(sums, known_values.sum(1, keepdim=True), terms, residuals, self._columns_on_line, linear)
        contexts = self.networks.of_all(sets).flatten(0, 1)  # (B * D, C)
        if on_line is not None:
            contexts = with_pairs(contexts, on_line.pairs.view(-1, 2))
        sizes = total if most is None else total.clamp(max=most + 1)
        share = (sizes / (total - size).clamp(min=1)).to(x)  # (B, 1)
        if self.balance:
            share = share * weights_of_sets(total, size, self.features, 1.0 - 0.5 * self.balance)
        share = share.expand_as(x).flatten()
        predicted = (present & ~known).flatten()
        if readable(predicted) is not predicted:  # shapes cannot depend on values
            return TrainingTerms(contexts, None, share * predicted)
        chosen = predicted.nonzero()[:, 0]  # (N,)
        return TrainingTerms(contexts[chosen], chosen, share[chosen])

    @contextmanager
    def small_sets_only(self, small_sets: int) -> Iterator[None]:
        """Within the block, training draws sets of at most this many values, and changes only their network.

        This network begins as a copy of the one that the others have, and replaces one that was there. A model has a
        head, too: ``model.head.requires_grad_(False)`` leaves it as it is, and ``standardise="none"`` the units.

        Example:
            >>> context = AnyOrder(features=5, context_features=2, hidden_features=(8, 8))
            >>> with context.small_sets_only(2):
            ...     trained = [name for name, weight in context.named_parameters() if weight.requires_grad]
            >>> all(name.startswith("networks.small") for name in trained)
            True
        """
        self.check_small_sets(small_sets)
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for parameter in trainable:
            parameter.requires_grad_(False)
        self.networks.divide(small_sets).requires_grad_(True)
        self._trains_small_sets = True
        try:
            yield
        finally:
            self._trains_small_sets = False
            for parameter in trainable:
                parameter.requires_grad_(True)
