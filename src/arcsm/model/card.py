"""The card of a model: its parts, its data as far as they are known, and its limits."""

import math
from typing import Any

from arcsm._runtime.cards import CARD_MARK
from arcsm._runtime.markup import as_markdown, listed
from arcsm._runtime.terminal import printable
from arcsm.data.metadata import grey_levels

TAGS = ("density-estimation", "score-matching", "autoregressive")
_UNKNOWN = "Not recorded."
_BLURRED = (
    "- The density is that of the data plus noise of the smallest level: sharp edges and single values are blurred.\n"
)
_MAX_TEXT = 200  # characters of an entry of the metadata


def model_card(model: Any, header: str) -> str:
    """Return the card of an ``AutoregressiveModel`` as Markdown; names from its metadata are never markup.

    ``header`` is the YAML before it.
    """
    count = sum(parameter.numel() for parameter in model.parameters())
    given, more = _condition(model)
    return f"""\
---
{header.strip()}
---

{CARD_MARK}
# {_title(model)}

A density{given} as a product of one-dimensional conditionals: normalised likelihoods, distribution functions and
samples.

- Context: {type(model.context).__name__}, head: {type(model.head).__name__}, {count:,} weights.
- {_noise(model)}

```python
from arcsm import AutoregressiveModel

model = AutoregressiveModel.from_pretrained("this folder or repository")
model.log_prob(x{more}), model.cdf(x{more}), model.sample(100{more})
```

## Data

{_data(model.metadata)}

## Quality

{_quality(model.metadata)}

## Limits

- The model describes data like those it was trained on. A low density alone does not make a value wrong.
{_BLURRED if model.noise is not None else ""}\
- Density and samples can give away rare rows of the training data. There is no guarantee of privacy.
"""


def _condition(model: Any) -> tuple[str, str]:
    """Return what the density is given, in words and as an argument."""
    size, classes = model.context.condition_features, model.context.classes
    parts = [f"one of {classes:,} classes"] * (classes > 0) + [f"{size:,} numbers"] * (size > 0)
    return (f" given {' and '.join(parts)}", ", condition=c") if parts else ("", "")


def _title(model: Any) -> str:
    shape = model.metadata.get("image_shape")
    if shape is None:
        return f"A density of {model.features:,} dimension{'s' if model.features > 1 else ''}"
    channels, height, width = shape
    return f"A density of images, {height} x {width} with {channels} channel{'s' if channels > 1 else ''}"


def _noise(model: Any) -> str:
    noise = model.noise
    if noise is None:
        return "No noise levels."
    levels = "1 noise level" if noise.levels == 1 else f"{noise.levels:,} noise levels"
    return f"{levels}, {noise.sigma_max:g} to {noise.sigma_min:g}, in standard deviations of each dimension."


def _data(metadata: dict[str, Any]) -> str:
    found = []
    if "columns" in metadata:
        found.append(f"Columns: {listed(metadata['columns'])}.")
    if "image_shape" in metadata:
        found.append(f"Each channel of a pixel has {grey_levels(metadata)} values.")
    known = {name: value for name, value in metadata.items() if name not in ("columns", "image_shape", "levels")}
    for name, value in known.items():
        if isinstance(value, str | bool | int | float):
            found.append(f"{as_markdown(printable(name)[:_MAX_TEXT])}: {as_markdown(printable(value)[:_MAX_TEXT])}.")
    if known.keys().isdisjoint(("license", "licence", "source")):
        found.append(f"Origin and licence: {_UNKNOWN}")
    return "\n\n".join(found)


def _quality(metadata: dict[str, Any]) -> str:
    report = metadata.get("distillation")
    try:
        kl, error = float(report["kl"]["mean"]), float(report["kl"]["standard_error"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError, OverflowError):
        kl = error = math.nan
    if not math.isfinite(kl) or not math.isfinite(error):
        return f"{_UNKNOWN} `arcsm report` measures a run on its held-out rows."
    return f"The density lost {kl:.3g} +- {error:.1g} nats a row when it was distilled from another model."
