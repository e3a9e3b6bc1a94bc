"""The results pages are rendered from the records, whatever those of Table 2 contain."""

from __future__ import annotations

import importlib.util
import math
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

from small_experiments import reproduce

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


@pytest.fixture(scope="module")
def renderer() -> Any:
    """Return the module ``docs/render.py``."""
    spec = importlib.util.spec_from_file_location("render", DOCS / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_rendered_from_the_records(renderer: Any) -> None:
    pages = renderer.render(renderer.records())
    stored = {path.name: path.read_text() for path in (DOCS / "results").glob("*.md")}
    assert stored == pages, "run: python docs/render.py"


def test_lines_are_short_and_pictures_exist(renderer: Any) -> None:
    for name, text in renderer.render(renderer.records()).items():
        for line in text.splitlines():
            assert len(line) <= 120 or line.startswith("|") or "](" in line, f"{name}: {line}"
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert (DOCS / "results" / link).exists(), f"{name}: {link}"


def test_verdicts_in_the_index_are_short(renderer: Any) -> None:
    pages = renderer.render(renderer.records())
    rows = [line.split(" | ") for line in pages["index.md"].splitlines()]
    verdicts = [row[2] for row in rows if len(row) == 4 and row[0].startswith("| [")]
    assert len(verdicts) == len(pages.keys() - {"index.md", "paper.md", "beyond.md"})
    for verdict in verdicts:
        assert len(re.findall(r"\S*\w\S*", verdict)) <= 12, verdict


def test_experiments_without_a_record_are_listed(renderer: Any) -> None:
    known = renderer.records()
    pages = renderer.render({name: record for name, record in known.items() if name != "fig2"})
    assert "fig2.md" not in pages
    assert re.search(r"not yet run: .*fig2", pages["index.md"].replace("\n", " "))


def test_the_page_of_table_2_renders_any_columns_and_methods(renderer: Any, tmp_path: Path) -> None:
    known = renderer.records()

    def page(**records: dict[str, Any]) -> str:
        text = renderer.render(known | {name.replace("_", "-"): record for name, record in records.items()})[
            "table2.md"
        ]
        return str(text)

    both = reproduce("table2", tmp_path, "methods=[stein, csm]")
    faces = reproduce("table2-faces", tmp_path, "methods=[stein, csm]", "seeds=2", "repeated=[csm, stein]")
    text = page(table2=both, table2_faces=faces)
    assert "| digits, 2 latents | NLL" in text
    row = both["metrics"]["columns"]["digits, 2 latents"]["methods"]["csm"]
    divergence = row["negative_elbo"]["mean"] - row["annealed"]["nll"]
    assert f" {divergence:.1f} | 88.42 |" in text
    assert text.count("| faces, 32 latents | Fr") == 2
    assert " ".join(text.split()).count("faces: undecided: one seed of each method") == 1
    column = faces["metrics"]["columns"]["faces"]
    first, other = [0.0, 0.0], [9.0, 4.0]
    for csm, stein, diverged, verdict in (
        (first, other, [], "holds: `csm` is first"),
        (first, [7.0, 4.0], [], "undecided: `csm` is first, but not alone within two standard errors"),
        (first, other, [1], "does not hold: 1 of 2 seeds of `csm` diverged"),
        ([3.0, 4.0], first, [], "undecided: `csm` is 3.00 ± 4.00 behind `stein`, within one standard error"),
        ([6.0, 4.0], first, [], "undecided: `csm` is 6.00 ± 4.00 behind `stein`, within two standard errors"),
        (other, first, [], "does not hold: `csm` is 9.00 ± 4.00 behind `stein`"),
        ([-5.0, 1.0], first, [1], "does not hold: 1 of 2 seeds of `csm` diverged"),
    ):
        column["best"] = "csm" if csm is first else "stein"
        column["distance_behind_the_best"] = {"csm": csm, "stein": stein}
        column["methods"]["csm"]["broke"] = diverged
        assert f"faces: {verdict}." in " ".join(page(table2_faces=faces).split())
    for record in (both, faces):
        record["metrics"]["columns"]["faces"]["methods"].clear()  # none could be measured
        record["metrics"]["diverged"] = {"vae-faces csm seed 0": "step 3: the latents have run away. The model ..."}
    text = " ".join(page(table2=both, table2_faces=faces).split())
    assert "| faces, 32 latents | Fr" not in text
    assert text.count("vae-faces csm seed 0 diverged (step 3: the latents have run away)") == 2


def test_the_page_of_orders_says_whether_a_learned_one_is_better(renderer: Any, tmp_path: Path) -> None:
    record = reproduce("orders", tmp_path)
    cell = record["metrics"]["tables"]["iris"]
    assert math.isfinite(cell["minus_random"]["weighted mixture"][0])
    for random, mixture, short in (
        ([0.2, 0.1], [0.2, 0.1], "Holds: beats random orders on 1 of 1, their mixture on 1."),
        ([0.2, 0.1], [-0.2, 0.1], "Holds: beats random orders on 1 of 1, their mixture on 0."),
        ([0.1, 0.2], [-0.1, 0.2], "Does not hold: beats random orders on 0 of 1, their mixture on 0."),
        ([-0.2, 0.1], [-0.2, 0.1], "Does not hold: beats random orders on 0 of 1, their mixture on 0."),
    ):
        cell["minus_random"]["learned"], cell["learned_minus"]["mixture of 4"] = random, mixture
        pages = renderer.render(renderer.records() | {"orders": record})
        assert short in pages["index.md"]
        assert f"**Verdict.** {short.split(':')[0]}: beyond 95 % intervals" in pages["orders.md"]


def test_the_page_of_distillation_counts_what_is_lost(renderer: Any, small_data: Path, tmp_path: Path) -> None:
    record = reproduce("distillation", tmp_path, 'outliers=["1_small"]')
    tables = record["metrics"]
    [density], [outliers] = (list(tables[part].values()) for part in ("densities", "outliers"))
    for nats, area, short in (
        (0.01, 0.001, "Holds: 0/1 densities, 0/1 detectors lose more."),
        (0.03, 0.001, "Does not hold: 1/1 densities, 0/1 detectors lose more."),
        (0.005, 0.01, "Does not hold: 0/1 densities, 1/1 detectors lose more."),
    ):
        density["lost"]["mean"], outliers["lost"]["mean"] = nats, area
        pages = renderer.render(renderer.records() | {"distillation": record})
        assert short in " ".join(pages["index.md"].split())
        assert f"| {nats:.3f} |" in pages["distillation.md"]
        assert f"| {area:.4f} |" in pages["distillation.md"]


def test_pages_say_which_row_is_the_papers_own_model(renderer: Any, small_data: Path, tmp_path: Path) -> None:
    models = "models=[mnist-made, mnist-made-paper, mnist-made-mle, mnist-made-gaussian]"
    images = reproduce("fig4", tmp_path, models)
    own = images["metrics"]["models"]["mnist-made-paper"]
    assert "nll" not in own
    assert list(own["samplers"]) == ["langevin"]
    plane, toys = reproduce("fig3b", tmp_path, "seeds=2"), reproduce("fig7", tmp_path, "toys=[rings]")
    new = {"fig4-mnist": images, "fig3b": plane, "fig7": toys}
    pages = {name: " ".join(text.split()) for name, text in renderer.render(renderer.records() | new).items()}
    distance = own["frechet_distance"]
    assert f"| mnist-made-paper | {own['parameters']:,} | 2 | | | {renderer.number(distance, 3)} |" in pages["fig4.md"]
    others = [
        images["metrics"]["models"][f"mnist-made{suffix}"]["frechet_distance"] for suffix in ("-mle", "-gaussian")
    ]
    assert f"than its partners in {int(distance < min(others))} of 1." in pages["fig4.md"]
    assert "`-paper` is AR-CSM as in the paper" in pages["fig4.md"]
    size = plane["metrics"]["models"]["AR-CSM, paper"]["parameters"]
    assert f"| AR-CSM, paper | {size:,} | |" in pages["fig3b.md"]
    assert "of 2 mixtures" in pages["fig3b.md"]  # it is none
    nearest = toys["metrics"]["toys"]["rings"]["energy_distance"]["paper"]
    assert f"Samples of the paper's own model are within {nearest:.4f} of the data on all sets." in pages["fig7.md"]


def test_every_part_of_the_paper_has_a_place_here(renderer: Any) -> None:
    page = renderer.render(renderer.records())["paper.md"]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert all(all(cell.strip() for cell in row) for row in rows)
    assert {len(row) for row in rows} == {4, 5}
    text = " ".join(row[0] for row in rows)
    covered = [f"Section {number}" for number in ("2", "3", "4", "4.1", "4.2", "5.1", "5.2", "5.3", "5.4", "5.5", "6")]
    covered += ["Theorems 1 and 2", "Theorem 3", "Definition 1", "Table 1", "Table 2", "Appendix B", "Figure 12"]
    for item in covered:
        assert re.search(rf"{item}\b(?!\.\d)", text), item
    for name in re.findall(r"`(arcsm\.[\w.]+)`", page):
        assert pkgutil.resolve_name(name) is not None
    tests = re.findall(r"`(tests/[\w/]+\.py)`", page)
    assert len(tests) == sum(len(row) == 4 for row in rows) - 1
    for test in tests:
        assert (DOCS.parent / test).exists(), test


def test_the_open_question_has_the_verdicts_of_its_experiments(renderer: Any) -> None:
    known = renderer.records()
    pages = renderer.render(known)
    assert "[our answers](beyond.md)" in pages["index.md"]
    for name in ("sampling-cost", "orders"):
        verdict = " ".join(pages[f"{name}.md"].split("**Verdict.** ")[1].split("\n\n")[0].split())
        assert verdict in " ".join(pages["beyond.md"].split())
    without = renderer.render({name: known[name] for name in known if name != "orders"})
    assert "beyond.md" not in without
    assert "beyond.md" not in without["index.md"]
