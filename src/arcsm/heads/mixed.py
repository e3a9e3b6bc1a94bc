"""A head for each kind of column."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from arcsm import registry
from arcsm._runtime.sizes import whole_numbers
from arcsm.heads.base import Head, HeadColumns, ScoreAndDerivative, Sigma


class MixedHead(Head):
    """Heads of several kinds, each for some of the columns.

    .. math:: q(x) = \\prod_{d=1}^{D} q_{h(d)}(x_d \\mid c_d)

    The factors of numeric columns are densities, and those of nominal columns (:class:`CategoricalHead`) are
    probabilities, so the product is a density with respect to the product of the two measures. ``csm``, and ``dsm`` on
    a ladder, train the factors with a score by that score and the others by likelihood; ``mle`` trains all by
    likelihood.

    Arguments:
        heads: The heads, all with contexts of the same size.
        columns: The index of the head of each column, ``D`` integers.

    Example:
        >>> from arcsm import CategoricalHead, ScoreHead
        >>> head = MixedHead([ScoreHead(4), CategoricalHead(4, levels=3)], columns=(0, 0, 1))
        >>> [(type(part.head).__name__, part.columns) for part in head.parts(3)]
        [('ScoreHead', (0, 1)), ('CategoricalHead', (2,))]
    """

    def __init__(self, heads: Sequence[Head | Mapping[str, Any]], columns: Sequence[int]) -> None:
        super().__init__()
        built = [head if isinstance(head, nn.Module) else registry.build("head", head) for head in heads]
        sizes = {head.context_features for head in built}
        if len(sizes) != 1:
            raise ValueError(f"heads: expected contexts of one size, got {sorted(sizes)}")
        if any(isinstance(head, MixedHead) for head in built):
            raise ValueError("heads: expected heads of single columns, got a MixedHead")
        self.columns = whole_numbers("columns", columns)
        if set(self.columns) != set(range(len(built))):
            raise ValueError(
                f"columns: expected the index of a head for each column, all from 0 to {len(built) - 1}, "
                f"got {self.columns!r:.60}"
            )
        self.context_features, self.heads = sizes.pop(), nn.ModuleList(built)
        self.normalised = all(head.normalised for head in built)
        self.has_score = any(head.has_score for head in built)
        self.has_density = all(head.has_density for head in built)

    def config(self) -> dict[str, Any]:
        heads = [{"kind": type(head).__name__, **head.config()} for head in self.heads if isinstance(head, Head)]
        return {"heads": heads, "columns": list(self.columns)}

    def parts(self, features: int) -> list[HeadColumns]:
        if len(self.columns) != features:
            raise ValueError(f"columns: expected one head for each of {features} columns, got {len(self.columns)}")
        by_head: list[list[int]] = [[] for _ in self.heads]
        for d, index in enumerate(self.columns):
            by_head[index].append(d)
        pairs = zip(self.heads, by_head, strict=True)
        return [HeadColumns(head, tuple(columns)) for head, columns in pairs if isinstance(head, Head)]

    def score_and_derivative(self, context: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        """Return the scores of rows ``(*, D)`` with contexts ``(*, D, C)``; NaN in columns without a score."""
        found = [
            part.head.score_and_derivative(context[..., part.columns, :], x[..., part.columns], sigma)
            if part.head.has_score
            else (torch.full_like(x[..., part.columns], torch.nan),) * 2
            for part in self.parts(x.shape[-1])
        ]
        s, ds = zip(*found, strict=True)
        return self._by_column(s), self._by_column(ds)

    def score(self, context: Tensor, x: Tensor, sigma: Sigma = None) -> Tensor:
        return self.score_and_derivative(context, x, sigma)[0]

    def _by_column(self, found: Sequence[Tensor]) -> Tensor:
        """Join results ``(*, K)`` for the columns of each head into ``(*, D)``."""
        columns = [d for part in self.parts(len(self.columns)) for d in part.columns]
        return torch.cat(list(found), -1)[..., [columns.index(d) for d in range(len(columns))]]

    def project(self, context: Tensor) -> Tensor:
        _reject()

    def projected_score_and_derivative(self, projection: Tensor, x: Tensor, sigma: Sigma = None) -> ScoreAndDerivative:
        _reject()


def _reject() -> NoReturn:
    raise ValueError(
        "head: a MixedHead has a head for each column; train it with csm, with dsm on a ladder or with mle, and use "
        "the methods of the model (score, log_prob, cdf, sample)"
    )
