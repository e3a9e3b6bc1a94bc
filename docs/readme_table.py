"""Write the comparison table of README.md from the records in results/: `python docs/readme_table.py`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- comparison: written by docs/readme_table.py -->\n", "<!-- end of comparison -->"
_UNTOUCHED = "tables that nothing was chosen on"


def record(name: str) -> dict[str, Any]:
    """Return the metrics of an experiment's record."""
    text = (ROOT / "results" / name / "cpu.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["metrics"])


def comparison() -> str:
    """Return the table as Markdown."""
    uci, adbench, toys = record("uci"), record("adbench"), record("toys-nll")
    targets, imputation = record("regression")["tables"], record("imputation")
    filled, of_gaps = imputation["summary"]["mcar"], len(imputation["tables"]["mcar"])
    likelihoods = {
        name: fmean(table["methods"][name]["log_likelihood"]["mean"] for table in uci["tables"].values())
        for name in uci["ranks"]["methods"]
    }
    summary = adbench["summary"][_UNTOUCHED]
    detectors = summary["methods"]
    gaps = toys["summary"]["mean_gap"]
    second = min((name for name in gaps if not name.startswith("scores")), key=gaps.__getitem__)
    errors = {
        name: fmean(table["methods"][name]["crps"]["mean"] for table in targets.values())
        for name in next(iter(targets.values()))["methods"]
    }
    rows = [
        (
            f"[log-likelihood, {len(uci['tables'])} UCI tables](docs/results/uci.md), nats a row",
            likelihoods["arcsm"],
            *_best_other(likelihoods, max),
        ),
        (
            f"[outliers, {summary['tables']} ADBench tables](docs/results/adbench.md), mean AUROC",
            detectors["arcsm"]["auroc"],
            *_best_other({name: one["auroc"] for name, one in detectors.items()}, max),
        ),
        (
            "the same, mean rank of 13 detectors (lower is better)",
            detectors["arcsm"]["rank"],
            *_best_other({name: one["rank"] for name, one in detectors.items()}, min),
        ),
        (
            f"[distribution of a target, {len(targets)} tables](docs/results/regression.md), CRPS",
            errors["arcsm"],
            *_best_other(errors, min),
        ),
        (
            f"[missing values, {of_gaps} tables](docs/results/imputation.md), CRPS (lower is better)",
            filled["arcsm"]["crps"],
            *_best_other({name: one["crps"] for name, one in filled.items()}, min),
        ),
        (
            f"[distance to the true density, {toys['summary']['toys']} toy sets](docs/results/toys-nll.md), nats",
            gaps["scores, flow"],
            second,
            gaps[second],
        ),
        (
            "seconds to train these models, median",
            _seconds(toys, "scores, flow"),
            second,
            _seconds(toys, second),
        ),
        (
            "seconds to fit a detector, median",
            detectors["arcsm"]["fit_seconds"],
            "KNN",
            detectors["KNN"]["fit_seconds"],
        ),
    ]
    lines = ["| measure | arcsm | best other | |", "|---|---|---|---|"]
    lines += [f"| {name} | {ours:.3g} | {other:.3g} | {peer} |" for name, ours, peer, other in rows]
    return "\n".join(lines) + "\n"


def _seconds(toys: dict[str, Any], method: str) -> float:
    return median(one["methods"][method]["training_seconds"] for one in toys["toys"].values())


def _best_other(values: dict[str, float], best: Any) -> tuple[str, float]:
    others = {name: value for name, value in values.items() if name != "arcsm"}
    name = best(others, key=others.__getitem__)
    return name, others[name]


def render(readme: str) -> str:
    """Return the README with the table of the records at hand."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + comparison() + END + after


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")
