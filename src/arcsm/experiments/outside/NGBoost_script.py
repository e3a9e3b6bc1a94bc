"""A normal distribution of a target, by natural gradient boosting (NGBoost)."""

import json
import sys
from importlib.metadata import version
from typing import Any

import numpy as np


def main(given: str, found: str, options: dict[str, Any]) -> None:
    """Fit rows ``x (N, D)`` and targets ``y (N,)``; write the ``mean`` and the ``scale`` of other ``rows``."""
    from ngboost import NGBRegressor

    arrays = np.load(given)
    model = NGBRegressor(verbose=False, random_state=options["seed"]).fit(arrays["x"], arrays["y"])
    predicted = model.pred_dist(arrays["rows"]).params
    versions = f"ngboost {version('ngboost')}, scikit-learn {version('scikit-learn')}"
    np.savez(found, mean=predicted["loc"], scale=predicted["scale"], versions=np.array(versions))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
