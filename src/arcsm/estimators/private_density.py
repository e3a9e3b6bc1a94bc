"""A density of a table that says little of any one row."""

from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.utils import check_random_state

from arcsm.estimators.checks import check_training_rows
from arcsm.estimators.density import ScoreDensity
from arcsm.estimators.native_frames import is_native, to_native
from arcsm.privacy import PrivateStatistics
from arcsm.privacy.accounting import check_budget

_LEAST_ROWS, _MOST_ROWS = 5_000, 20_000  # that are drawn to train on


class PrivateDensity(ScoreDensity):
    """The density of a table with differential privacy, for synthetic rows and answers that may be published.

    The model never sees the table. It learns from rows that are drawn from :class:`~arcsm.privacy.PrivateStatistics`:
    the distribution of each column and the correlations of all, with noise. So all that it says, draws or stores is
    :math:`(\\epsilon, \\delta)`-differentially private, however often it is asked. Relations that are not linear in
    normal scores of numbers and indicators of names are lost; with few rows or many columns, so are fine details.

    For rows alone use the statistics: their rows are nearer to the table, and need no model.

    The names and the types of the columns are taken as public. Fitting the same table again spends the budget again.

    Arguments:
        epsilon: The budget :math:`\\epsilon`: 1 is strong protection, 10 is weak.
        delta: The budget :math:`\\delta`, much less than one over the number of rows.
        random_state: Randomness of the training and of draws. The noise never depends on it: whoever knew the seed
            could subtract the noise.
        n_estimators: As in :class:`ScoreDensity`, and likewise the other arguments.

    Attributes:
        rows_: The number of rows of the table, with noise.
        held_out_rows_: Indices of held-out rows among the drawn ones.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(5_000, 2))
        >>> density = PrivateDensity(epsilon=1.0, max_steps=20, random_state=0).fit(rows)
        >>> density.sample(3).shape
        (3, 2)
    """

    rows_: int

    def __init__(
        self,
        epsilon: float = 1.0,
        delta: float = 1e-6,
        n_estimators: int | str = "auto",
        max_steps: int | str = "auto",
        hidden_features: tuple[int, ...] | str = "auto",
        validation_fraction: float = 0.15,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        verbose: bool = False,
        order: str = "mixture",
    ) -> None:
        super().__init__(
            n_estimators, max_steps, hidden_features, validation_fraction, random_state, device, verbose, order
        )
        self.epsilon, self.delta = epsilon, delta

    def fit(self, X: Any, y: Any = None, noise: np.random.Generator | None = None, **unsupported: Any) -> Self:
        """Fit the density of rows ``(N, D)``; see :meth:`ScoreDensity.fit`.

        Arguments:
            X: The rows.
            y: Not used.
            noise: The source of the noise, for experiments that repeat it. Default: seeded by the operating system.

        Raises:
            ValueError: As there; also if a budget is out of range, ``delta`` would let single rows be published, or no
                value of a column can be told from the noise. Errors are for the owner of the rows: they are not
                private.
        """
        self._check_fit_arguments(unsupported)
        with self._unchanged_on_failure():
            self._check_arguments()
            table = self._validated(X, reset=True)
            check_training_rows(table, X)
            frame = pd.DataFrame(table)
            statistics = PrivateStatistics.release(frame, self.epsilon, self.delta, noise, progress=self.verbose)
            random = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
            drawn = statistics.draw(int(np.clip(statistics.rows, _LEAST_ROWS, _MOST_ROWS)), random)
            rows: Any = drawn
            if not isinstance(table, pd.DataFrame):
                rows = drawn.to_numpy()
            elif is_native(X):
                has_categories = any(isinstance(dtype, pd.CategoricalDtype) for dtype in drawn.dtypes)
                rows = to_native(drawn, X, keep_types=not has_categories)  # whose types would hold rare names
            super().fit(rows)
            self.rows_ = statistics.rows
        return self

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_budget(self.epsilon, self.delta)

    def _facts(self) -> list[str]:
        budget = f"differentially private: epsilon {self.epsilon:g}, delta {self.delta:g}"
        return [budget, f"about {self.rows_:,} rows", *super()._facts()]
