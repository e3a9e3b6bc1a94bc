"""The card of fitted estimators: what they were fitted to, what their files hold, and where their limits are."""

from collections.abc import Mapping, Sequence

from arcsm._runtime.markup import as_markdown, listed
from arcsm._runtime.terminal import printable
from arcsm._version import __version__


def estimator_card(title: str, facts: Sequence[str], names: Mapping[str, Sequence[str]], use: str) -> str:
    """Return the card as Markdown.

    Arguments:
        title: What it is.
        facts: A line each.
        names: The columns of each type. Their names are shown as they are, never as markup.
        use: Python code or a command that reads the files.
    """
    lines = "".join(f"- {as_markdown(printable(fact))}\n" for fact in facts)
    columns = "".join(f"- {as_markdown(kind)}: {listed(found)}\n" for kind, found in names.items())
    return f"""\
# {as_markdown(printable(title))}

{lines}- arcsm {__version__}

```
{use}
```

## Columns

{columns}
## Quality

Not recorded. Try rows that were not fitted before you rely on it; the reports of `arcsm detect` and `arcsm synthesize`
help.

## Limits

- It describes rows like the fitted ones. A low density alone does not make a row wrong.
- Conditionals of few rows are drawn towards those of all rows, and sharp edges are blurred.
- Columns that stand for groups of people, or for something close to them, affect all results.

## What the files hold

Weights, and values of the table: names of columns, all categories and labels, ranges, and the numbers of columns in
which some recur; of a detector also scores of fitted rows, and of a regressor targets. Do not share the files if these
are secret. Reading them never runs code.
"""
