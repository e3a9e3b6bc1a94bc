"""The model: a context network, a head and a ladder of noise, seen as one joint density."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from torch import Tensor, nn

from arcsm import checkpoint
from arcsm.batches import parts_of, rows_of, warn_of_unsure
from arcsm.conditionals import Accuracy, Conditionals, Prepared, choose_method
from arcsm.contexts import Context
from arcsm.devices import resolve_device
from arcsm.finite import all_finite
from arcsm.heads import Head
from arcsm.model_parts import configuring, parts_of_config
from arcsm.noise import NoiseLadder
from arcsm.progress import track
from arcsm.samplers import SAMPLERS, Sampler
from arcsm.walking import Builder, ask_each, walk


class AutoregressiveModel(
    nn.Module,
    ModelHubMixin,
    library_name="arcsm",
    tags=["density-estimation", "score-matching", "autoregressive"],
):
    """An autoregressive density, known by the scores of its one-dimensional conditionals (paper, Definition 1).

    .. math:: q(x) = \\prod_{d=1}^{D} q(x_d \\mid x_{<d}), \\qquad
        s_d(x) = \\frac{\\partial}{\\partial x_d} \\log q(x_d \\mid x_{<d})

    References:
        Autoregressive Score Matching (Meng, Yu, Song, Song and Ermon, NeurIPS 2020)

    Arguments:
        context: The network :math:`x_{<d} \\to c_d`.
        head: The conditional :math:`(c_d, x_d) \\to s_d`.
        noise: The ladder of noise levels; ``None`` for the paper's plain CSM, which models the data as they are.
        shift: Subtracted from the data, ``(D,)`` or a number.
        scale: Divides them afterwards, ``(D,)`` or a number, positive. Noise levels are in units of it. All methods
            take and give data units. :func:`arcsm.fit` replaces both by those of the training data, unless it is told
            ``standardise="none"``.
        metadata: Anything JSON-ready that should travel with the weights (column names, image shape).

    Raises:
        ValueError: for a head and a context of different sizes, or a scale that is not positive.

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

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        context: Context,
        head: Head,
        noise: NoiseLadder | None = None,
        shift: Tensor | Sequence[float] | float = 0.0,
        scale: Tensor | Sequence[float] | float = 1.0,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if context.context_features != head.context_features:
            raise ValueError(
                f"context_features: the context gives {context.context_features}, "
                f"the head takes {head.context_features}"
            )
        self.context, self.head, self.noise = context, head, noise
        self.metadata = dict(metadata or {})
        dtype = torch.get_default_dtype()
        self.register_buffer("shift", torch.zeros(context.features, dtype=dtype))
        self.register_buffer("scale", torch.ones(context.features, dtype=dtype))
        self.set_standardisation(shift, scale)

    # Units ------------------------------------------------------------------------------------------------------

    @property
    def features(self) -> int:
        """Number of dimensions :math:`D`."""
        return self.context.features

    def set_standardisation(
        self, shift: Tensor | Sequence[float] | float, scale: Tensor | Sequence[float] | float
    ) -> None:
        """Set the affine map between data and standardised units, ``(D,)`` or a number each."""
        new = [torch.as_tensor(value).to(self.shift) for value in (shift, scale)]
        for name, value in zip(("shift", "scale"), new, strict=True):
            if value.ndim > 1 or (value.ndim and len(value) != self.features):
                raise ValueError(f"{name}: expected a number or {self.features} of them, got {tuple(value.shape)}")
        if not bool(new[0].isfinite().all()):
            raise ValueError("shift: expected finite numbers")
        if not bool((new[1] > 0).all() and new[1].isfinite().all()):
            raise ValueError("scale: expected positive finite numbers (a constant column has none: leave it out)")
        with torch.no_grad():
            self.shift.copy_(new[0].expand(self.features))
            self.scale.copy_(new[1].expand(self.features))

    def standardise(self, x: Tensor, missing: bool | None = None) -> Tensor:
        """Data units ``(*, D)`` to standardised units, checked.

        Arguments:
            x: The data.
            missing: Whether NaN are missing values and no mistake; by default where the context takes them.

        Raises:
            ValueError: for a wrong shape or type, NaN or infinity.
        """
        if not isinstance(x, Tensor):
            raise ValueError(f"x: expected a torch.Tensor, got {type(x).__name__}; use torch.as_tensor")
        if x.shape[-1:] != (self.features,):
            raise ValueError(f"x: expected shape (*, {self.features}), got {tuple(x.shape)}")
        if x.is_complex() or x.dtype == torch.bool:
            raise ValueError(f"x: expected real numbers, got {x.dtype}")
        x = x.to(self.shift)
        if self.context.missing if missing is None else missing:
            if bool(x.isinf().any()):
                raise ValueError(f"x: holds infinity (as {x.dtype}); missing values are NaN")
        elif not all_finite(x):
            raise ValueError(f"x: holds NaN or infinity (as {x.dtype}); drop or fill those rows")
        return (x - self.shift) / self.scale

    def path(self, level: int = -1, steps: int | None = None) -> tuple[float, ...]:
        """Noise levels from the largest to ``level``; with ``steps``, that many geometric steps in between.

        Raises:
            ValueError: for a level that the ladder does not have, or steps below one.
        """
        if self.noise is None:
            for name, given in (("level", level not in (0, -1)), ("steps", steps is not None)):
                if given:
                    raise ValueError(f"{name}: this model has no noise ladder")
            return ()
        sigma = self.noise.sigma(level)
        if steps is None:
            return self.noise.sigmas[: level % self.noise.levels + 1]
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        if sigma == self.noise.sigma_max:
            return (sigma,)
        return NoiseLadder(self.noise.sigma_max, sigma, steps + 1).sigmas

    # What the model says of given points -------------------------------------------------------------------------

    def forward(self, x: Tensor, level: int = -1, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same as :meth:`score`."""
        return self.score(x, level, condition)

    def score(self, x: Tensor, level: int = -1, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Conditional scores and their exact derivatives, in one pass.

        .. math:: s_d = \\partial_{x_d} \\log q(x_d \\mid x_{<d}), \\qquad \\partial_{x_d} s_d

        Arguments:
            x: ``(*, D)`` in data units. The contexts are computed from it as it is.
            level: Noise level of :math:`x_d`; 0 is the largest, -1 the smallest.
            condition: What the model is conditioned on, ``(*, F)`` or labels ``(*)``.

        Returns:
            ``s`` and ``ds``, each ``(*, D)``, in 1/units and 1/units^2; NaN where a value is missing.
        """
        s, ds = self.head.evaluate(*self._at(x, level, condition))
        return s / self.scale, ds / self.scale.square()

    def score_alone(self, x: Tensor, level: int = -1, condition: Tensor | None = None) -> Tensor:
        """The first half of :meth:`score`, without the work on derivatives."""
        return self.head.score(*self._at(x, level, condition)) / self.scale

    def _at(self, x: Tensor, level: int, condition: Tensor | None) -> tuple[Tensor, Tensor, float | None]:
        """What a head is asked: projections ``(*, D, P)``, values ``(*, D)`` in its units and their noise."""
        z, path = self.standardise(x), self.path(level)
        return self.head.project(self.context(z, condition)), z, path[-1] if path else None

    def log_prob(
        self,
        x: Tensor,
        level: int = -1,
        condition: Tensor | None = None,
        reduce: bool = True,
        method: str | None = None,
        steps: int | None = None,
        tol: float = 1e-5,
        max_evaluations: int = 512,
        cells: Tensor | Sequence[float] | None = None,
    ) -> Tensor:
        """Normalised log density in nats, in data units.

        With a noise ladder this is the density of the data *plus* noise :math:`\\mathcal{N}(0, \\sigma^2)` (in
        standardised units) of the level; at ``level=-1`` that is :math:`\\sigma_L`, the smallest.

        Arguments:
            x: ``(*, D)``.
            level: Noise level.
            condition: What the model is conditioned on, ``(*, F)`` or labels ``(*)``.
            reduce: Sum over the dimensions; otherwise one term of the chain rule for each.
            method: ``"closed_form"`` (default of normalised heads), ``"flow"`` through the ladder (default of a
                ``ScoreHead`` with one; what ``probability_flow`` samples from) or ``"quadrature"`` of the score of
                this level alone. The quadrature is exact for the score that it is given, but at a small noise no
                score is learned in the gap between far modes: their weights are then an accident, and no warning
                can tell. The flow takes them from the largest noise, which bridges the gap.
            steps: Steps of the flow; by default from level to level of the ladder, one fewer than there are.
            tol: Error of each conditional in nats to aim for.
            max_evaluations: Largest number of evaluations of the score for one conditional and integral.
            cells: Steps of discrete dimensions, ``(D,)`` in data units, 0 for continuous ones: the density of a value
                is then its mean over the step that the value is in the middle of, that is, the probability of the value
                divided by the step. The contexts are those of the middles.

        Returns:
            ``(*)``, or ``(*, D)`` with ``reduce=False``; of what is known where values are missing (NaN, for a context
            that takes them), whose terms are zero. Gradients flow to ``x`` and the weights in closed form
            only; to train through the normaliser, see :func:`arcsm.objectives.mle`.

        Raises:
            ValueError: for rows of another size, NaN (of a context that takes no missing values) or infinity; a level,
                method or number of steps that the model does not have; fewer evaluations than the first pass takes.

        Warns:
            AccuracyWarning: once a call, if some integrals missed ``tol``.
        """
        accuracy = Accuracy(tol, max_evaluations)
        question = Conditionals.log_prob if cells is None else self._cell_question(cells)
        terms = self._asked(question, x, level, condition, method, steps, accuracy)
        terms = terms - torch.log(self.scale)
        if self.context.missing:
            terms = torch.where(x.to(terms.device).isnan(), 0.0, terms)
        return terms.sum(-1) if reduce else terms

    def cdf(
        self,
        x: Tensor,
        level: int = -1,
        condition: Tensor | None = None,
        method: str | None = None,
        steps: int | None = None,
        tol: float = 1e-5,
        max_evaluations: int = 512,
    ) -> Tensor:
        """The Rosenblatt transform :math:`u_d = F(x_d \\mid x_{<d})`, ``(*, D)``: uniform if the model is right.

        Arguments, errors and warnings as in :meth:`log_prob`; NaN where a value is missing.
        """
        return self._asked(Conditionals.cdf, x, level, condition, method, steps, Accuracy(tol, max_evaluations))

    @torch.no_grad()
    def quantile(
        self,
        x: Tensor,
        u: float,
        level: int = -1,
        condition: Tensor | None = None,
        method: str | None = None,
        steps: int | None = None,
        tol: float = 1e-5,
        max_evaluations: int = 512,
    ) -> Tensor:
        """Where the conditional of every value has the share ``u`` of its mass below it, ``(*, D)``.

        The conditionals are those given the values of ``x`` before, as they are: what was to be expected of each value,
        of missing ones too. Other arguments and warnings as in :meth:`log_prob`.

        Raises:
            ValueError: for a share outside (0, 1).
        """
        if not 0.0 < u < 1.0:
            raise ValueError(f"u: expected a share between 0 and 1, got {u}")

        def asked_for(conditionals: Conditionals, values: Tensor) -> Tensor:
            return conditionals.icdf(torch.full_like(values, u))

        accuracy = Accuracy(tol, max_evaluations)
        found = self._asked(asked_for, x, level, condition, method, steps, accuracy, of_missing=True)
        return found * self.scale + self.shift

    @torch.no_grad()
    def icdf(
        self,
        u: Tensor,
        level: int = -1,
        condition: Tensor | None = None,
        method: str | None = None,
        steps: int | None = None,
        tol: float = 1e-5,
        max_evaluations: int = 512,
    ) -> Tensor:
        """The inverse of :meth:`cdf`, ``(*, D)`` in (0, 1) to ``(*, D)``, one dimension after the other.

        Other arguments and warnings as in :meth:`log_prob`.

        Raises:
            ValueError: for values outside (0, 1).
        """
        if not isinstance(u, Tensor):
            raise ValueError(f"u: expected a torch.Tensor, got {type(u).__name__}")
        if u.shape[-1:] != (self.features,):
            raise ValueError(f"u: expected shape (*, {self.features}), got {tuple(u.shape)}")
        if not bool(((u > 0) & (u < 1)).all()):
            raise ValueError("u: expected values inside (0, 1); a cdf rounds to 0 or 1 where a value is very far out")
        build = self.conditionals_of(level, method, steps, Accuracy(tol, max_evaluations))
        flat = u.reshape(-1, self.features).to(self.shift)
        rows = rows_of(condition, u.shape[:-1])
        unsure = 0
        parts = [flat[:0]]
        for part in parts_of(len(flat)):
            targets = flat[part]

            def quantile(conditionals: Conditionals, d: int, targets: Tensor = targets) -> Tensor:
                return conditionals.icdf(targets[:, d])

            z, missed = walk(self, len(targets), rows(part), build, quantile)
            parts.append(z)
            unsure += missed
        warn_of_unsure(unsure, flat.numel())
        return (torch.cat(parts) * self.scale + self.shift).reshape(u.shape)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        sampler: str | Sampler | None = None,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
        progress: bool = False,
        level: int = -1,
        steps: int | None = None,
        denoise: bool = False,
        batch_size: int = 1024,
        bounds: tuple[float, float] | None = None,
        **options: Any,
    ) -> Tensor:
        """Draw from the model, one dimension after the other (paper, Section 4.2).

        Arguments:
            n: Number of rows.
            sampler: ``"probability_flow"`` (default with a ladder), ``"fast_flow"``, nearly the same for fewer
                evaluations, ``"inverse_cdf"`` (default of normalised heads and without a ladder) or ``"langevin"``, the
                paper's; or a function of one's own, see :mod:`arcsm.samplers`.
            generator: Source of randomness, on the model's device; the same seed gives the same sample.
            condition: ``(n, F)`` or labels ``(n,)``, or one that all rows share.
            progress: Show a progress bar (on a terminal).
            level: Noise level to stop at.
            steps: Steps down the ladder; by default from level to level, one fewer than there are. (Langevin dynamics
                stays at each of its levels, ``steps + 1`` of them.)
            denoise: Remove the noise that is left by a last step of Tweedie's formula,
                :math:`x_d + \\sigma_L^2 s_d`.
            batch_size: Rows drawn at a time.
            bounds: Where all values lie, in data units: what is drawn outside moves to the nearer bound before it is
                handed to the next conditionals, as in PixelCNN++. One value from a far tail would lead them to where
                no data were, and from there ever farther. By default images (metadata with an ``image_shape``) lie in
                [-1, 1] and four of the smallest sigma beyond, and other rows anywhere.
            options: Passed to the sampler (``steps`` and ``step_size`` of Langevin as ``langevin_steps``,
                ``step_size``).

        Returns:
            ``(n, D)`` in data units.

        Raises:
            ValueError: for no rows, an unknown sampler or option, a level or number of steps that the ladder does not
                have, or bounds out of order.

        Warns:
            AccuracyWarning: once a call, if some integrals missed the sampler's ``tol``.
        """
        if n < 1 or batch_size < 1:
            raise ValueError(f"n, batch_size: expected at least 1, got {n} and {batch_size}")
        if sampler is None:
            sampler = "probability_flow" if self.noise and not self.head.normalised else "inverse_cdf"
        if not callable(sampler) and sampler not in SAMPLERS:
            raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, or a function, got {sampler!r}")
        draw = sampler if callable(sampler) else SAMPLERS[sampler]
        known = set(inspect.signature(draw).parameters) - {"conditionals", "generator"}
        renamed = {"langevin_steps": "steps"} if "steps" in known else {}  # the ladder has steps, too
        known = known - set(renamed.values()) | renamed.keys()
        if options.keys() - known:
            unknown = ", ".join(sorted(options.keys() - known))
            raise ValueError(f"{unknown}: not an option of {sampler}; it takes {', '.join(sorted(known))}")
        options = {renamed.get(name, name): value for name, value in options.items()}
        path = self.path(level, steps)
        low, high = self._bounds(bounds, path)
        build = self.conditionals_of(level, None, steps, prepared=Prepared())
        rows = rows_of(condition, (n,))
        parts, unsure = [], 0
        total = self.features * -(-n // batch_size)
        with track("sampling", total, progress) as advance:
            for part in parts_of(n, batch_size):
                z, missed = walk(
                    self,
                    len(range(n)[part]),
                    rows(part),
                    build,
                    lambda conditionals, d: draw(conditionals, generator, **options).clamp(low[d], high[d]),
                    advance,
                )
                if denoise and path:
                    context = self.context(z, rows(part))
                    z = z + path[-1] ** 2 * self.head.score(self.head.project(context), z, path[-1])
                parts.append(z)
                unsure += missed
        warn_of_unsure(unsure, n * self.features)
        return torch.cat(parts) * self.scale + self.shift

    def _bounds(self, bounds: tuple[float, float] | None, path: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Where samples lie, ``(D,)`` each, standardised; see :meth:`sample`."""
        if bounds is None:
            beyond = 4.0 * path[-1] * float(self.scale.max()) if path else 0.0
            bounds = (-1.0 - beyond, 1.0 + beyond) if "image_shape" in self.metadata else (-torch.inf, torch.inf)
        if not bounds[0] < bounds[1]:
            raise ValueError(f"bounds: expected a lower and a higher one, got {bounds}")
        return (bounds[0] - self.shift) / self.scale, (bounds[1] - self.shift) / self.scale

    # Its conditionals --------------------------------------------------------------------------------------------

    def conditionals_of(
        self,
        level: int = -1,
        method: str | None = None,
        steps: int | None = None,
        accuracy: Accuracy | None = None,
        prepared: Prepared | None = None,
    ) -> Builder:
        """What turns projections ``(N, P)`` of contexts into conditionals at a level.

        Arguments:
            level: Noise level.
            method: As in :meth:`log_prob`.
            steps: Steps down the ladder; by default from level to level, one fewer than there are.
            accuracy: Of the integration.
            prepared: What all these conditionals may share, where they stay within one thread.
        """
        path = self.path(level, steps)
        chosen, accuracy = choose_method(self.head, path, method), accuracy or Accuracy()
        return lambda projection: Conditionals(
            self.head, projection, path, chosen, accuracy, prepared=prepared or Prepared()
        )

    def _asked(
        self,
        question: Callable[[Conditionals, Tensor], Tensor],
        x: Tensor,
        level: int,
        condition: Tensor | None,
        method: str | None,
        steps: int | None,
        accuracy: Accuracy,
        of_missing: bool = False,
    ) -> Tensor:
        """What every conditional of given rows answers about its own value; see :func:`arcsm.walking.ask_each`."""
        build = self.conditionals_of(level, method, steps, accuracy)
        closed_form = self.head.normalised and method in (None, "closed_form")
        return ask_each(self, x, condition, build, question, closed_form, of_missing)

    def _cell_question(self, cells: Tensor | Sequence[float]) -> Callable[[Conditionals, Tensor], Tensor]:
        """Asks every conditional of whole rows for its mean density over a cell."""
        steps = torch.as_tensor(cells).to(self.scale)
        if steps.shape != (self.features,) or not bool((steps >= 0.0).all()):
            raise ValueError(f"cells: expected {self.features} steps, none negative, got {cells}")
        half = 0.5 * steps / self.scale
        return lambda conditionals, values: conditionals.log_mean_density(
            values, half.repeat(len(values) // self.features)
        )

    # Files ------------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """All that is needed to build the model without its weights, JSON-ready."""
        noise = None
        if self.noise is not None:
            noise = {name: getattr(self.noise, name) for name in ("sigma_max", "sigma_min", "levels", "continuous")}
        return {
            "context": {"kind": type(self.context).__name__, **self.context.config()},
            "head": {"kind": type(self.head).__name__, **self.head.config()},
            "noise": noise,
            "metadata": self.metadata,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the model of a configuration, with fresh weights.

        Raises:
            ValueError: for kinds or arguments that do not exist.
        """
        with configuring():
            return cls(**parts_of_config(config))

    def _save_pretrained(self, save_directory: Path) -> None:
        save(self, save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **options: Any) -> AutoregressiveModel:
        if Path(model_id).is_dir():
            return load(model_id, device=map_location)
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        wanted = {name: options[name] for name in known if name in options}
        return load(hf_hub_download(model_id, checkpoint.WEIGHTS_NAME, **wanted), device=map_location)


def save(model: AutoregressiveModel, path: str | os.PathLike[str]) -> None:
    """Write a model: weights as safetensors with the configuration in their header, never pickle.

    Arguments:
        model: The model.
        path: A file ending in ``.safetensors``, or a folder that gets ``model.safetensors`` and, for people to read,
            ``config.json``. Each file is replaced in one step: a kill leaves the old one or the new one.
    """
    checkpoint.save_module(model, model.config(), path)


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> AutoregressiveModel:
    """Read a model that :func:`save` wrote.

    Arguments:
        path: The file or folder.
        device: Where to put it; ``"auto"`` for a GPU if there is one.

    Raises:
        ValueError: for a file that is missing, truncated, foreign, of a later version, or whose tensors do not fit
            its configuration.
    """
    tensors, config = checkpoint.read_module(path)
    file = checkpoint.weights_path(path)
    if "kind" in config:
        raise ValueError(
            f"{file}: holds a {config['kind']}, not an autoregressive model; arcsm report and arcsm sample take it"
        )
    try:
        model = AutoregressiveModel.from_config(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    dtype = tensors["shift"].dtype if "shift" in tensors else torch.get_default_dtype()
    if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{file}: expected weights that are real numbers, got {dtype}")
    model.to(dtype)
    checkpoint.load_state(model, tensors, file)
    model.set_standardisation(model.shift.clone(), model.scale.clone())  # checks them
    return model.to(resolve_device(device)).eval()
