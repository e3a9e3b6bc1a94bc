"""Conditionals in units of a location and a scale each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from arcsm.conditionals.conditionals import Conditionals
from arcsm.heads.located import Located, LocatedHead


@dataclass
class LocatedConditionals(Conditionals):
    """``N`` conditionals of a :class:`~arcsm.heads.LocatedHead`: those of its inner head, moved and stretched."""

    @property
    def core(self) -> Conditionals:
        """The conditionals of the inner head, in its units."""
        assert isinstance(self.head, LocatedHead)
        projection = self.projection[:, :-2].contiguous()
        return Conditionals(
            self.head.inner, projection, self.path, self.method, self.accuracy, self.continuous,
            cache=self.cache, compiled=self.compiled, looks=self.looks,
        )  # fmt: skip

    @property
    def _base(self) -> Located:
        return Located.split(self.projection)

    def from_core(self, u: Tensor) -> Tensor:
        return self._base.from_units(u.to(self.projection.dtype)).to(u)

    def log_prob(self, x: Tensor) -> Tensor:
        return self._of_core(lambda core: core.log_prob(self._base.to_units(x))) - self._base.log_scale

    def cdf(self, x: Tensor) -> Tensor:
        return self._of_core(lambda core: core.cdf(self._base.to_units(x)))

    def log_prob_and_cdf(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, cdf = self._of_core(lambda core: torch.stack(core.log_prob_and_cdf(self._base.to_units(x))))
        return log_prob - self._base.log_scale, cdf

    def log_mean_density(self, x: Tensor, half: Tensor) -> Tensor:
        stretch = torch.exp(-self._base.log_scale)
        found = self._of_core(lambda core: core.log_mean_density(self._base.to_units(x), half * stretch))
        return found - self._base.log_scale

    def icdf(self, u: Tensor, nodes: Tensor | None = None) -> Tensor:
        return self.from_core(self._of_core(lambda core: core.icdf(u, nodes)))

    def differentiable_log_prob(self, x: Tensor) -> Tensor:
        found = self._of_core(lambda core: core.differentiable_log_prob(self._base.to_units(x)))
        return found - self._base.log_scale

    def _of_core(self, function: Callable[[Conditionals], Tensor]) -> Tensor:
        """Return a function of the inner conditionals, whose integrals that missed their tolerance count here."""
        core = self.core
        result = function(core)
        self.unconverged += core.unconverged
        return result


def conditionals_class(head: object) -> type[Conditionals]:
    """Return the class of the conditionals of a head."""
    return LocatedConditionals if isinstance(head, LocatedHead) else Conditionals
