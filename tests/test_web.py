"""The page to play with: what it makes of pictures and rows, and the page itself, in a browser where there is one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from arcsm import MADE, AutoregressiveModel, GaussianHead, NoiseLadder, ScoreHead
from arcsm.cli.web.images import ImagePlay
from arcsm.cli.web.page import build, launch_options
from arcsm.cli.web.tables import TablePlay
from arcsm.denoise import tweedie


def image_model(shape: tuple[int, int, int] = (1, 4, 6), classes: int = 0) -> AutoregressiveModel:
    torch.manual_seed(0)
    size = int(np.prod(shape))
    made, metadata = MADE(size, 4, (16,), classes=classes), {"image_shape": list(shape), "levels": 17}
    return AutoregressiveModel(made, ScoreHead(4, (8,)), NoiseLadder(1.0, 0.1, 6), metadata=metadata).eval()


def table_model() -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(
        MADE(3, 4, (8,)),
        GaussianHead(4),
        shift=[10.0, 0.0, -5.0],
        scale=[2.0, 1.0, 0.1],
        metadata={"columns": list("abc")},
    ).eval()


PICTURES = {
    "grey": Image.fromarray(np.full((40, 60), 255, dtype=np.uint8)),
    "colour": Image.new("RGB", (12, 8), (255, 255, 255)),
    "transparent": Image.new("RGBA", (6, 4), (255, 255, 255, 255)),
    "16 bits": Image.fromarray(np.full((8, 12), 65535, dtype=np.uint16)),
    "palette": Image.new("RGB", (6, 4), (255, 255, 255)).convert("P"),
}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 4, 6)])
def test_any_picture_becomes_a_row_of_the_model(kind: str, shape: tuple[int, int, int]) -> None:
    play = ImagePlay(image_model(shape))
    row = play.row_of(PICTURES[kind])
    torch.testing.assert_close(row, torch.full_like(row, 1.0 - 1.0 / 17))  # the middle of the highest of 17 levels
    assert play.picture_of(row).size == (6 * play.zoom, 4 * play.zoom)


def test_what_is_transparent_is_black() -> None:
    row = ImagePlay(image_model()).row_of(Image.new("RGBA", (6, 4), (255, 255, 255, 0)))
    torch.testing.assert_close(row, torch.full_like(row, -1.0 + 1.0 / 17))


def test_an_image_is_judged_by_the_models_density() -> None:
    model = image_model()
    play, row = ImagePlay(model), torch.linspace(-1.0, 1.0, 24)
    found = play.judge(row)
    terms = model.log_prob(row[None], reduce=False)[0]
    assert found.log_prob == pytest.approx(float(terms.sum()), abs=1e-4)
    assert found.bits == pytest.approx(-found.log_prob / 24 / np.log(2) + np.log2(17 / 2), abs=1e-6)
    heat = np.asarray(found.surprise).astype(int).sum(-1)[:: play.zoom, :: play.zoom].flatten()
    assert int(heat.argmax()) == int(terms.argmin())  # the least likely pixel is the brightest


def test_completing_keeps_the_upper_half_and_draws_the_lower() -> None:
    play, row = ImagePlay(image_model()), torch.linspace(-1.0, 1.0, 24)
    first, again, other = (play.complete(row, seed) for seed in (0, 0, 1))
    torch.testing.assert_close(first[:12], row[:12])
    assert torch.equal(first, again)
    assert not torch.allclose(first[12:], other[12:])
    assert bool(first.isfinite().all())


def test_draws_are_of_the_seed_and_of_the_class() -> None:
    play = ImagePlay(image_model(classes=3))
    assert play.sample(4, 0).shape == (4, 24)
    assert torch.equal(play.sample(4, 7, 1), play.sample(4, 7, 1))
    assert not torch.equal(play.sample(4, 7, 1), play.sample(4, 7, 2))
    row = play.row_of(PICTURES["grey"])
    assert play.judge(row, 1).log_prob != play.judge(row, 2).log_prob


def test_cleaning_is_the_denoiser_of_the_head() -> None:
    play = ImagePlay(image_model())
    row = torch.linspace(-1.0, 1.0, 24)
    torch.testing.assert_close(play.clean(row, 0.3), tweedie(play.model, row[None], 0.3)[0])
    assert not torch.allclose(play.clean(row, 0.3), row)


def test_a_row_is_judged_by_where_its_values_lie() -> None:
    model = table_model()
    play = TablePlay(model)
    usual = play.row_of(play.usual.tolist())
    strange = usual.clone()
    strange[1] += 30.0
    total, found = play.judge(strange)
    assert total == pytest.approx(model.log_prob(strange[None]).item(), abs=1e-4)
    assert found["column"][0] == "b"
    assert found["as far out"][0] < 1e-6
    assert found["expected from"][0] < found["to"][0] < found["value"][0]
    assert play.judge(usual)[1]["as far out"].min() > 0.5
    assert len(play.densities(strange).axes) == 3


@pytest.mark.parametrize(
    ("values", "complaint"),
    [([1.0, 2.0], "expected 3 values, got 2"), ([1.0, float("nan"), 2.0], "b: expected a number, got nan")],
)
def test_rows_that_are_none_are_refused(values: list[float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TablePlay(table_model()).row_of(values)


def launched(model: AutoregressiveModel) -> tuple[Any, str]:
    page = build(model, "tiny")
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    return page, address


def test_the_page_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    client = pytest.importorskip("gradio_client")
    page, address = launched(table_model())
    try:
        ask = client.Client(address, verbose=False)
        row = {"headers": ["a", "b", "c"], "data": [[10.0, 90.0, -5.0]], "metadata": None}
        said, found, _ = ask.predict(row, api_name="/on_judge")
        assert "Most surprising: **b**" in said
        assert found["data"][0][0] == "b"
    finally:
        page.close()


@pytest.mark.slow
def test_a_person_uploads_a_picture_and_sees_how_likely_it_is(tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    browser, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if browser is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10).save(tmp_path / "picture.png")
    options = webdriver.ChromeOptions()
    for option in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(option)
    options.binary_location = browser
    page, address = launched(image_model())
    window = webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(driver))
    try:
        window.get(address)
        wait = WebDriverWait(window, 60)
        wait.until(lambda w: w.find_elements(By.CSS_SELECTOR, "#given input[type=file]"))[0].send_keys(
            str(tmp_path / "picture.png")
        )
        wait.until(lambda w: w.find_elements(By.CSS_SELECTOR, "#given canvas"))

        def judged(w: Any) -> bool:
            w.find_element(By.CSS_SELECTOR, "#judge").click()
            return "nats" in w.find_element(By.CSS_SELECTOR, "#said").text

        wait.until(judged)
        wait.until(lambda w: w.find_elements(By.CSS_SELECTOR, "#result img"))
    finally:
        window.quit()
        page.close()
