"""The canvas of the page, which decodes uploaded files: only images of known formats, and only so large ones."""

from io import BytesIO
from pathlib import Path
from typing import Any

import gradio

from arcsm._runtime.files import reading
from arcsm.data.images import open_image

MAX_PIXELS = 25_000_000  #: of an upload; each takes some 20 bytes while it is converted

from gradio.events import Dependency

class Editor(gradio.ImageEditor):
    """Gradio's image editor, for untrusted files."""

    is_template = True  # tells Gradio to show it as its base class

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> Any:
        """Copy an uploaded file to the cache; addresses, which Gradio would fetch, are refused."""
        if url_or_file_path is not None and "://" in str(url_or_file_path):
            raise gradio.Error("expected an uploaded file, got an address")
        return await super().async_move_resource_to_block_cache(url_or_file_path)

    def convert_and_format_image(self, file: Any, *arguments: Any, **options: Any) -> Any:
        """Decode a file of the canvas."""
        if file is not None:
            try:
                check_upload(BytesIO(file) if isinstance(file, bytes | bytearray | memoryview) else Path(file.path))
            except ValueError as error:
                raise gradio.Error(str(error)) from error
        return super().convert_and_format_image(file, *arguments, **options)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


def check_upload(file: Path | BytesIO) -> None:
    """Raise a ``ValueError`` if an upload is no image of a known format or too large; decode nothing."""
    name = file.name if isinstance(file, Path) else "the drawing"
    with reading(name), open_image(file) as image:
        width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{name}: expected at most {MAX_PIXELS // 10**6} megapixels, got {width} x {height}; make it smaller"
        )