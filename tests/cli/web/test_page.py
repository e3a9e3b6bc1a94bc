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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from arcsm.cli.fitted_tables import FittedTable
from arcsm.cli.web.guard import check_host
from arcsm.cli.web.page import build, serving
from small_fitted_tables import NAMES
from small_runs import PATIENCE
from small_web_models import image_model, table_model


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost,::1")


@pytest.fixture
def requests() -> Iterator[httpx.Client]:
    """Return a client that waits for a busy machine."""
    with httpx.Client(timeout=PATIENCE) as client:
        yield client


def test_the_page_of_a_model_is_built_without_a_warning_and_answers_its_own_site_alone(
    requests: httpx.Client,
) -> None:
    client = pytest.importorskip("gradio_client")

    def status(address: str, method: str = "GET", **headers: str) -> int:
        return requests.request(method, address, headers=headers).status_code

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build(image_model(), "tiny")
        build(table_model(), "tiny")
    with serving(table_model(), "tiny") as (_, address):
        row = {"headers": ["a", "b", "c"], "data": [[10.0, 90.0, -5.0]], "metadata": None}
        message, result, _ = client.Client(address, verbose=False).predict(row, api_name="/on_evaluate")
        assert "Least likely: **b**" in message
        assert result["data"][0][0] == "b"
        own = address.removeprefix("http://").rstrip("/")
        upload, config = f"{address}gradio_api/upload", f"{address}config"
        assert status(config) == status(config, host=f"localhost:{own.rpartition(':')[2]}") == 200
        assert status(config, host="evil.example") == status(config, host="127.0.0.1.evil.example") == 400
        for origin in ("http://evil.example", "null", f"http://{own}.evil.example"):
            assert status(config, origin=origin) == status(upload, "POST", origin=origin) == 403
        assert status(config, origin=f"http://{own}") == 200


def test_the_page_of_a_fitted_table_answers_and_takes_uploads_alone(
    fitted: tuple[FittedTable, Path], requests: httpx.Client
) -> None:
    client = pytest.importorskip("gradio_client")
    table, rows = fitted
    with serving(table, "tiny") as (_, address):
        ask = client.Client(address, verbose=False)

        def answer(path: Path | str) -> str:
            file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
            call = f"{address}gradio_api/call/on_upload"
            event = requests.post(call, json={"data": [file]}).json()["event_id"]
            return requests.get(f"{call}/{event}").text

        message, pictures = ask.predict(NAMES, "40", "", "900", api_name="/on_evaluate")
        assert "Log density" in message
        assert pictures.count("<img") == 3
        drawn, file = ask.predict(5, 0, "40", "Rome", "", api_name="/on_draw")
        assert [cells[1] for cells in drawn["data"]] == ["Rome"] * 5
        assert len(Path(file).read_text(encoding="utf-8").splitlines()) == 6
        message, lines, _ = ask.predict(client.handle_file(str(rows)), api_name="/on_upload")
        assert message.startswith("120 rows")
        assert len(lines["data"]) == 100
        with pytest.raises(client.exceptions.AppError, match=r"expected a (whole )?number, got 'x'"):
            ask.predict(NAMES, "x", "", "", api_name="/on_evaluate")
        for path in (f"{address}x.csv", rows, "/etc/passwd"):  # none was uploaded
            assert answer(path).startswith("event: error")


def test_uploads_are_limited_and_deleted(monkeypatch: pytest.MonkeyPatch, requests: httpx.Client) -> None:
    monkeypatch.setattr("arcsm.cli.web.guard.MAX_REQUEST", 4_000)
    monkeypatch.setattr("arcsm.cli.web.guard.MAX_TOTAL", 9_000)

    def send(size: int) -> httpx.Response:
        return requests.post(f"{address}gradio_api/upload", files={"files": ("a.png", os.urandom(size))})

    with serving(image_model(), "tiny") as (_, address):
        assert send(5_000).status_code == 413
        first = send(3_500)
        path = Path(first.json()[0])
        assert path.is_file()
        assert [send(3_500).status_code, send(3_500).status_code] == [200, 413]
        assert requests.post(f"{address}gradio_api/upload", content=iter([b"chunk"])).status_code == 411
    assert not path.exists()
    assert not list(Path(tempfile.gettempdir()).glob(f"{path.parents[1].name}*"))


def test_addresses_of_version_6_are_served(requests: httpx.Client) -> None:
    try:
        check_host("::1")
    except ValueError:
        pytest.skip("needs IPv6")
    with serving(table_model(), "tiny", "::1") as (_, address):
        assert address.startswith("http://[::1]:")
        assert requests.get(f"{address}config").status_code == 200


def test_addresses_of_other_machines_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"^--host 192\.0\.2\.1: expected an address of this machine"):
        check_host("192.0.2.1")


#: Hosts that chromium asks for itself, whatever page it shows.
OF_THE_BROWSER = {
    *("accounts.google.com", "android.clients.google.com", "clients2.google.com", "www.google.com"),
    *("content-autofill.googleapis.com", "optimizationguide-pa.googleapis.com", "update.googleapis.com"),
    "redirector.gvt1.com",
}


class Recorder(socketserver.BaseRequestHandler):
    """A proxy that notes the host of each request and answers none."""

    seen: ClassVar[set[str]] = set()

    def handle(self) -> None:
        """Note the host of the first line."""
        words = self.request.recv(4096).decode("latin-1").split()
        if len(words) > 1:
            self.seen.add(words[1].split("/")[2] if "://" in words[1] else words[1])


@pytest.mark.slow
def test_no_request_leaves_the_machine(
    fitted: tuple[FittedTable, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        with serving(fitted[0], "tiny") as (_, address):
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            options += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
            options += [f"--proxy-server=http://127.0.0.1:{proxy.server_address[1]}"]
            page = subprocess.run([browser, *options, address], capture_output=True, timeout=120, check=False)
        proxy.shutdown()
    assert b"Draw rows" in page.stdout
    assert not {host.removesuffix(":443") for host in Recorder.seen} - OF_THE_BROWSER
    assert names <= {"127.0.0.1", "localhost", "None"}
