"""Multiple imputations by chained gradient-boosted trees (miceforest)."""

import json
import sys
from typing import Any

import numpy as np


def main(given: str, found: str, options: dict[str, Any]) -> None:
    """Fill the ``values (N, M)`` of a file ``draws`` times, ``(n, N, M)``."""
    import lightgbm
    import miceforest
    import pandas as pd

    arrays = np.load(given)
    values, nominal = arrays["values"], set(arrays["nominal"].tolist())
    frame = pd.DataFrame({f"c{m}": column for m, column in enumerate(values.T)})
    for m in [m for m in nominal if frame[f"c{m}"].nunique() == 1]:  # which miceforest does not take
        frame[f"c{m}"] = frame[f"c{m}"].mean()
    for m in nominal:
        frame[f"c{m}"] = frame[f"c{m}"].astype("Int64").astype("category")
    # the default for names, matching of log odds, fails where a probability is 0 or 1
    matching = {f"c{m}": "fast" if m in nominal else "normal" for m in range(values.shape[1])}
    filled = []
    for k in range(options["draws"]):  # chains are independent; the models of all would take many gigabytes
        kernel = miceforest.ImputationKernel(
            frame, random_state=options["seed"] + k, mean_match_strategy=matching, save_all_iterations_data=False
        )
        kernel.mice(options["iterations"], num_threads=1, verbosity=-1)
        filled.append(kernel.complete_data().astype("float64").to_numpy())
    versions = f"miceforest {miceforest.__version__}, lightgbm {lightgbm.__version__}"
    np.savez(found, filled=np.stack(filled), versions=np.array(versions))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
