"""The page of a fitted table: Gradio components around :mod:`arcsm.cli.web.fitted`."""

from pathlib import Path
from typing import Any

import pandas as pd

from arcsm._runtime.markup import as_markdown
from arcsm.cli.web.components import Downloads, seed_of, show_errors
from arcsm.cli.web.fitted import MAX_DRAWS, MAX_PANELS, FittedTableExplorer, shown
from arcsm.cli.web.uploads import uploaded_only

_FIELD_WIDTH = 150  # pixels
_SHOWN_PANELS = 12  # at first
_TABLE_TYPES = [".csv", ".tsv", ".parquet"]


def fitted_page(gradio: Any, page: Any, explorer: FittedTableExplorer) -> None:
    """Fill the page of a fitted table."""
    table, downloads = explorer.table, Downloads()
    gradio.Markdown(f"Fitted to {table.rows:,} rows of {as_markdown(table.source)}.")
    with gradio.Tabs():
        with gradio.Tab("A row"):
            _row_tab(gradio, page, explorer, downloads)
        if explorer.can_detect:
            with gradio.Tab("A file"):
                _file_tab(gradio, explorer, downloads)


def _row_tab(gradio: Any, page: Any, explorer: FittedTableExplorer, downloads: Downloads) -> None:
    columns = explorer.columns
    gradio.Markdown(
        "Fill in the known values of a row. Each picture shows the distribution of a column given the others."
    )
    fields = []
    with gradio.Row():
        for d, name in enumerate(explorer.fields):
            settings = {"label": name, "min_width": _FIELD_WIDTH, "elem_id": f"field-{d}"}
            if choices := explorer.choices(name):
                fields.append(gradio.Dropdown(["", *choices], value="", **settings))
            else:
                fields.append(gradio.Textbox(placeholder=explorer.span(name), max_lines=1, **settings))
    chosen = gradio.Dropdown(
        columns, value=columns[:_SHOWN_PANELS], multiselect=True, max_choices=MAX_PANELS, label="Columns to show",
        visible=len(columns) > _SHOWN_PANELS,
    )  # fmt: skip
    message, pictures = gradio.Markdown(elem_id="message"), gradio.HTML(elem_id="pictures")

    def on_evaluate(names: list[str], *cells: object) -> tuple[str, str]:
        known = explorer.known_values(cells)
        return as_markdown(explorer.summary(known)), explorer.pictures(known, names)

    gradio.on(
        [page.load, chosen.input, *(event for field in fields for event in _edits(gradio, field))],
        show_errors(gradio, on_evaluate), [chosen, *fields], [message, pictures], show_progress="minimal",
        trigger_mode="always_last",
    )  # fmt: skip
    if not explorer.can_draw:
        return
    with gradio.Row():
        count = gradio.Number(20, precision=0, minimum=1, maximum=MAX_DRAWS, label="Number of rows")
        seed = gradio.Number(0, precision=0, label="Seed")
        draw = gradio.Button("Draw rows with these values", variant="primary", elem_id="draw")
    drawn = gradio.Dataframe(
        headers=columns, label="Drawn rows, at most the first hundred", interactive=False, elem_id="drawn"
    )
    whole = gradio.File(label="All drawn rows", interactive=False, elem_id="drawn-file")

    def on_draw(amount: float | None, number: float | None, *cells: object) -> tuple[pd.DataFrame, str]:
        known = explorer.known_values(cells)
        rows = explorer.draw(known, int(amount or 0), seed_of(number))
        path = downloads.path("drawn.csv")
        explorer.write(rows, path)
        return shown(rows), str(path)

    draw.click(show_errors(gradio, on_draw), [count, seed, *fields], [drawn, whole])


def _edits(gradio: Any, field: Any) -> list[Any]:
    """Return the events that end the editing of a field."""
    return [field.input] if isinstance(field, gradio.Dropdown) else [field.submit, field.blur]


def _file_tab(gradio: Any, explorer: FittedTableExplorer, downloads: Downloads) -> None:
    upload = uploaded_only(gradio.File(
        label="A table with the same columns", file_types=_TABLE_TYPES, elem_id="upload"
    ))  # fmt: skip
    message = gradio.Markdown(elem_id="file-message")
    table = gradio.Dataframe(
        label="Rows, the most surprising first, at most a hundred", interactive=False, wrap=True, elem_id="outliers"
    )
    whole = gradio.File(label="All rows", interactive=False, elem_id="outliers-file")

    def on_upload(file: str | None) -> tuple[str, pd.DataFrame, str]:
        if file is None:
            raise ValueError("upload a table first")
        lines = explorer.outliers(Path(file))
        path = downloads.path("outliers.csv")
        explorer.write(lines, path)
        flagged = int(lines["outlier"].sum())
        return f"{len(lines):,} rows, {flagged:,} flagged as outliers.", shown(lines), str(path)

    upload.upload(show_errors(gradio, on_upload), [upload], [message, table, whole])
