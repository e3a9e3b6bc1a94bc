"""How good synthetic rows are, and how much they tell about the rows that they were learned from.

References:
    Revisiting Classifier Two-Sample Tests (Lopez-Paz and Oquab, 2017)
    How Faithful is your Synthetic Data? Sample-level Metrics for Evaluating and Auditing Generative Models (Alaa et
        al., 2022)
    Modeling Tabular Data using Conditional GAN (Xu et al., 2019), for the utility of synthetic rows
"""

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from arcsm.experiments.comparisons import Array
from arcsm.experiments.tables import Table

MEASURES = ("c2st", "marginals", "pairs", "utility", "precision", "recall", "nearest", "membership")
_FOLDS = 5
_MOST_LEVELS = 255  # of a column that trees split by level
_QUANTILES = np.linspace(0.05, 0.95, 19)  # of the balls and neighbourhoods that precision and recall compare
_LEAST_SKILL = 0.02  # of a target that real rows predict


def measure(table: Table, train: Array, held_out: Array, synthetic: Array, seed: int) -> dict[str, float | None]:
    """Return measures of synthetic rows; all rows are ``(N, M)`` in the numbers of a table.

    Returns:
        - ``c2st``: AUROC of gradient-boosted trees, five-fold, between synthetic and as many held-out rows; .5 is best.
        - ``marginals``: mean over the columns of the Kolmogorov-Smirnov distance of numbers, and of the total variation
          of names; 0 is best.
        - ``pairs``: mean over pairs of columns of the difference in their association: Spearman's correlation, Cramér's
          V, or the square root of the share of variance of ranks that names explain; 0 is best.
        - ``utility``: trees predict each column of held-out rows from the others, trained on synthetic or on real rows;
          the ratio of their skill (R² or the share of errors of the most frequent name that they avoid), mean over
          columns that real rows predict; 1 is as good as real rows. ``None`` if there are none.
        - ``precision``, ``recall``: integrated alpha-precision and beta-recall. Other real rows have 1 and about .5.
        - ``nearest``: share of synthetic rows that are nearer to a training row than to a held-out one; .5 is best.
        - ``membership``: AUROC of telling training rows from held-out ones by their distance to the closest synthetic
          row; .5 is best.
    """
    count = min(len(train), len(held_out), len(synthetic))
    points = _Points(table, train)
    of_train, of_held_out, of_synthetic = (points(rows[:count]) for rows in (train, held_out, synthetic))
    precision, recall = precision_and_recall(of_held_out, of_synthetic)
    return {
        "c2st": classifier_two_sample(table, held_out[:count], synthetic[:count], seed),
        "marginals": marginal_distance(table, held_out, synthetic),
        "pairs": _pair_distance(table, held_out, synthetic),
        "utility": utility(table, train, held_out, synthetic, seed),
        "precision": precision,
        "recall": recall,
        "nearest": _nearest_share(of_synthetic, of_train, of_held_out),
        "membership": _membership(of_train, of_held_out, of_synthetic),
    }


def classifier_two_sample(table: Table, real: Array, synthetic: Array, seed: int) -> float:
    """Return the AUROC of trees between two sets of rows, each row judged by trees that have not seen it."""
    rows, is_synthetic = np.concatenate([real, synthetic]), np.repeat([0, 1], [len(real), len(synthetic)])
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    classifier = HistGradientBoostingClassifier(categorical_features=_split_by_level(table), random_state=seed)
    found = cross_val_predict(classifier, rows, is_synthetic, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(is_synthetic, found))


def _split_by_level(table: Table) -> NDArray[np.bool_]:
    return np.array([0 < len(levels) <= _MOST_LEVELS for levels in table.names])


def marginal_distance(table: Table, real: Array, synthetic: Array) -> float:
    """Return the mean distance of the columns' distributions; see :func:`measure`."""
    distances = []
    for m, levels in enumerate(table.names):
        known, drawn = (rows[~np.isnan(rows[:, m]), m] for rows in (real, synthetic))
        if levels:
            shares = [np.bincount(one.astype(int), minlength=len(levels)) / max(len(one), 1) for one in (known, drawn)]
            distances.append(0.5 * float(np.abs(shares[0] - shares[1]).sum()))
        else:
            distances.append(float(stats.ks_2samp(known, drawn).statistic))
    return float(np.mean(distances))


def _pair_distance(table: Table, real: Array, synthetic: Array) -> float:
    columns = range(len(table.names))
    pairs = [(a, b) for a in columns for b in columns if a < b]
    return float(np.mean([abs(association(table, real, *p) - association(table, synthetic, *p)) for p in pairs]))


