"""Retake the pictures of the pages: `python docs/pictures.py [NAME ...]`. It needs chromium and takes minutes."""

from __future__ import annotations

import base64
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits, load_wine

from arcsm import AutoregressiveModel, load
from arcsm.cli.application import run
from arcsm.cli.fitted_tables import FittedTable
from arcsm.cli.web.page import serving

PICTURES = Path(__file__).resolve().parent / "pictures"
EXAMPLES = PICTURES.parent / "examples"
SAMPLES = PICTURES.parent.parent / "results" / "mnist-made" / "cpu-probability-flow.png"
_SECONDS = 60  # for a page to react


class Browser:
    """Chromium without a window, driven by its DevTools protocol."""

    def __init__(self, width: int, height: int) -> None:
        self.size, self.stack, self.calls, self.buffer = (width, height), ExitStack(), 0, b""

    def __enter__(self) -> Self:
        (self.their_input, self.output), (self.input, self.their_output) = os.pipe(), os.pipe()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        options = f"--headless --no-sandbox --hide-scrollbars --remote-debugging-pipe --user-data-dir={folder}"
        command = f"exec chromium {options} 3<&{self.their_input} 4>&{self.their_output} 2>/dev/null"
        self.process = subprocess.Popen(["bash", "-c", command], pass_fds=(self.their_input, self.their_output))
        self.session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        metrics = {"width": self.size[0], "height": self.size[1], "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        self.stack.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": parameters, **self.session}
        os.write(self.output, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                self.buffer += os.read(self.input, 1 << 16)
            text, self.buffer = self.buffer.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == self.calls:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def evaluate(self, script: str) -> Any:
        """Return the value of JavaScript."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until JavaScript is true."""
        deadline = time.monotonic() + _SECONDS
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise TimeoutError(condition)
            time.sleep(0.2)

    def click(self, selector: str) -> None:
        """Click an element."""
        self.evaluate(f"document.querySelector('{selector}').click()")

    def upload(self, selector: str, path: Path) -> None:
        """Choose a file."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def type_into(self, selector: str, text: str) -> None:
        """Double-click an element and replace its text."""
        box = self.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({_box(selector)})")
        for count in (1, 2):
            for kind in ("mousePressed", "mouseReleased"):
                place = {"x": box[0], "y": box[1], "button": "left", "clickCount": count}
                self.call("Input.dispatchMouseEvent", type=kind, **place)
        time.sleep(0.5)
        self.evaluate("document.activeElement.select && document.activeElement.select()")
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def picture(self) -> Image.Image:
        """Return what the window shows."""
        time.sleep(1.0)  # for transitions to end
        return Image.open(io.BytesIO(base64.b64decode(self.call("Page.captureScreenshot")["data"]))).convert("RGB")


def _box(selector: str) -> str:
    return f"document.querySelector('{selector}').getBoundingClientRect()"


def write(picture: Image.Image, name: str) -> None:
    """Write a picture in few colours, which keeps its file small."""
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        PICTURES / f"{name}.png", optimize=True
    )


def served(
    model: AutoregressiveModel | FittedTable, title: str, size: tuple[int, int], use: Callable[[Browser], None]
) -> Image.Image:
    """Return a picture of the page of a model, after it was used."""
    with serving(model, title) as (_, address), Browser(*size) as browser:
        browser.call("Page.navigate", url=address)
        use(browser)
        return browser.picture()


def image_page(folder: Path) -> Image.Image:
    """Evaluate a digit and draw sixteen."""
    assert run(["train", "digits", "--out", str(folder / "digits")]) == 0
    digit = Image.fromarray((load_digits().images[5] * 15.9).astype(np.uint8))
    digit.resize((280, 280), Image.Resampling.NEAREST).save(folder / "digit.png")

    def use(browser: Browser) -> None:
        browser.wait("document.querySelector('#evaluate')")
        browser.wait("document.querySelector('#editor input[type=file]')")
        browser.upload("#editor input[type=file]", folder / "digit.png")
        browser.wait("document.querySelector('#editor canvas')")
        browser.click("#sample")
        browser.wait("document.querySelector('#samples img')")
        while not browser.evaluate("Boolean(document.querySelector('#result img'))"):  # until the digit has arrived
            browser.click("#evaluate")
            time.sleep(3.0)

    return served(load(folder / "digits"), "digits", (1100, 1250), use)


def table_page(folder: Path) -> Image.Image:
    """Evaluate a house that is too cheap."""
    random = np.random.default_rng(0)
    size = np.exp(random.normal(4.6, 0.3, 2_000))
    table = pd.DataFrame({"size": size, "rooms": size / 30.0 + random.normal(0.0, 0.5, 2_000)})
    table["age"] = random.gamma(2.0, 15.0, 2_000)
    table["price"] = 3.0 * size - 0.8 * table["age"] + random.normal(0.0, 20.0, 2_000)
    table.round(2).to_csv(folder / "houses.csv", index=False)
    changes = ["--set", f"data.path={folder / 'houses.csv'}", "--set", "train.steps=1500"]
    assert run(["train", "table", *changes, "--out", str(folder / "houses")]) == 0

    def use(browser: Browser) -> None:
        cell = "#row [data-testid=cell-0-3]"
        browser.wait(f"document.querySelector('{cell}')")
        time.sleep(2.0)  # until it can be edited
        browser.type_into(cell, "120")
        browser.click("#evaluate")
        browser.wait("document.querySelector('#densities img')")

    return served(load(folder / "houses"), "houses", (1100, 800), use)


def fitted_page(folder: Path) -> Image.Image:
    """Show the other columns given the alcohol of a wine."""
    wine = load_wine(as_frame=True)
    table = wine.data.iloc[:, :9].assign(cultivar=np.array(["Barolo", "Grignolino", "Barbera"])[wine.target])
    table.to_csv(folder / "wine.csv", index=False)
    assert run(["fit", str(folder / "wine.csv"), "--out", str(folder / "wine")]) == 0

    def use(browser: Browser) -> None:
        browser.wait("document.querySelectorAll('#pictures img').length == 10")
        time.sleep(2.0)  # until it can be edited
        browser.type_into("#field-0 textarea, #field-0 input", "14.2")
        browser.evaluate("document.activeElement.blur()")
        browser.wait("document.querySelector('#message').innerText.includes('Log density')")
        browser.wait("document.querySelectorAll('#pictures img').length == 10")

    return served(FittedTable.read(folder / "wine"), "wine", (1100, 920), use)


def readme(folder: Path) -> Image.Image:
    """Show the report on altered and foreign wines beside digits drawn by a trained model."""
    wine = load_wine(as_frame=True)
    one = wine.data[wine.target == 1].reset_index(drop=True)
    new = pd.concat([one.tail(11), wine.data[wine.target == 0].head(2)], ignore_index=True)
    new.loc[3, "proline"], new.loc[9, "hue"] = 1500.0, 1.71
    one.head(60).to_csv(folder / "normal.csv", index=False)
    new.to_csv(folder / "new.csv", index=False)
    report, tables = folder / "report.html", [str(folder / name) for name in ("normal.csv", "new.csv")]
    assert run(["detect", *tables, "--out", str(folder / "scores.csv"), "--report", str(report)]) == 0
    with Browser(920, 976) as browser:
        browser.call("Page.navigate", url=report.as_uri())
        browser.wait("document.querySelector('.panels img')")
        left = browser.picture()
    both = Image.new("RGB", (1474, 780), "#f4f5f7")
    both.paste(left.resize((735, 780), Image.Resampling.LANCZOS), (0, 0))
    both.paste(Image.open(SAMPLES).convert("RGB").resize((720, 720)), (744, 30))
    return both


def example(path: Path, folder: Path) -> Image.Image:
    """Run an example and return its figure."""
    plt.switch_backend("agg")
    runpy.run_path(str(path))
    plt.savefig(folder / "figure.png", dpi=100)
    plt.close("all")
    return Image.open(folder / "figure.png").convert("RGB")


if __name__ == "__main__":
    pages = {
        "serve-images": image_page, "serve-table": table_page, "serve-fitted": fitted_page, "readme": readme,
        **{path.stem: partial(example, path) for path in sorted(EXAMPLES.glob("*.py"))},
    }  # fmt: skip
    for name in sys.argv[1:] or pages:
        take = pages[name]
        with tempfile.TemporaryDirectory() as temporary:
            write(take(Path(temporary)), name)
