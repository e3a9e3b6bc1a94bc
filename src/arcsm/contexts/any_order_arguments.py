"""The arguments of an any-order context, and what they must be."""

import math

from arcsm._runtime.sizes import check_layers, check_size
from arcsm.contexts.base import Context
from arcsm.contexts.parents import Parents


class AnyOrderArguments(Context):
    """A context with the arguments of :class:`~arcsm.AnyOrder`; each check raises a ValueError that names one."""

    network_features: int
    hidden_features: tuple[int, ...]
    embedding_features: int
    sinusoids: int
    sinusoid_decay: float
    dropout: float
    balance: float
    complete_share: float
    levels: tuple[int, ...]
    parents: tuple[int, ...]
    targets: tuple[int, ...]
    ordered: tuple[int, ...]
    ranked: tuple[int, ...]

    def check_sizes(self) -> None:
        """Check sizes and fractions."""
        sizes = {"features": self.features, "context_features": self.context_features}
        check_size("AnyOrder", **sizes, embedding_features=self.embedding_features)
        if self.network_features < 1:
            raise ValueError(f"context_features: expected at least 3 if located, got {self.context_features}")
        check_size("AnyOrder", least=0, sinusoids=self.sinusoids)
        if not self.hidden_features or len(set(self.hidden_features)) > 1:
            raise ValueError(f"hidden_features: expected layers of one width, got {self.hidden_features}")
        if len(self.levels) != self.features:
            raise ValueError(f"levels: expected one number for each of {self.features} columns, got {len(self.levels)}")
        if len(self.parents) != self.features:
            raise ValueError(f"parents: expected one for each of {self.features} columns, got {len(self.parents)}")
        check_size("AnyOrder", least=0, **{f"levels[{d}]": count for d, count in enumerate(self.levels)})
        check_layers("AnyOrder", sum(self.levels), (self.embedding_features,), 1)
        inputs, outputs = self.features * (1 + 2 * self.sinusoids), self.features * self.context_features
        check_layers("AnyOrder", inputs, (self.embedding_features,), 1)
        check_layers("AnyOrder", self.embedding_features, self.hidden_features, outputs)
        check_layers("AnyOrder", self.classes + self.condition_features, (), self.hidden_features[0])
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: expected a fraction from 0 to below 1, got {self.dropout}")
        if not 0.0 <= self.balance <= 1.0:
            raise ValueError(f"balance: expected a number from 0 to 1, got {self.balance}")
        if not 0.0 <= self.sinusoid_decay < math.inf:
            raise ValueError(f"sinusoid_decay: expected a finite number of at least 0, got {self.sinusoid_decay}")

    def check_small_sets(self, small_sets: int, least: int = 1) -> None:
        """Check the largest number of values of small sets."""
        check_size("AnyOrder", least=least, small_sets=small_sets)
        most = max(0, self.features - 2)
        if small_sets > most:
            raise ValueError(
                f"small_sets: expected at most {most}, as other sets need a network, too, got {small_sets}"
            )

    def check_targets(self, parents: Parents) -> None:
        """Check which dimensions are targets, and which have ordered or ranked levels."""
        chosen = set(self.targets)
        if not chosen or not chosen <= set(range(self.features)) or len(chosen) < len(self.targets):
            raise ValueError(f"targets: expected different dimensions, at least one, got {self.targets!r:.60}")
        for name, columns in (("ordered", self.ordered), ("ranked", self.ranked)):
            if any(not 0 <= d < self.features or not self.levels[d] for d in columns):
                raise ValueError(f"{name}: expected columns with levels, got {columns!r:.60}")
        if any((d in chosen) != (parent in chosen) for d, parent in parents.of.items()):
            raise ValueError(f"targets: expected a dimension and its parent or neither, got {self.targets!r:.60}")
        if not 0.0 <= self.complete_share <= 1.0:
            raise ValueError(f"complete_share: expected a fraction, got {self.complete_share}")