def association(table: Table, rows: Array, a: int, b: int) -> float:
    """Return the association of two columns, from 0 (or -1 for two columns of numbers) to 1; see :func:`measure`."""
    rows = rows[~np.isnan(rows[:, [a, b]]).any(1)]
    names = [m for m in (a, b) if table.names[m]]
    x, y = rows[:, a], rows[:, b]
    if len(rows) < 2 or np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return 0.0
    if not names:
        return float(stats.spearmanr(x, y).statistic)
    if len(names) == 2:
        counts = np.zeros((len(table.names[a]), len(table.names[b])))
        np.add.at(counts, (x.astype(int), y.astype(int)), 1.0)
        return float(stats.contingency.association(counts[counts.any(1)][:, counts.any(0)].astype(int), "cramer"))
    groups, ranks = (x, stats.rankdata(y)) if names == [a] else (y, stats.rankdata(x))
    sizes = np.bincount(groups.astype(int))
    means = np.bincount(groups.astype(int), ranks) / np.maximum(sizes, 1)
    return float(np.sqrt((sizes * np.square(means - ranks.mean())).sum() / np.square(ranks - ranks.mean()).sum()))


def utility(table: Table, train: Array, held_out: Array, synthetic: Array, seed: int) -> float | None:
    """Return how much of the skill of trees trained on real rows those trained on synthetic ones have."""
    ratios = []
    for m in range(len(table.names)):
        by_real, by_synthetic = (_skill(table, rows, held_out, m, seed) for rows in (train, synthetic))
        if by_real > _LEAST_SKILL:
            ratios.append(min(max(by_synthetic / by_real, 0.0), 1.0))
    return float(np.mean(ratios)) if ratios else None


def _skill(table: Table, rows: Array, test: Array, m: int, seed: int) -> float:
    """Return the skill of trees that predict a column from the others."""
    rows, test = (one[~np.isnan(one[:, m])] for one in (rows, test))
    options = {"categorical_features": np.delete(_split_by_level(table), m), "random_state": seed, "max_iter": 50}
    y, truth = rows[:, m], test[:, m]
    x, x_test = (np.delete(one, m, 1) for one in (rows, test))
    if table.names[m]:
        wrong = float((truth != np.bincount(truth.astype(int)).argmax()).mean())
        if len(np.unique(y)) < 2 or not wrong:
            return 0.0
        found = HistGradientBoostingClassifier(**options).fit(x, y).predict(x_test)
        return 1.0 - float((found != truth).mean()) / wrong
    found = HistGradientBoostingRegressor(**options).fit(x, y).predict(x_test)
    return 1.0 - float(np.square(found - truth).mean()) / max(float(truth.var()), 1e-12)


def precision_and_recall(real: Array, synthetic: Array) -> tuple[float, float]:
    """Return integrated alpha-precision and beta-recall of points ``(N, U)`` (Alaa et al., 2022).

    Alpha-precision is the share of synthetic points in the ball about the real centre that holds a share alpha of the
    real ones. Beta-recall is the share of real points that have a synthetic point of the inner share beta nearer than
    their nearest real one. Both should equal alpha and beta; the measure is 1 less twice the mean distance.
    """
    centre, centre_of_synthetic = real.mean(0), synthetic.mean(0)
    radii = np.quantile(np.linalg.norm(real - centre, axis=1), _QUANTILES)
    inside = (np.linalg.norm(synthetic - centre, axis=1) <= radii[:, None]).mean(1)
    to_real = NearestNeighbors(n_neighbors=2).fit(real).kneighbors(real)[0][:, 1]
    distances, index = NearestNeighbors(n_neighbors=1).fit(synthetic).kneighbors(real)
    of_nearest = np.linalg.norm(synthetic[index[:, 0]] - centre_of_synthetic, axis=1)
    own = np.quantile(np.linalg.norm(synthetic - centre_of_synthetic, axis=1), _QUANTILES)
    covered = ((distances[:, 0] <= to_real) & (of_nearest <= own[:, None])).mean(1)
    precision, recall = (1.0 - 2.0 * float(np.abs(found - _QUANTILES).mean()) for found in (inside, covered))
    return precision, recall


def _nearest_share(synthetic: Array, train: Array, held_out: Array) -> float:
    to_train, to_held_out = (_distances(synthetic, rows) for rows in (train, held_out))
    return float((to_train < to_held_out).mean() + 0.5 * (to_train == to_held_out).mean())


def _membership(train: Array, held_out: Array, synthetic: Array) -> float:
    distances = np.concatenate([_distances(rows, synthetic) for rows in (train, held_out)])
    return float(roc_auc_score(np.repeat([1, 0], [len(train), len(held_out)]), -distances))


def _distances(points: Array, others: Array) -> Array:
    return np.asarray(NearestNeighbors(n_neighbors=1).fit(others).kneighbors(points)[0][:, 0])


class _Points:
    """A map from rows to points whose Euclidean distances compare rows.

    Numbers are standardised by the training rows, names are one unit apart, and a gap is the mean.
    """

    def __init__(self, table: Table, train: Array) -> None:
        self.names = table.names
        self.mean, self.unit = np.nanmean(train, 0), np.maximum(np.nanstd(train, 0), 1e-12)

    def __call__(self, rows: Array) -> Array:
        parts = []
        for m, levels in enumerate(self.names):
            column = rows[:, m, None]
            if levels:
                parts.append((column == np.arange(len(levels))) / np.sqrt(2.0))
            else:
                parts.append(np.nan_to_num((column - self.mean[m]) / self.unit[m]))
        return np.concatenate(parts, 1)
