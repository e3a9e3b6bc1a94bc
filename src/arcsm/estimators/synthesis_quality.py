"""The quality of synthetic rows: whether a classifier separates them from real rows, and whether they are copies."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from arcsm._runtime.progress import track
from arcsm.estimators.column_types import Array, Categories
from arcsm.estimators.density import ScoreDensity
from arcsm.estimators.encoder import Columns
from arcsm.estimators.level_pairs import LevelPairs
from arcsm.estimators.native_frames import to_pandas

_MIN_HELD_OUT = 50  # rows; twice as many synthetic ones
_MAX_CLASSIFIED = 5_000  # rows of each kind
_MAX_REAL_NEIGHBOURS, _MAX_QUERIES = 100_000, 2_000  # real and synthetic rows in the nearest-neighbour search
_MAX_CATEGORIES = 24  # rarer ones count as one in distances


@dataclass(frozen=True)
class NearestRows:
    """How often the real row nearest to a synthetic one is a training row.

    Attributes:
        training: Fraction of synthetic rows whose nearest real row is a training row.
        expected: Its mean if training and held-out rows are exchangeable. A clearly larger fraction indicates
            memorisation.
        error: Its standard deviation if they are.
    """

    training: float
    expected: float
    error: float


@dataclass(frozen=True)
class UnseenPairs:
    """How often a row breaks a rule: it has two values of categorical or few-valued columns that no training row has.

    Attributes:
        synthetic: Fraction of synthetic rows, which first copy the missingness pattern of random real rows.
        held_out: Fraction of held-out rows; ``None`` if there are none. A clearly smaller one indicates broken rules.
    """

    synthetic: float
    held_out: float | None


@dataclass(frozen=True)
class SynthesisQuality:
    """The quality of synthetic rows. Quantities that need more rows than there are, are ``None``.

    Attributes:
        held_out: Number of rows that the models were not trained on.
        synthetic: Number of synthetic rows.
        missing: Whether the table has missing values. Synthetic rows then copy the missingness pattern of random real
            rows before they are classified.
        auc: Area under the ROC curve of gradient-boosted trees, fitted to training rows and some synthetic ones, that
            classify held-out rows and other synthetic ones; 0.5: indistinguishable.
        auc_error: Its standard error.
        copies: Fraction of synthetic rows that equal a complete training row; ``None`` if no row is complete.
        held_out_copies: Fraction of complete held-out rows that do.
        nearest: How often a training row is nearest.
        unseen_pairs: How often a row has a combination that no training row has; ``None`` if there are fewer than two
            categorical or few-valued discrete columns, or more than 200.
    """

    held_out: int
    synthetic: int
    missing: bool
    auc: float | None
    auc_error: float | None
    copies: float | None
    held_out_copies: float | None
    nearest: NearestRows | None
    unseen_pairs: UnseenPairs | None

    @classmethod
    def measure(cls, density: ScoreDensity, table: Any, synthetic: Any, seed: int = 0) -> Self:
        """Compare synthetic rows with the real ones of a table, to which the density that drew them was fitted."""
        columns, random = density.columns_, np.random.default_rng(seed)
        real, drawn = (_encode(columns, to_pandas(rows)) for rows in (table, synthetic))
        held_out = np.zeros(len(real), dtype=bool)
        held_out[density.held_out_rows_] = True
        counts = int(held_out.sum()), len(drawn), bool(np.isnan(real).any())
        training = real if held_out.all() else real[~held_out]  # the rows of a tiny table serve as both
        copies, unseen_pairs = _copied_fraction(drawn, training), _unseen_pairs(columns, real, held_out, drawn, seed)
        too_few = held_out.all() or counts[0] < _MIN_HELD_OUT or counts[1] < 2 * _MIN_HELD_OUT
        if too_few or not columns.modelled:
            return cls(*counts, None, None, copies, None, None, unseen_pairs)
        samples = [_subsample(rows, _MAX_CLASSIFIED, random) for rows in (training, real[held_out], drawn)]
        with track("comparing", 2, bool(density.verbose)) as advance:
            auc, error = _classifier_auc(samples, seed, random)
            advance()
            nearest = _nearest_rows(columns, real, held_out, _subsample(drawn, _MAX_QUERIES, random), random)
            advance()
        held_out_copies = _copied_fraction(real[held_out], training)
        return cls(*counts, auc, error, copies, held_out_copies, nearest, unseen_pairs)

    def lines(self) -> list[str]:
        """Return a summary, one line for each measurement."""
        complete = " among complete rows" if self.missing else ""
        copies = f"copies of training rows{complete}: " + (
            "unknown, because every row has missing values" if self.copies is None else f"{self.copies:.1%}"
        )
        rules = [] if self.unseen_pairs is None else [_rule_line(self.unseen_pairs)]
        if self.auc is None or self.nearest is None:
            return [f"quality not measured: needs {self._missing_needs()}", copies, *rules]
        if self.held_out_copies is not None:
            copies += f" ({self.held_out_copies:.1%} of held-out rows)"
        missing = "; missing values that depend on other values raise it, too" if self.missing else ""
        return [
            f"AUC of a classifier of synthetic rows against {self.held_out} held-out rows: {self.auc:.3f} +- "
            f"{self.auc_error:.3f} (0.5: indistinguishable, 1: always distinguished{missing})",
            copies,
            f"nearest real row is a training row: {self.nearest.training:.1%}, expected {self.nearest.expected:.1%} +- "
            f"{self.nearest.error:.1%} (a clearly larger share indicates memorisation)",
            *rules,
        ]

    def _missing_needs(self) -> str:
        """Return what the measurements need and do not have."""
        needs = [
            f"at least {least} {rows} (got {count})"
            for least, rows, count in (
                (_MIN_HELD_OUT, "held-out rows", self.held_out),
                (2 * _MIN_HELD_OUT, "synthetic rows", self.synthetic),
            )
            if count < least
        ]
        return " and ".join(needs) or "a column that varies, and rows beside the held-out ones"


def _rule_line(pairs: UnseenPairs) -> str:
    line = f"rows with a pair of categories or few-valued numbers that no training row has: {pairs.synthetic:.1%}"
    if pairs.held_out is None:
        return line
    return f"{line} ({pairs.held_out:.1%} of held-out rows; a clearly larger share indicates broken rules)"


def _encode(columns: Columns, table: pd.DataFrame) -> Array:
    """Encode all columns, with whole numbers in the discrete ones."""
    discrete = np.array([kind.discrete for kind in columns.kinds])
    numbers = columns.encode(table)
    return np.where(discrete, np.rint(numbers), numbers) + 0.0  # -0.0 becomes 0.0


def _subsample(rows: Array, count: int, random: np.random.Generator) -> Array:
    return rows[random.permutation(len(rows))[:count]]


def _copied_fraction(rows: Array, originals: Array) -> float | None:
    """Return the fraction of complete rows that equal a complete original; ``None`` if either has none."""
    rows, originals = (array[~np.isnan(array).any(1)] for array in (rows, originals))
    known = {row.tobytes() for row in originals}
    return float(np.mean([row.tobytes() in known for row in rows])) if len(rows) and len(originals) else None


def _unseen_pairs(
    columns: Columns, real: Array, held_out: NDArray[np.bool_], synthetic: Array, seed: int
) -> UnseenPairs | None:
    """Find the pairs of levels that no training row has."""
    has_held_out = not held_out.all()
    pairs = LevelPairs.of_rows(columns, real[~held_out] if has_held_out else real)
    if len(pairs.columns) < 2:
        return None
    donors = real[np.random.default_rng(seed).integers(len(real), size=len(synthetic))]
    unseen = pairs.has_unseen_pair(_with_missingness(synthetic, donors)).mean()
    return UnseenPairs(float(unseen), float(pairs.has_unseen_pair(real[held_out]).mean()) if has_held_out else None)


def _classifier_auc(samples: list[Array], seed: int, random: np.random.Generator) -> tuple[float, float]:
    """Return the AUC of a classifier and its standard error, from training, held-out and synthetic rows."""
    training, held_out, synthetic = samples
    count = min(len(held_out), len(synthetic) // 2)
    test = np.concatenate([held_out[:count], _with_missingness(synthetic[:count], held_out)])
    synthetic = synthetic[count:]
    donors = training[random.integers(len(training), size=len(synthetic))]
    rows = np.concatenate([training, _with_missingness(synthetic, donors)])
    known = ~np.isnan(rows).all(0)
    classifier = HistGradientBoostingClassifier(random_state=seed)
    classifier.fit(rows[:, known], np.repeat([0, 1], [len(training), len(synthetic)]))
    auc = float(roc_auc_score(np.repeat([0, 1], count), classifier.predict_proba(test[:, known])[:, 1]))
    return auc, _auc_error(auc, count)


def _with_missingness(rows: Array, donors: Array) -> Array:
    """Remove the values that are missing in the donor of each row."""
    return np.where(np.isnan(donors[: len(rows)]), np.nan, rows)


def _auc_error(auc: float, count: int) -> float:
    """Return the standard error of an AUC of ``count`` rows of each class.

    References:
        The meaning and use of the area under a receiver operating characteristic curve (Hanley and McNeil, 1982)
    """
    q1, q2 = auc / (2.0 - auc), 2.0 * auc**2 / (1.0 + auc)
    pairs = auc * (1.0 - auc) + (count - 1) * (q1 - auc**2 + q2 - auc**2)
    return math.sqrt(max(pairs, 0.0)) / count


def _nearest_rows(
    columns: Columns, real: Array, held_out: NDArray[np.bool_], synthetic: Array, random: np.random.Generator
) -> NearestRows:
    """Find the real row nearest to each synthetic one, and count the training rows among them.

    If training and held-out rows are exchangeable, the held-out rows are a random sample of the real ones. The count is
    then a sum over rows drawn without replacement, which gives its mean and variance.
    """
    as_points = _point_map(columns, real)
    training = random.permutation(np.flatnonzero(~held_out))[: max(_MAX_REAL_NEIGHBOURS - int(held_out.sum()), 1)]
    order = random.permutation(np.append(training, np.flatnonzero(held_out)))  # so that ties are broken at random
    real, is_training = real[order], ~held_out[order]
    neighbours = NearestNeighbors(n_neighbors=1).fit(as_points(real)).kneighbors(as_points(synthetic))[1][:, 0]
    counts = np.bincount(neighbours, minlength=len(real)).astype(float)
    share, rows = float(is_training.mean()), len(real)
    variance = share * (1.0 - share) * rows / (rows - 1) * float(np.square(counts - counts.mean()).sum())
    return NearestRows(float(counts[is_training].sum()) / len(synthetic), share, math.sqrt(variance) / len(synthetic))


def _point_map(columns: Columns, rows: Array) -> Callable[[Array], Array]:
    """Return a map from encoded rows to points whose Euclidean distances compare rows.

    Numbers are standardised, any two categories are one unit apart, and missing values become medians.
    """
    d = columns.modelled
    middle, scale = np.nanmedian(rows[:, d], 0), np.nanstd(rows[:, d], 0)
    categorical = np.array([isinstance(columns.kinds[column], Categories) for column in d])
    by_frequency = []
    for column in np.array(d)[categorical]:
        counts = np.bincount(rows[~np.isnan(rows[:, column]), column].astype(int))
        rank = np.argsort(np.argsort(-counts, kind="stable"))
        by_frequency.append(np.append(rank.clip(max=_MAX_CATEGORIES), _MAX_CATEGORIES))  # then those of no row

    def as_points(rows: Array) -> Array:
        filled = np.where(np.isnan(rows[:, d]), middle, rows[:, d])
        numbers = ((filled - middle) / np.where(scale > 0.0, scale, 1.0))[:, ~categorical]
        names = filled[:, categorical].astype(int).T
        ranks = (rank[column.clip(0, len(rank) - 1)] for rank, column in zip(by_frequency, names, strict=True))
        one_hot = (np.eye(_MAX_CATEGORIES + 1)[column] / math.sqrt(2.0) for column in ranks)
        return np.concatenate([part.astype(np.float32) for part in (numbers, *one_hot)], 1)

    return as_points
