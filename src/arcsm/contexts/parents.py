"""Dimensions that do not always have a value, and the nominal dimensions that say whether they do."""

from collections.abc import Sequence

import torch
from torch import Tensor

from arcsm.errors import readable


class Parents:
    """The parents of ``D`` dimensions, -1 for those that always have a value.

    A dimension has a value where its parent has level 0. The parent comes before it in every order.
    """

    def __init__(self, parents: Sequence[int]) -> None:
        self.of = {d: parent for d, parent in enumerate(parents) if parent != -1}

    def check(self, levels: Sequence[int]) -> None:
        """Check that parents are nominal dimensions, which have ``levels``, without a parent of their own."""
        for d, parent in self.of.items():
            if not 0 <= parent < len(levels) or not levels[parent] or parent in self.of:
                raise ValueError(f"parents: expected a nominal dimension without a parent for {d}, got {parent}")

    def check_order(self, order: Tensor) -> None:
        """Check that parents come before their dimensions in orders ``(*, D)``."""
        known = readable(order) if self.of else None
        if known is None:
            return
        places = known.argsort(-1)
        for d, parent in self.of.items():
            if not bool((places[..., parent] < places[..., d]).all()):
                raise ValueError(f"order: expected dimension {parent}, the parent of {d}, before it")

    def arranged(self, order: Sequence[int]) -> list[int]:
        """Return some dimensions in order, with the parent of each right before it unless it comes earlier."""
        found = list[int]()
        for d in order:
            found += [one for one in (self.of.get(d), d) if one is not None and one not in found]
        return found

    def resolved(self, x: Tensor) -> Tensor:
        """Return rows ``(*, D)`` with NaN where a parent rules a value out, and with parents that a value implies."""
        if not self.of:
            return x
        x = x.clone()
        for d, parent in self.of.items():
            x[..., d] = x[..., d].masked_fill(x[..., parent] > 0.5, torch.nan)
            x[..., parent] = torch.where(x[..., d].isnan(), x[..., parent], 0.0)
        return x

    def left_out(self, x: Tensor) -> Tensor:
        """Return which values of rows ``(B, D)`` no set has: missing ones, those ruled out, and levels 0 of parents.

        The level of a parent says nothing that its dimension's own value does not say.
        """
        missing = x.isnan()
        for d, parent in self.of.items():
            missing[:, d] |= x[:, parent] > 0.5
            missing[:, parent] |= x[:, parent] < 0.5
        return missing
