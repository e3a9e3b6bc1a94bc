"""The model: one joint density from a context network, a head and a noise ladder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self, Unpack, cast

import torch
from torch import Tensor

from arcsm import registry
from arcsm._runtime.conditions import Condition
from arcsm._runtime.random import Source
from arcsm.conditionals import SINGLE_TOLERANCE, Accuracy, Conditionals
from arcsm.conditionals.traversal import (
    Integration,
    ValueFunction,
    checked_integration,
    map_conditionals,
)
from arcsm.contexts import Context
from arcsm.contexts.base import Order, TrainingTerms, order_arguments
from arcsm.data.metadata import check_metadata
from arcsm.errors import is_mapped
from arcsm.heads import Head
from arcsm.model.files import ModelFiles
from arcsm.model.sampling import Sampling
from arcsm.model.standardisation import Values
from arcsm.noise import NoiseLadder


class AutoregressiveModel(
    Sampling, ModelFiles, library_name="arcsm", tags=["density-estimation", "score-matching", "autoregressive"]
):
    """An autoregressive density whose one-dimensional conditionals are known by their scores (paper, Definition 1).

    .. math:: q(x) = \\prod_{d=1}^{D} q(x_d \\mid x_{<d}), \\qquad
        s_d(x) = \\frac{\\partial}{\\partial x_d} \\log q(x_d \\mid x_{<d})

    References:
        Autoregressive Score Matching (Meng, Yu, Song, Song and Ermon, NeurIPS 2020)

    Arguments:
        context: The network :math:`x_{<d} \\to c_d`.
        head: The conditional :math:`(c_d, x_d) \\to s_d`.
        noise: The ladder of noise levels. ``None`` is the paper's plain CSM, which models the data as they are.
        shift: Subtracted from the data, ``(D,)`` or a number.
        scale: Divides the shifted data, ``(D,)`` or a number, positive. Noise levels are in units of it. All methods
            take and return data units. :func:`arcsm.fit` replaces both by the moments of the training data, unless
            ``standardise="none"``.
        metadata: Anything JSON-ready that should travel with the weights, such as ``columns`` (the D names) or, for
            images, ``image_shape`` (channels, height, width) and ``levels`` (grey values of a channel).
        condition_shift: Subtracted from condition vectors, ``(F,)`` or a number. Labels stay as they are.
        condition_scale: Divides the shifted condition vectors, ``(F,)`` or a number, positive. :func:`arcsm.fit`
            replaces both like ``shift`` and ``scale``.

    Raises:
        ValueError: If the head and the context have different sizes, a scale is not positive, or the metadata do not
            fit the dimensions.

    Example:
        >>> from arcsm import MADE, ScoreHead
        >>> model = AutoregressiveModel(
        ...     context=MADE(features=2, context_features=4, hidden_features=(16,)),
        ...     head=ScoreHead(context_features=4, hidden_features=(16,)),
        ...     noise=NoiseLadder(sigma_max=1.0, sigma_min=0.1, levels=5),
        ... )
        >>> s, ds = model.score(torch.zeros(3, 2))
        >>> s.shape, model.log_prob(torch.zeros(3, 2)).shape, model.sample(4).shape
        (torch.Size([3, 2]), torch.Size([3]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        context: Context,
        head: Head,
        noise: NoiseLadder | None = None,
        shift: Values = 0.0,
        scale: Values = 1.0,
        metadata: Mapping[str, Any] | None = None,
        condition_shift: Values = 0.0,
        condition_scale: Values = 1.0,
    ) -> None:
        super().__init__()
        if context.context_features != head.context_features:
            raise ValueError(
                f"context_features: the context returns {context.context_features}, "
                f"the head expects {head.context_features}"
            )
        _check_same_levels(context, head)
        located = [type(one).__name__ for one, _ in head.parts(context.features) if one.located]
        if located and not context.located:
            raise ValueError(f"{located[0]}: the context gives no locations; AnyOrder(located=True) does")
        self.context, self.head, self.noise = context, head, noise
        self.metadata = dict(metadata or {})
        check_metadata(self.metadata, self.features)
        self.register_standardisation()
        self.set_standardisation(shift, scale)
        self.set_condition_standardisation(condition_shift, condition_scale)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "head":  # torch.compile would compile its forward method, which it does not have, and hide its class
            value = getattr(value, "_orig_mod", value)
        super().__setattr__(name, value)

    # Contexts and noise levels -------------------------------------------------------------------------------------

    def contexts(self, z: Tensor, condition: Condition | None = None, order: Order | None = None) -> Tensor:
        """Return the contexts ``(*, D, C)`` of standardised rows ``(*, D)``; for the rest see :meth:`score`."""
        arguments = order_arguments(self.context, order)
        return cast(Tensor, self.context(z, self.standardise_condition(condition), **arguments))

    def training_terms(self, z: Tensor, condition: Condition | None, generator: Source) -> TrainingTerms:
        """Return the conditionals that estimate the loss of standardised rows ``(B, D)``; see :class:`Context`."""
        return self.context.training_terms(z, self.standardise_condition(condition), generator)

    # Scores, densities, distribution functions ------------------------------------------------------------------

    def forward(self, x: Tensor, level: int = -1, condition: Condition | None = None) -> tuple[Tensor, Tensor]:
        """Alias of :meth:`score`."""
        return self.score(x, level, condition)

    def score(
        self, x: Tensor, level: int = -1, condition: Condition | None = None, order: Order | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the conditional scores and their exact derivatives, in one pass.

        .. math:: s_d = \\partial_{x_d} \\log q(x_d \\mid x_{<d}), \\qquad \\partial_{x_d} s_d

        Arguments:
            x: ``(*, D)`` in data units. The contexts are computed from ``x`` without added noise.
            level: Noise level of :math:`x_d`; 0 is the largest, -1 the smallest.
            condition: Condition of each row, ``(*, F)`` or labels ``(*)``, or one for all rows; for a model with both,
                a mapping ``{"classes": labels, "vector": vectors}``.
            order: For a context that has every order (:class:`AnyOrder`): a permutation of the dimensions, ``(D,)``,
                or one for each row, ``(*, D)``. Default: the order of the context.

        Returns:
            ``s`` and ``ds``, each ``(*, D)``, in 1/units and 1/units^2; NaN where a value is missing and in
            nominal columns.
        """
        z = self.standardise(x)
        s, ds = self.head.score_and_derivative(self.contexts(z, condition, order), z, self.sigma(level))
        return s / self.scale, ds / self.scale.square()

    def score_alone(
        self, x: Tensor, level: int = -1, condition: Condition | None = None, order: Order | None = None
    ) -> Tensor:
        """Return the scores of :meth:`score` alone."""
        z = self.standardise(x)
        return self.head.score(self.contexts(z, condition, order), z, self.sigma(level)) / self.scale

    def log_prob(
        self,
        x: Tensor,
        level: int = -1,
        condition: Condition | None = None,
        reduce: bool = True,
        method: str | None = None,
        cells: Tensor | Sequence[float] | None = None,
        order: Order | None = None,
        **integration: Unpack[Integration],
    ) -> Tensor:
        """Return the normalised log density in nats, in data units.

        With a noise ladder this is the density of the data *plus* noise :math:`\\mathcal{N}(0, \\sigma^2)` of the level
        (in standardised units). At ``level=-1`` that is :math:`\\sigma_L`, the smallest.

        Arguments:
            x: ``(*, D)``.
            level: Noise level.
            condition: As in :meth:`score`.
            reduce: Sum over the dimensions. Otherwise return one term of the chain rule for each.
            method: ``"closed_form"`` (default of normalised heads), ``"flow"`` through the ladder (default of a
                ``ScoreHead`` with a ladder; the density that ``probability_flow`` samples from) or ``"quadrature"`` of
                the score of this level alone. The quadrature is exact for that score, but at a small noise no score is
                learned in the gap between far modes. The weights of the modes are then arbitrary, without a warning.
                The flow takes them from the largest noise, which bridges the gap.
            cells: Steps of discrete dimensions, ``(D,)`` in data units; 0 for continuous ones. The density of a value
                is then the mean over the step around it: the probability of the value divided by the step. The
                contexts are computed from the midpoints.
            order: As in :meth:`score`.
            integration: ``steps``, ``tol`` and ``max_evaluations``; see :class:`Integration`.

        Returns:
            ``(*)``, or ``(*, D)`` with ``reduce=False``. Missing values (NaN, if the context accepts them) contribute
            zero. Gradients flow only in closed form. An integrated density (``"flow"`` or ``"quadrature"``, so always
            of a ``ScoreHead``) has none: a backward pass to ``x`` or the condition raises ``NotImplementedError``, and
            the weights get no gradient. Train a ``ScoreHead`` with :func:`arcsm.objectives.csm`, or through its
            normaliser with :func:`arcsm.objectives.mle`; :meth:`score` has the derivative of each term by its own
            value. Train a normalised head with :func:`arcsm.objectives.mle`.

        Raises:
            ValueError: If rows have the wrong size or are not finite, or the level, method or steps do not exist.

        Warns:
            AccuracyWarning: Once a call, if some integrals missed ``tol``.
        """
        function = self.density_function(cells)
        terms = self.evaluate(function, x, level, condition, method, order, **integration) - torch.log(self.scale)
        if self.context.missing:
            terms = torch.where(self.context.resolved(x).to(terms.device).isnan(), 0.0, terms)
        return terms.sum(-1) if reduce else terms

    def cdf(
        self,
        x: Tensor,
        level: int = -1,
        condition: Condition | None = None,
        method: str | None = None,
        order: Order | None = None,
        **integration: Unpack[Integration],
    ) -> Tensor:
        """Return the Rosenblatt transform :math:`u_d = F(x_d \\mid x_{<d})`, ``(*, D)``.

        The values are uniform if the model is right, and NaN where a value is missing. Arguments, errors and warnings
        are as in :meth:`log_prob`.
        """
        return self.evaluate(lambda q, x, _: q.cdf(x), x, level, condition, method, order, **integration)

    @torch.no_grad()
    def conditional_icdf(
        self,
        x: Tensor,
        u: float,
        level: int = -1,
        condition: Condition | None = None,
        method: str | None = None,
        order: Order | None = None,
        **integration: Unpack[Integration],
    ) -> Tensor:
        """Return the ``u`` quantile of each conditional given the values before it in ``x``, ``(*, D)``.

        Unlike :meth:`icdf`, which generates rows, it leaves the contexts as they are. Missing values have a quantile
        too. Other arguments and warnings are as in :meth:`log_prob`.

        Raises:
            ValueError: If ``u`` is not inside (0, 1).
        """
        if not 0.0 < u < 1.0:
            raise ValueError(f"u: expected a probability inside (0, 1), got {u}")

        def quantile(conditionals: Conditionals, values: Tensor, _: Sequence[int]) -> Tensor:
            return conditionals.icdf(torch.full_like(values, u))

        z = self.evaluate(quantile, x, level, condition, method, order, needs_values=False, **integration)
        return z * self.scale + self.shift

    # Conditionals -----------------------------------------------------------------------------------------------

    def evaluate(
        self,
        function: ValueFunction,
        x: Tensor,
        level: int = -1,
        condition: Condition | None = None,
        method: str | None = None,
        order: Order | None = None,
        needs_values: bool = True,
        **integration: Unpack[Integration],
    ) -> Tensor:
        """Return a function of the conditional of each value given the values before it in ``x``, ``(*, D)``.

        Arguments:
            function: Maps :class:`Conditionals`, their values ``(N,)`` in standardised units and the columns ``(K,)``
                that these cycle through to results ``(N,)``.
            x: Rows ``(*, D)`` in data units.
            needs_values: Whether a missing value has no result; it is then NaN.

        Other arguments, errors and warnings are as in :meth:`log_prob`.
        """
        build = self.conditionals_builder(level, method, **checked_integration(integration))
        closed_form = self.head.normalised and method in (None, "closed_form")
        single = self.shift.dtype == torch.float32 or integration.get("tol", Accuracy.tol) >= SINGLE_TOLERANCE
        z = self.context.resolved(self.standardise(x))
        if not closed_form and is_mapped(x):
            raise NotImplementedError("torch.func.vmap cannot integrate conditionals; pass all rows at once, (*, D)")
        condition = self.standardise_condition(condition, x.shape[:-1])
        orders = self.context.check_order(order, x.shape[:-1]) if order_arguments(self.context, order) else None
        return map_conditionals(
            function, self.context, self.head, z, condition, build, closed_form, needs_values, orders, single
        )

    def density_function(self, cells: Tensor | Sequence[float] | None = None) -> ValueFunction:
        """Return a function that maps conditionals and values to log densities, or to log mean densities over cells.

        Both are in standardised units. Levels get log masses. The ``cells`` are those of :meth:`log_prob`.
        """
        if cells is None:
            return _log_prob
        steps = torch.as_tensor(cells).to(self.scale)
        if steps.shape != (self.features,) or not bool(((steps >= 0.0) & steps.isfinite()).all()):
            raise ValueError(f"cells: expected {self.features} finite steps, none negative, got {cells}")
        half = 0.5 * steps / self.scale

        def log_mean_density(conditionals: Conditionals, values: Tensor, columns: Sequence[int]) -> Tensor:
            if conditionals.head.discrete:
                return conditionals.log_prob(values)
            return conditionals.log_mean_density(values, half[list(columns)].repeat(len(values) // len(columns)))

        return log_mean_density

    # Files ------------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Return the JSON-ready configuration from which :meth:`from_config` builds the model."""
        return {
            "context": {"kind": type(self.context).__name__, **self.context.config()},
            "head": {"kind": type(self.head).__name__, **self.head.config()},
            "noise": None if self.noise is None else asdict(self.noise),
            "metadata": self.metadata,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build a model from its configuration, with fresh weights.

        Raises:
            ValueError: If a kind is not registered or an argument does not exist.
        """
        with registry.configuration_errors():
            for name in ("context", "head", "noise", "metadata"):
                if config.get(name) is not None and not isinstance(config[name], Mapping):
                    raise ValueError(f"model configuration: {name}: expected a mapping, got {config[name]!r:.60}")
            return cls(
                context=registry.build("context", config["context"]),
                head=registry.build("head", config["head"]),
                noise=None if config.get("noise") is None else NoiseLadder(**config["noise"]),
                metadata=config.get("metadata"),
            )


def _log_prob(conditionals: Conditionals, values: Tensor, _: Sequence[int]) -> Tensor:
    return conditionals.log_prob(values)


def _check_same_levels(context: Context, head: Head) -> None:
    """Check that context and head agree on which columns are nominal, and on their numbers of levels."""
    kinds = {
        d: getattr(one, "levels", 0) if one.discrete else 0 for one, its in head.parts(context.features) for d in its
    }
    for d, expected in enumerate(context.levels or ()):
        if kinds[d] != expected:
            first, second = (f"{levels} levels" if levels else "numbers" for levels in (expected, kinds[d]))
            raise ValueError(f"column {d}: the context expects {first}, the head {second}")


def without_compilation(model: AutoregressiveModel) -> AutoregressiveModel:
    """Return the model without ``torch.compile`` around it or its context. Weights and buffers are shared."""
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, AutoregressiveModel):
        raise ValueError(f"model: expected an AutoregressiveModel, got {type(model).__name__}")
    context: Context = getattr(model.context, "_orig_mod", model.context)
    if context is model.context:
        return model
    plain = type(model)(context, model.head, model.noise, metadata=model.metadata)
    for name, buffer in model.named_buffers(recurse=False):
        setattr(plain, name, buffer)
    return plain


def save(model: AutoregressiveModel, path: str | os.PathLike[str]) -> None:
    """Write a model, compiled or not, as safetensors, with its configuration in the header.

    The path is that of a file ending in ``.safetensors``, or of a folder for ``model.safetensors`` and a readable
    ``config.json``. Files are replaced atomically. The type of a tensor is kept. A subclass of the model is not: the
    ``from_pretrained`` of the subclass reads the file as one again, and :func:`load` as an ``AutoregressiveModel``.

    Raises:
        ValueError: If the context, its ``condition_net`` or the head is not registered (:func:`arcsm.register`) or does
            not store its arguments, an argument or the metadata cannot become JSON, the configuration rebuilds other
            tensors (a parametrization, an added layer, a changed attribute), or ``model`` is not a model.
    """
    without_compilation(model).write(path)


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> AutoregressiveModel:
    """Read a model that :func:`save` wrote to a file or folder, onto a device (``"auto"`` for a GPU if there is one).

    Raises:
        ValueError: If the file is missing, truncated, from another program or a later version, if a part is not
            registered, or if the tensors do not fit the configuration.
    """
    return AutoregressiveModel.read(path, device)
