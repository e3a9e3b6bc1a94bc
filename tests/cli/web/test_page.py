"""The page itself, through its API and in a browser if there is one."""

from __future__ import annotations

import os
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from PIL import Image

from arcsm import AutoregressiveModel
from arcsm.cli.fitted_tables import FittedTable
from arcsm.cli.web.guard import check_host
from arcsm.cli.web.page import build, serving
from small_fitted_tables import NAMES, fitted_table
from small_web_models import image_model, table_model


@pytest.fixture
def table_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the address of a page that is being served."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with serving(table_model(), "tiny") as (_, address):
        yield address


def test_page_answers_requests(table_page: str) -> None:
    client = pytest.importorskip("gradio_client")
    ask = client.Client(table_page, verbose=False)
    row = {"headers": ["a", "b", "c"], "data": [[10.0, 90.0, -5.0]], "metadata": None}
    message, result, _ = ask.predict(row, api_name="/on_evaluate")
    assert "Least likely: **b**" in message
    assert result["data"][0][0] == "b"


def test_the_page_of_a_fitted_table_answers_and_takes_uploads_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("gradio_client")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    table = fitted_table(tmp_path)
    with serving(table, "tiny") as (_, address):
        ask = client.Client(address, verbose=False)

        def answer(path: Path | str) -> str:
            file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
            call = f"{address}gradio_api/call/on_upload"
            event = httpx.post(call, json={"data": [file]}).json()["event_id"]
            return httpx.get(f"{call}/{event}", timeout=60.0).text

        message, pictures = ask.predict(NAMES, "40", "", "900", api_name="/on_evaluate")
        assert "Log density" in message
        assert pictures.count("<img") == 3
        drawn, file = ask.predict(5, 0, "40", "Rome", "", api_name="/on_draw")
        assert [cells[1] for cells in drawn["data"]] == ["Rome"] * 5
        assert len(Path(file).read_text(encoding="utf-8").splitlines()) == 6
        message, lines, _ = ask.predict(client.handle_file(str(tmp_path / "rows.csv")), api_name="/on_upload")
        assert message.startswith("120 rows")
        assert len(lines["data"]) == 100
        with pytest.raises(client.exceptions.AppError, match=r"expected a (whole )?number, got 'x'"):
            ask.predict(NAMES, "x", "", "", api_name="/on_evaluate")
        for path in (f"{address}x.csv", tmp_path / "rows.csv", "/etc/passwd"):  # none was uploaded
            assert answer(path).startswith("event: error")


def status(address: str, method: str = "GET", **headers: str) -> int:
    return int(httpx.request(method, address, headers=headers).status_code)


def test_requests_of_other_sites_are_refused(table_page: str) -> None:
    own = table_page.removeprefix("http://").rstrip("/")
    upload, config = f"{table_page}gradio_api/upload", f"{table_page}config"
    assert status(config) == status(config, host=f"localhost:{own.rpartition(':')[2]}") == 200
    assert status(config, host="evil.example") == status(config, host="127.0.0.1.evil.example") == 400
    for origin in ("http://evil.example", "null", f"http://{own}.evil.example"):
        assert status(config, origin=origin) == status(upload, "POST", origin=origin) == 403
    assert status(config, origin=f"http://{own}") == 200


def test_uploads_are_limited_and_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("arcsm.cli.web.guard.MAX_REQUEST", 4_000)
    monkeypatch.setattr("arcsm.cli.web.guard.MAX_TOTAL", 9_000)

    def send(size: int) -> httpx.Response:
        return httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", os.urandom(size))})

    with serving(image_model(), "tiny") as (_, address):
        assert send(5_000).status_code == 413
        first = send(3_500)
        path = Path(first.json()[0])
        assert path.is_file()
        assert [send(3_500).status_code, send(3_500).status_code] == [200, 413]
        assert httpx.post(f"{address}gradio_api/upload", content=iter([b"chunk"])).status_code == 411
    assert not path.exists()
    assert not list(Path(tempfile.gettempdir()).glob(f"{path.parents[1].name}*"))


