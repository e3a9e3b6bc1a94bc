"""Files that visitors of the page upload: never by their addresses, and images of known formats and sizes alone."""

import html
from io import BytesIO
from pathlib import Path
from typing import Any

from arcsm._runtime.files import reading
from arcsm.data.images import open_image

MAX_PIXELS = 25_000_000  #: of an upload; each takes some 20 bytes while it is converted


def guarded(editor: Any) -> Any:
    """Make a ``gradio.ImageEditor`` check files before it decodes them, and fetch none by its address.

    Its methods are replaced, because Gradio writes a file beside the module of a subclass.
    """
    convert = editor.convert_and_format_image

    def checked_convert(file: Any, *arguments: Any, **options: Any) -> Any:
        if file is not None:
            _check(BytesIO(file) if isinstance(file, bytes | bytearray | memoryview) else Path(file.path))
        return convert(file, *arguments, **options)

    editor.convert_and_format_image = checked_convert
    return uploaded_only(editor)


def uploaded_only(component: Any) -> Any:
    """Make a component of Gradio fetch no file by its address; see :func:`guarded`."""
    move = component.async_move_resource_to_block_cache

    async def checked_move(file: Any) -> Any:
        if file is not None and "://" in str(file):
            raise _error("expected an uploaded file, got an address")
        return await move(file)

    component.async_move_resource_to_block_cache = checked_move
    return component


def _check(file: Path | BytesIO) -> None:
    """Raise an error that the page shows if an upload is no image of a known format, or too large."""
    name = file.name if isinstance(file, Path) else "the drawing"
    try:
        with reading(name), open_image(file) as image:
            width, height = image.size
    except ValueError as error:
        raise _error(str(error)) from error
    if width * height > MAX_PIXELS:
        raise _error(
            f"{name}: expected at most {MAX_PIXELS // 10**6} megapixels, got {width} x {height}; make it smaller"
        )


def _error(message: str) -> Exception:
    import gradio  # takes seconds

    return gradio.Error(html.escape(message, quote=False))  # the page shows HTML
