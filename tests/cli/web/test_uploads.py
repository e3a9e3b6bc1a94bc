"""The canvas of the page: which uploads it decodes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from PIL import Image

gradio = pytest.importorskip("gradio")

from arcsm.cli.web.uploads import MAX_PIXELS, guarded  # noqa: E402


def decode(path: Path) -> Image.Image:
    data = {"background": None, "layers": [], "composite": {"path": str(path), "orig_name": path.name}}
    editor = guarded(gradio.ImageEditor(type="pil", render=False))
    composite = editor.preprocess(editor.data_model.model_validate(data))["composite"]
    assert isinstance(composite, Image.Image)
    return composite


def test_pictures_are_decoded(tmp_path: Path) -> None:
    Image.new("L", (6, 4), 200).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").size == (6, 4)


def test_postscript_is_never_interpreted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments: interpreted.append(arguments))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(gradio.Error, match=r"a\.png: cannot be read"):
        decode(tmp_path / "a.png")
    assert not interpreted


def test_uploads_of_too_many_pixels_are_rejected(tmp_path: Path) -> None:
    Image.new("1", (MAX_PIXELS // 1000 + 1, 1000)).save(tmp_path / "a.png")
    with pytest.raises(gradio.Error, match=r"a\.png: expected at most 25 megapixels, got 25001 x 1000"):
        decode(tmp_path / "a.png")


def test_addresses_are_not_fetched() -> None:
    with pytest.raises(gradio.Error, match="expected an uploaded file"):
        asyncio.run(
            guarded(gradio.ImageEditor(render=False)).async_move_resource_to_block_cache("http://example.org/a.png")
        )