def test_addresses_of_version_6_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "::1,localhost")
    try:
        check_host("::1")
    except ValueError:
        pytest.skip("needs IPv6")
    with serving(table_model(), "tiny", "::1") as (_, address):
        assert address.startswith("http://[::1]:")
        assert status(f"{address}config") == 200


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_addresses_of_other_machines_are_rejected(host: str) -> None:
    with pytest.raises(ValueError, match=f"^--host {host}: expected an address of this machine"):
        check_host(host)


@pytest.mark.parametrize("make_model", [table_model, image_model])
def test_building_a_page_causes_no_warning(make_model: Callable[[], AutoregressiveModel]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build(make_model(), "tiny")


@pytest.fixture
def window() -> Iterator[Any]:
    """Return a browser without a screen."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    browser, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if browser is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    for option in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(option)
    options.binary_location = browser
    opened = webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


@pytest.mark.slow
def test_uploading_a_picture_shows_its_likelihood(window: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10).save(tmp_path / "picture.png")
    with serving(image_model(), "tiny") as (_, address):
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


@pytest.mark.slow
def test_filling_in_a_value_moves_the_pictures_of_the_others(window: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def sources(w: Any) -> list[str]:
        return [picture.get_attribute("src") for picture in w.find_elements(By.CSS_SELECTOR, "#pictures img")]

    with serving(fitted_table(tmp_path), "tiny") as (_, address):
        window.get(address)
        wait = WebDriverWait(window, 60)
        before = wait.until(lambda w: len(sources(w)) == 3 and sources(w))
        window.find_element(By.CSS_SELECTOR, "#field-0 textarea, #field-0 input").send_keys("58", Keys.ENTER)
        wait.until(lambda w: "Log density" in w.find_element(By.CSS_SELECTOR, "#message").text)
        after = wait.until(lambda w: len(sources(w)) == 3 and sources(w) != before and sources(w))
        assert all(one != other for one, other in zip(before, after, strict=True))
        window.find_element(By.CSS_SELECTOR, "#draw").click()
        wait.until(lambda w: "58" in w.find_element(By.CSS_SELECTOR, "#drawn").text)


#: Hosts that chromium asks for itself, whatever page it shows.
OF_THE_BROWSER = {
    f"{name}:443"
    for name in (
        "accounts.google.com",
        "android.clients.google.com",
        "clients2.google.com",
        "content-autofill.googleapis.com",
        "optimizationguide-pa.googleapis.com",
        "redirector.gvt1.com",
        "update.googleapis.com",
        "www.google.com",
    )
} | {"clients2.google.com", "redirector.gvt1.com", "update.googleapis.com"}


class Recorder(socketserver.BaseRequestHandler):
    """A proxy that notes the host of each request and answers none."""

    seen: ClassVar[set[str]] = set()

    def handle(self) -> None:
        """Note the host of the first line."""
        words = self.request.recv(4096).decode("latin-1").split()
        if len(words) > 1:
            self.seen.add(words[1].split("/")[2] if "://" in words[1] else words[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_model", "button"),
    [
        (lambda _: table_model(), b"How likely?"),
        (lambda _: image_model(), b"How likely?"),
        (fitted_table, b"Draw rows"),
    ],
    ids=["table", "images", "fitted table"],
)
def test_no_request_leaves_the_machine(
    make_model: Callable[[Path], AutoregressiveModel | FittedTable],
    button: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium")
    names: set[str] = set()  # that the server looks up
    look_up = socket.getaddrinfo

    def noted(name: str, *arguments: Any, **options: Any) -> Any:
        names.add(str(name))
        return look_up(name, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    monkeypatch.setattr(Recorder, "seen", set())
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Recorder) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with serving(make_model(tmp_path), "tiny") as (_, address):
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            options += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
            options += [f"--proxy-server=http://127.0.0.1:{proxy.server_address[1]}"]
            page = subprocess.run([browser, *options, address], capture_output=True, timeout=120, check=False)
        proxy.shutdown()
    assert button in page.stdout
    assert not Recorder.seen - OF_THE_BROWSER
    assert names <= {"127.0.0.1", "localhost", "None"}
