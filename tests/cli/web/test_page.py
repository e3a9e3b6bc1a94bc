"""The page itself, through its API and in a browser if there is one."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arcsm import AutoregressiveModel
from arcsm.cli.web.page import as_markdown, build, launch_options
from small_web_models import image_model, table_model


def launch(model: AutoregressiveModel) -> tuple[Any, str]:
    page = build(model, "tiny")
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, **launch_options())
    return page, address


def test_page_answers_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    client = pytest.importorskip("gradio_client")
    page, address = launch(table_model())
    try:
        ask = client.Client(address, verbose=False)
        row = {"headers": ["a", "b", "c"], "data": [[10.0, 90.0, -5.0]], "metadata": None}
        message, result, _ = ask.predict(row, api_name="/on_evaluate")
        assert "Least likely: **b**" in message
        assert result["data"][0][0] == "b"
    finally:
        page.close()


@pytest.mark.parametrize("make_model", [table_model, image_model])
def test_building_a_page_causes_no_warning(make_model: Callable[[], AutoregressiveModel]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build(make_model(), "tiny")


def test_names_show_as_they_are_in_markdown() -> None:
    assert as_markdown("_a_ <b> *c* 年齢") == r"\_a\_ \<b\> \*c\* 年齢"


@pytest.mark.slow
def test_uploading_a_picture_shows_its_likelihood(tmp_path: Path) -> None:
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
    page, address = launch(image_model())
    window = webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(driver))
    try:
        window.get(address)
        wait = WebDriverWait(window, 60)
        wait.until(lambda w: w.find_elements(By.CSS_SELECTOR, "#editor input[type=file]"))[0].send_keys(
            str(tmp_path / "picture.png")
        )
        wait.until(lambda w: w.find_elements(By.CSS_SELECTOR, "#editor canvas"))

        def evaluated(w: Any) -> bool:
            w.find_element(By.CSS_SELECTOR, "#evaluate").click()
            return "nats" in w.find_element(By.CSS_SELECTOR, "#message").text

        wait.until(evaluated)
        wait.until(lambda w: w.find_elements(By.CSS_SELECTOR, "#result img"))
    finally:
        window.quit()
        page.close()
