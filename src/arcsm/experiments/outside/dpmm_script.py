"""Private synthetic rows by methods of noisy marginals (dpmm)."""

import json
import sys
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np


def main(given: str, found: str, options: dict[str, Any]) -> None:
    """Draw ``rows`` like the ``values (N, M)`` of a file by MST or AIM, which know the ranges and levels of columns."""
    import pandas as pd
    from dpmm import pipelines

    warnings.simplefilter("ignore")
    arrays = np.load(given)
    values, levels = arrays["values"], arrays["levels"].tolist()
    frame, domain = pd.DataFrame(), dict[str, Any]()
    for m, count in enumerate(levels):
        name, column = f"c{m}", values[:, m]
        if count:
            names = [f"n{level}" for level in range(count)]
            texts = [None if np.isnan(level) else names[int(level)] for level in column]
            frame[name], domain[name] = pd.Categorical(texts, categories=names), {"categories": names}
        else:
            frame[name] = column
            domain[name] = {"lower": float(np.nanmin(column)), "upper": float(np.nanmax(column))}
    pipeline = {"MST": pipelines.MSTPipeline, "AIM": pipelines.AIMPipeline}[options["method"]]
    model = pipeline(epsilon=options["epsilon"], delta=options["delta"])
    model.fit(frame, domain, random_state=options["seed"])
    drawn = model.generate(n_records=options["rows"], random_state=options["seed"])
    rows = np.empty(drawn.shape)
    for m, count in enumerate(levels):
        column = drawn[f"c{m}"]
        rows[:, m] = column.map({f"n{level}": level for level in range(count)}) if count else column
    np.savez(found, rows=rows, versions=np.array(f"dpmm {version('dpmm')}"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
