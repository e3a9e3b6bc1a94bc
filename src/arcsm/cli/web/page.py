"""The page itself: components of Gradio around :mod:`arcsm.cli.web.images` and :mod:`arcsm.cli.web.tables`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pandas as pd
from PIL import Image

from arcsm.cli.web.images import ImagePlay
from arcsm.cli.web.tables import TablePlay
from arcsm.model import AutoregressiveModel

_USUAL = 0.1  # chance of a value as far out, above which it is none to speak of


def build(model: AutoregressiveModel, title: str) -> Any:
    """The page of a model, a ``gradio.Blocks``.

    Raises:
        ValueError: where Gradio is not installed.
    """
    gradio = _gradio()
    with gradio.Blocks(analytics_enabled=False, title=f"arcsm: {title}") as page:
        gradio.Markdown(f"## {title}")
        if "image_shape" in model.metadata:
            _images(gradio, ImagePlay(model))
        else:
            _table(gradio, TablePlay(model))
    return page


def serve(model: AutoregressiveModel, title: str, host: str = "127.0.0.1", port: int | None = None) -> None:
    """Show the page until interrupted; on this machine alone, unless another host is given."""
    build(model, title).launch(server_name=host, server_port=port, **launch_options())


def launch_options() -> dict[str, Any]:
    """How the page is launched: nothing is fetched, nothing is shared, and no upload is large."""
    theme = _gradio().themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return {"theme": theme, "share": False, "footer_links": [], "ssr_mode": False, "max_file_size": "20mb"}


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ValueError(f'serve: needs the extra: pip install "arcsm[web]" ({error})') from error
    return gradio


def _images(gradio: Any, play: ImagePlay) -> None:
    """Draw or upload, then look, clean, complete; and draw from the model."""
    label = gradio.Dropdown(
        [(str(c), c) for c in range(max(1, play.classes))], value=0, label="class", visible=bool(play.classes)
    )
    with gradio.Row():
        with gradio.Column():
            given = gradio.ImageEditor(
                type="pil", label="draw on it, or upload an image", sources=["upload", "clipboard"], layers=False,
                canvas_size=(280, 280), brush=gradio.Brush(default_size=18, default_color="#ffffff"), height=380,
                elem_id="given",
            )  # fmt: skip
            with gradio.Row():
                judge = gradio.Button("How likely?", variant="primary", elem_id="judge")
                clean = gradio.Button("Clean", elem_id="clean", visible=play.cleans)
                complete = gradio.Button("Complete the lower half", elem_id="complete")
            sigma = gradio.Slider(
                0.05, 1.0, 0.3, label="noise to be cleaned (pixels reach from -1 to 1)", visible=play.cleans
            )
        with gradio.Column():
            said = gradio.Markdown(elem_id="said")
            kept: dict[str, Any] = {"format": "png", "height": 300, "buttons": ["download", "fullscreen"]}
            shown = gradio.Image(label="as the model sees it", elem_id="shown", **kept)
            result = gradio.Image(label="result", elem_id="result", **kept)
    with gradio.Row():
        seed = gradio.Number(0, precision=0, label="seed")
        count = gradio.Slider(1, 64, 16, step=1, label="images")
        sample = gradio.Button("Draw from the model", elem_id="sample")
    drawn = gradio.Image(label="drawn", format="png", buttons=["download", "fullscreen"], elem_id="drawn")

    def on_judge(picture: Any, c: int) -> tuple[str, Image.Image, Image.Image]:
        row = play.row_of(_composite(picture))
        found = play.judge(row, c)
        text = f"**{found.log_prob:.1f} nats**, {found.bits:.3f} bits a value. Bright is surprising."
        return text, play.picture_of(row), found.surprise

    def on_clean(picture: Any, noise: float, c: int) -> tuple[str, Image.Image, Image.Image]:
        row = play.row_of(_composite(picture))
        return f"Without noise of {noise:.2f}.", play.picture_of(row), play.picture_of(play.clean(row, noise, c))

    def on_complete(picture: Any, number: float | None, c: int) -> tuple[str, Image.Image, Image.Image]:
        row = play.row_of(_composite(picture))
        return (
            "The lower half is the model's.",
            play.picture_of(row),
            play.picture_of(play.complete(row, _seed(number), c)),
        )

    def on_sample(amount: float, number: float | None, c: int) -> Image.Image:
        return play.grid_of(play.sample(int(amount), _seed(number), c if play.classes else None))

    judge.click(_said(gradio, on_judge), [given, label], [said, shown, result])
    clean.click(_said(gradio, on_clean), [given, sigma, label], [said, shown, result])
    complete.click(_said(gradio, on_complete), [given, seed, label], [said, shown, result])
    sample.click(_said(gradio, on_sample), [count, seed, label], [drawn])


def _table(gradio: Any, play: TablePlay) -> None:
    """Change a row and see which of its values surprise, and what was to be expected."""
    row = gradio.Dataframe(
        [[round(value, 4) for value in play.usual.tolist()]], headers=play.columns, datatype="number", row_count=1,
        row_limits=(1, 1), column_limits=(len(play.columns), len(play.columns)),
        interactive=True, label="a row to be changed", elem_id="row",
    )  # fmt: skip
    judge = gradio.Button("How likely?", variant="primary", elem_id="judge")
    said = gradio.Markdown(elem_id="said")
    found = gradio.Dataframe(label="columns, the most surprising first", interactive=False, elem_id="found")
    gradio.Markdown("The density of each column given those before it in the row; the line is the row's value:")
    densities = gradio.Plot(show_label=False)

    def on_judge(values: pd.DataFrame) -> tuple[str, pd.DataFrame, Any]:
        point = play.row_of([float(value) for value in values.iloc[0]])
        total, columns = play.judge(point)
        shown = play.densities(point, columns["column"].tolist())
        return f"**{total:.2f} nats.** {_in_words(columns.iloc[0])}", columns.round(4), shown

    judge.click(_said(gradio, on_judge), [row], [said, found, densities])


def _seed(number: float | None) -> int:
    if number is None or number < 0:
        raise ValueError("seed: expected a whole number from 0")
    return int(number)


def _in_words(first: pd.Series) -> str:
    """What is to be said of the most surprising column."""
    chance = first["as far out"]
    if chance > _USUAL:
        return "Nothing surprises: every value is where it was to be expected."
    return (
        f"Most surprising: **{first['column']}**, expected {first['expected from']:.3g} to {first['to']:.3g}, saw "
        f"{first['value']:.3g}; the chance of a value as far out is {chance:.2g}."
    )


def _composite(picture: Any) -> Image.Image:
    """What is on the canvas."""
    if picture is None or picture.get("composite") is None or picture["composite"].getextrema()[-1] == (0, 0):
        raise ValueError("draw something, or upload an image")
    return picture["composite"]  # type: ignore[no-any-return]


def _said(gradio: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose users' mistakes are shown on the page, in a line."""

    @functools.wraps(function)
    def answer(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError as error:
            raise gradio.Error(str(error)) from error

    return answer
