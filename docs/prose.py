"""Lint the prose of the pages and docstrings: `python docs/prose.py`.

proselint finds clichés, redundancy and misused words. A short list of phrases that plain English avoids goes with it.
Code, formulas and tables are left out.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from proselint.checks import __register__
from proselint.config import DEFAULT, Config
from proselint.registry import CheckRegistry
from proselint.tools import LintFile

ROOT = Path(__file__).resolve().parent.parent

#: Checks that are wrong for this project.
_IGNORED = {
    "dates_times": "sections from X-Y are rare; figures like 3-4 are not dates",
    "uncomparables": "least absolute error is a term",
    "typography": "ASCII quotes and ellipses are code",
    "lexical_illusions": "headings and the sentences below them may begin alike",
    "spelling": "it mixes American and British forms",
    "terms.denizen_labels": "no text about people",
    "hedging": "it takes 'may' for hedging",
}
_PHRASES = {
    r"\bof which\b": "start a new sentence",
    r"(?<!there )\b(?:is|are) none\b": "say what it is not: 'is not a ...'",
    r"\bby itself\b": "'alone', 'automatically' or nothing",
    r"\basked for\b": "'requested'",
    r"\bwhat (?:is|was|are) (?:asked|said|told|known|wanted)\b": "name the thing",
    r"\b(?:is|are) (?:said|told)\b": "name who prints or reports it",
    r"\bby heart\b": "'memorised'",
    r"\bthose of (?:it|them)\b": "name the thing",
    r"\bas (?:it|they) (?:is|are) there\b": "'as is'",
}
_CODE = re.compile(
    "|".join(
        [
            r"^```(?s:.*?)^```$",
            r"^\.\. math::.*(?:\n +.*)*",
            r"\$\$(?s:.*?)\$\$",
            r"``(?s:.*?)``",
            r":\w+:`[^`]*`",
            r"`[^`\n]*`",
            r"\$[^$\n]+\$",
            r"^\|.*$",
            r"^\s*>>>.*$",
            r"^    .*$",
        ]
    ),
    re.MULTILINE,
)


def prose() -> Iterator[tuple[str, str]]:
    """Yield the name of every page, example and module with its prose."""
    for page in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("paper/*.md"),
        ROOT / "benchmarks" / "README.md",
    ]:
        yield str(page.relative_to(ROOT)), _blanked(page.read_text(encoding="utf-8"))
    for example in sorted(ROOT.glob("docs/examples/*.py")):
        cells = re.findall(r"^# %% \[markdown\]\n((?:#.*\n)+)", example.read_text(encoding="utf-8"), re.MULTILINE)
        yield (
            str(example.relative_to(ROOT)),
            "\n".join(_blanked(re.sub(r"^# ?", "", cell, flags=re.M)) for cell in cells),
        )
    for module in sorted(ROOT.glob("src/arcsm/**/*.py")):
        tree = ast.parse(module.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docstrings = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
        yield str(module.relative_to(ROOT)), "\n\n".join(_without_doctests(text) for text in docstrings if text)


def _blanked(text: str) -> str:
    """Return the text with code, formulas and tables replaced by a word, so that sentences stay whole."""
    return _CODE.sub("x", text)


def _without_doctests(docstring: str) -> str:
    lines = [line for line in docstring.splitlines() if not re.match(r"\s*(>>>|\.\.\. |\.\.\.$)", line)]
    return _blanked("\n".join(line.strip() for line in lines))


def main() -> int:
    """Print every finding and return how many there are, at most 1."""
    CheckRegistry().register_many(__register__)
    config: Config = {"max_errors": 1000, "checks": DEFAULT["checks"] | dict.fromkeys(_IGNORED, False)}
    found = []
    for name, text in prose():
        if not text.strip():
            continue
        results = LintFile(name, text).lint(config)
        found += [f"{name}: {result.check_result.check_path}: {result.check_result.message}" for result in results]
        for phrase, advice in _PHRASES.items():
            for match in re.finditer(phrase, text):
                around = " ".join(text[max(0, match.start() - 40) : match.end() + 40].split())
                found.append(f"{name}: '...{around}...': {advice}")
    print(*found, sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
