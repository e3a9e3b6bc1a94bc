"""The page itself, and Gradio components around :mod:`arcsm.cli.web.images` and :mod:`arcsm.cli.web.tables`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from PIL import Image

from arcsm._runtime.markup import as_markdown
from arcsm.cli.console import show
from arcsm.cli.fitted_tables import FittedTable
from arcsm.cli.web.components import seed_of, show_errors
from arcsm.cli.web.fitted import FittedTableExplorer
from arcsm.cli.web.fitted_page import fitted_page
from arcsm.cli.web.guard import Guard, check_host
from arcsm.cli.web.images import ImageExplorer
from arcsm.cli.web.tables import TableExplorer
from arcsm.cli.web.uploads import guarded
from arcsm.model import AutoregressiveModel

_SURPRISING = 0.1  # probability below which a value is reported


def build(model: AutoregressiveModel | FittedTable, title: str) -> Any:
    """Build the page of a model or a fitted table, a ``gradio.Blocks``."""
    gradio = _gradio()
    with gradio.Blocks(analytics_enabled=False, title=f"arcsm: {title}", delete_cache=(600, 3600)) as page:
        gradio.Markdown(f"## {as_markdown(title)}")
        if isinstance(model, FittedTable):
            fitted_page(gradio, page, FittedTableExplorer(model))
        elif "image_shape" in model.metadata:
            _image_page(gradio, ImageExplorer(model))
        else:
            _table_page(gradio, TableExplorer(model))
    return page


def serve(
    model: AutoregressiveModel | FittedTable, title: str, host: str = "127.0.0.1", port: int | None = None
) -> None:
    """Serve the page until interrupted; by default to this machine only."""
    with serving(model, title, host, port) as (page, address):
        show(f"{address}  press Ctrl-C to stop")
        page.block_thread()


@contextmanager
def serving(
    model: AutoregressiveModel | FittedTable, title: str, host: str = "127.0.0.1", port: int | None = None
) -> Iterator[tuple[Any, str]]:
    """Serve the page in the background, and provide it and its address. Uploads are deleted at the end.

    The page loads no external resources, is not shared, and limits uploads.
    """
    host = host.strip("[]")
    check_host(host)
    with TemporaryDirectory(prefix="arcsm-", ignore_cleanup_errors=True) as folder, _environment(folder, host):
        page = build(model, title)
        from starlette.middleware import Middleware  # of the extra, as Gradio

        guard = Middleware(Guard, host=host, folder=Path(folder))
        theme = _gradio().themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        _, address, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            prevent_thread_lock=True,
            theme=theme,
            footer_links=[],
            ssr_mode=False,
            max_file_size="20mb",
            share=False,
            quiet=True,
            app_kwargs={"middleware": [guard]},
        )
        try:
            yield page, address
        finally:
            page.close()


@contextmanager
def _environment(folder: str, host: str) -> Iterator[None]:
    """Let Gradio keep uploads in a folder, serve them in this process, and reach the page without a proxy."""
    direct = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    no_proxy = ",".join(filter(None, (direct, "localhost", "127.0.0.1", host)))
    changes = {"GRADIO_TEMP_DIR": folder, "GRADIO_NUM_WORKERS": "0", "NO_PROXY": no_proxy, "no_proxy": no_proxy}
    earlier = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ValueError(f'serve: needs the extra: pip install "arcsm[web]" ({error})') from error
    return gradio


def _image_page(gradio: Any, explorer: ImageExplorer) -> None:
    label = gradio.Dropdown(
        [(str(c), c) for c in range(max(1, explorer.classes))], value=0, label="class", visible=bool(explorer.classes)
    )
    with gradio.Row():
        with gradio.Column():
            editor = guarded(gradio.ImageEditor(
                type="pil", label="Draw or upload an image", sources=["upload", "clipboard"], layers=False,
                canvas_size=(280, 280), brush=gradio.Brush(default_size=18, default_color="#ffffff"), height=380,
                elem_id="editor",
            ))  # fmt: skip
            with gradio.Row():
                evaluate = gradio.Button("How likely?", variant="primary", elem_id="evaluate")
                denoise = gradio.Button("Denoise", elem_id="denoise", visible=explorer.can_denoise)
                complete = gradio.Button("Complete the lower half", elem_id="complete")
            sigma = gradio.Slider(
                0.05, 1.0, 0.3, label="Standard deviation of the noise (pixels are in -1 to 1)",
                visible=explorer.can_denoise,
            )  # fmt: skip
        with gradio.Column():
            message = gradio.Markdown(elem_id="message")
            options: dict[str, Any] = {"format": "png", "buttons": ["download", "fullscreen"]}
            model_input = gradio.Image(label="Model input", elem_id="input", height=300, **options)
            result = gradio.Image(label="Result", elem_id="result", height=300, **options)
    with gradio.Row():
        seed = gradio.Number(0, precision=0, label="Seed")
        count = gradio.Slider(1, 64, 16, step=1, label="Number of images")
        sample = gradio.Button("Sample the model", elem_id="sample")
    samples = gradio.Image(label="Samples", elem_id="samples", **options)

    def on_evaluate(picture: Any, c: int) -> tuple[str, Image.Image, Image.Image]:
        row = explorer.to_row(_composite(picture))
        likelihood = explorer.evaluate(row, c)
        text = f"**{likelihood.log_prob:.1f} nats**, {likelihood.bits:.3f} bits per value. Bright pixels are unlikely."
        return text, explorer.to_picture(row), likelihood.heat_map

    def on_denoise(picture: Any, noise: float, c: int) -> tuple[str, Image.Image, Image.Image]:
        row = explorer.to_row(_composite(picture))
        denoised = explorer.denoise(row, noise, c)
        text = f"Removed noise with standard deviation {noise:.2f}."
        return text, explorer.to_picture(row), explorer.to_picture(denoised)

    def on_complete(picture: Any, number: float | None, c: int) -> tuple[str, Image.Image, Image.Image]:
        row = explorer.to_row(_composite(picture))
        completed = explorer.complete(row, seed_of(number), c)
        return "The model drew the lower half.", explorer.to_picture(row), explorer.to_picture(completed)

    def on_sample(amount: float, number: float | None, c: int) -> Image.Image:
        return explorer.to_picture(explorer.sample(int(amount), seed_of(number), c if explorer.classes else None))

    evaluate.click(show_errors(gradio, on_evaluate), [editor, label], [message, model_input, result])
    denoise.click(show_errors(gradio, on_denoise), [editor, sigma, label], [message, model_input, result])
    complete.click(show_errors(gradio, on_complete), [editor, seed, label], [message, model_input, result])
    sample.click(show_errors(gradio, on_sample), [count, seed, label], [samples])


def _table_page(gradio: Any, explorer: TableExplorer) -> None:
    row = gradio.Dataframe(
        [[round(value, 4) for value in explorer.median_row.tolist()]], headers=explorer.columns, datatype="number",
        row_count=1, interactive=True, label="Edit a row", elem_id="row",
    )  # fmt: skip
    evaluate = gradio.Button("How likely?", variant="primary", elem_id="evaluate")
    message = gradio.Markdown(elem_id="message")
    table = gradio.Dataframe(label="Columns, the least likely first", interactive=False, elem_id="columns")
    gradio.Markdown("Density of each column given the earlier columns of the row. The row's value is orange.")
    densities = gradio.Plot(show_label=False, elem_id="densities")

    def on_evaluate(values: pd.DataFrame) -> tuple[str, pd.DataFrame, Any]:
        point = explorer.to_row([float(value) for value in values.iloc[0]])
        total, columns = explorer.evaluate(point)
        figure = explorer.densities(point, columns["column"].tolist())
        return f"**{total:.2f} nats.** {_summary(columns.iloc[0])}", columns.round(4), figure

    evaluate.click(show_errors(gradio, on_evaluate), [row], [message, table, densities])


def _summary(column: pd.Series) -> str:
    probability = column["probability"]
    if probability > _SURPRISING:
        return "All values are within their expected ranges."
    expected = f"{column['expected from']:.3g} to {column['expected to']:.3g}"
    return (
        f"Least likely: **{as_markdown(column['column'])}**, expected {expected}, got {column['value']:.3g}; the "
        f"probability of a value at least as extreme is {probability:.2g}."
    )


def _composite(picture: Any) -> Image.Image:
    if picture is None or picture.get("composite") is None or picture["composite"].getextrema()[-1] == (0, 0):
        raise ValueError("draw or upload an image first")
    return picture["composite"]  # type: ignore[no-any-return]
