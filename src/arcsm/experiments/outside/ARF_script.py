"""Synthetic rows by adversarial random forests (arfpy)."""

import json
import sys
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np


def main(given: str, found: str, options: dict[str, Any]) -> None:
    """Draw ``rows`` like the ``values (N, M)`` of a file; a gap is a level of its own, or the mean of a number."""
    import pandas as pd
    from arfpy import arf

    warnings.simplefilter("ignore")
    np.random.seed(options["seed"])  # noqa: NPY002
    arrays = np.load(given)
    values, nominal = arrays["values"], set(arrays["nominal"].tolist())
    frame = pd.DataFrame({f"c{m}": column for m, column in enumerate(values.T)})
    for name, column in frame.items():
        frame[name] = column.fillna(-1.0).astype(int).astype("category") if int(str(name)[1:]) in nominal else column
    frame = frame.fillna(frame.mean(numeric_only=True))
    forest = arf.arf(x=frame, verbose=False, random_state=options["seed"])
    forest.forde()
    rows = forest.forge(n=options["rows"]).astype(float)
    for m in nominal:
        rows[f"c{m}"] = rows[f"c{m}"].where(rows[f"c{m}"] >= 0.0)
    np.savez(found, rows=rows.to_numpy(), versions=np.array(f"arfpy {version('arfpy')}"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
