"""A transformer that fills missing values, for scikit-learn's pipelines."""

from typing import Any, Self

import numpy as np
from sklearn.base import OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from arcsm._runtime.sizes import check_size
from arcsm.estimators.base import TableEstimator
from arcsm.estimators.density import ScoreDensity
from arcsm.estimators.encoder import Columns
from arcsm.estimators.imputation import ESTIMATES


class ScoreImputer(OneToOneFeatureMixin, TransformerMixin, TableEstimator):
    """A transformer that fills missing values given the known ones of each row, by :meth:`ScoreDensity.impute`.

    Columns may be of any type that :class:`ScoreDensity` takes. A filled table has the library, the index and the
    dtypes of the rows.

    Arguments:
        estimate: ``"mean"`` has the smallest squared error, ``"median"`` the smallest absolute error, ``"mode"`` is the
            most likely value, and ``"draw"`` is one joint draw of all missing values of a row, which keeps the spread
            of the columns. A category is the most likely one unless it is drawn. All but a mean are values that the
            column can have: choose ``"median"`` for whole numbers that have to stay whole.
        draws: Number of joint draws that estimates are computed from.
        random_state: Randomness of fitting and of the draws.
        validation_fraction: As in :class:`ScoreDensity`, like all other arguments.

    Attributes:
        density_: The density of the rows.
        n_features_in_: Number of columns.
        feature_names_in_: Column names, if the table is a data frame with string names.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 1)) * [1.0, 2.0]
        >>> imputer = ScoreImputer(max_steps=20, n_estimators=1, random_state=0).fit(x)
        >>> bool(np.isfinite(imputer.transform([[0.5, np.nan]])).all())
        True
    """

    density_: ScoreDensity

    def __init__(
        self,
        estimate: str = "mean",
        n_estimators: int | str = "auto",
        max_steps: int | str = "auto",
        hidden_features: tuple[int, ...] | str = "auto",
        validation_fraction: float = 0.15,
        draws: int = 64,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        verbose: bool = False,
    ) -> None:
        super().__init__(n_estimators, max_steps, hidden_features, validation_fraction, random_state, device, verbose)
        self.estimate = estimate
        self.draws = draws

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit rows ``(N, D)``, an array or a data frame (of pandas, polars or pyarrow), with or without gaps.

        Raises:
            ValueError: If ``estimate`` or ``draws`` is out of range, or as in :meth:`ScoreDensity.fit`.
        """
        self._check_arguments()
        density = ScoreDensity(
            self.n_estimators, self.max_steps, self.hidden_features, self.validation_fraction, self.random_state,
            self.device, self.verbose,
        ).fit(X)  # fmt: skip
        self.density_, self.n_features_in_ = density, density.n_features_in_
        self.__dict__.pop("feature_names_in_", None)
        if hasattr(density, "feature_names_in_"):
            self.feature_names_in_ = density.feature_names_in_
        return self

    def transform(self, X: Any) -> Any:
        """Return the rows with their missing values filled.

        With an integer as ``random_state``, the same rows are filled alike every time.
        """
        check_is_fitted(self)
        self._check_arguments()
        return self.density_.impute(X, estimate=self.estimate, draws=self.draws, random_state=self.random_state)  # type: ignore[arg-type]

    def _models(self) -> list[Any]:
        return self.density_._models()

    @property
    def columns_(self) -> Columns:  # type: ignore[override]
        """The inferred column types."""
        return self.density_.columns_

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.estimate not in ESTIMATES:
            raise ValueError(f"estimate: expected one of {', '.join(ESTIMATES)}, got {self.estimate!r}")
        check_size("ScoreImputer", draws=self.draws)
