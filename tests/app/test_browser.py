"""The page in a real browser: drawn on with a mouse, given pictures, on a phone's screen, in two tabs, and no network.

The page is served by a program of its own, and Chromium is the system's.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from album import scene
from digit_strokes import DIGITS
from PIL import Image

import finetune as toolkit
from finetune.app.server import MAX_UPLOAD

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "mnist.safetensors"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [
    *(f"the Python package {name}" for name in ("gradio", "playwright") if find_spec(name) is None),
    *(["Chromium"] if CHROMIUM is None else []),
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}"),
    pytest.mark.filterwarnings("default"),  # playwright's, on which this project has no influence
]

DROP = """([content, name, type]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  const place = document.querySelector('input[type=file]').closest('button');
  for (const kind of ['dragenter', 'dragover', 'drop'])
    place.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""


@contextlib.contextmanager
def served(*checkpoints: Path) -> Iterator[str]:
    """The address of a page, until the block ends; then the program must end without a word."""
    words = [sys.executable, "-m", "finetune", "app", *map(str, checkpoints), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            yield program.stdout.readline().split()[4]
        finally:
            program.terminate()
            _, errors = program.communicate(timeout=30)
    assert errors == "finetune: stopped by SIGTERM\n"


@pytest.fixture(scope="module")
def digits_page() -> Iterator[str]:
    with served(SHIPPED) as address:
        yield address


@pytest.fixture(scope="module")
def photos_page(backbone: Path) -> Iterator[str]:
    with served(backbone) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    offline = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    with sync_playwright() as play, play.chromium.launch(executable_path=CHROMIUM, args=[*flags, offline]) as browser:
        yield browser


class Watched:
    """A tab, what it wrote to the console as an error, and which other machines it asked."""

    def __init__(self, chromium: Any, address: str, **more: Any) -> None:
        self.tab = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **more}).new_page()
        self.faults: list[str] = []
        self.strangers: list[str] = []
        self.tab.on("console", lambda said: said.type == "error" and self.faults.append(said.text))
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("request", lambda request: self._note(request.url, address))
        self.tab.goto(address)
        self.tab.wait_for_selector(".waiting")

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.strangers.append(url)

    def draw(self, digit: str, touch: bool = False) -> float:
        """Draws on a cleared canvas; returns the seconds from the last stroke's end to the answer."""
        self.tab.click(".clear")
        self.tab.wait_for_selector(".seen", state="detached")
        box = self.tab.query_selector("canvas").bounding_box()
        *first, last = DIGITS[digit]
        for stroke in [*first, last]:
            if stroke is last and first:  # an answer to the first strokes is no answer to all of them
                self.tab.wait_for_selector(".seen")
                self.tab.evaluate("document.querySelector('.seen').classList.add('old')")
            at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
            self.tab.mouse.move(*at[0])
            self.tab.mouse.down()
            for point in at[1:]:
                self.tab.mouse.move(*point, steps=2)
            self.tab.mouse.up()
        since = time.monotonic()
        self.tab.wait_for_selector(".seen:not(.old)", timeout=10_000)
        return time.monotonic() - since

    @property
    def label(self) -> str:
        return str(self.tab.inner_text(".seen strong"))

    def drop(self, content: bytes, name: str, kind: str = "image/png") -> None:
        """Drops a file on the place for pictures."""
        self.tab.evaluate(DROP, [base64.b64encode(content).decode(), name, kind])

    def close(self) -> None:
        """Closes the tab, which had no fault and asked no other machine."""
        self.tab.context.close()
        assert self.faults == [] and self.strangers == []


def test_drawn_digits_are_what_they_are_within_a_second(chromium: Any, digits_page: str) -> None:
    page = Watched(chromium, digits_page)
    seconds, right = [], []
    for digit in DIGITS:
        seconds.append(page.draw(digit))
        right.append(page.label == digit)
    assert sum(right) >= 8 and seconds[0] < 1 and sorted(seconds)[5] < 0.5, (right, seconds)
    shares = [float(text.rstrip("%")) for text in page.tab.locator(".share").all_inner_texts()]
    assert len(shares) == 10 and sum(shares) == pytest.approx(100, abs=0.5) and max(shares) == shares[9]
    page.close()


def test_undo_takes_back_the_last_stroke(chromium: Any, digits_page: str) -> None:
    page = Watched(chromium, digits_page)
    page.draw("4")
    assert page.label == "4"
    before = page.tab.get_attribute(".seen img", "src")
    page.tab.click(".undo")
    page.tab.wait_for_function("(old) => document.querySelector('.seen img').src !== old", arg=before)
    page.tab.click(".undo")
    page.tab.wait_for_selector(".waiting")
    assert page.tab.is_visible(".hint")
    page.close()


def test_a_dropped_picture_is_answered_as_predict_does(
    chromium: Any, photos_page: str, backbone: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "ant.jpg"
    Image.fromarray(np.kron(scene("ant", "a"), np.ones((9, 12, 1), np.uint8))).save(photo, quality=90)
    (expected,) = toolkit.load(backbone).predict([photo])
    page = Watched(chromium, photos_page)
    assert page.tab.query_selector("canvas") is None
    page.drop(photo.read_bytes(), photo.name, "image/jpeg")
    page.tab.wait_for_selector(".seen")
    assert page.label == expected.label
    told = page.tab.locator(".share").all_inner_texts()
    assert told == [f"{share:.1%}" for share in expected.probabilities]
    assert "seen as 32×32 pixels" in page.tab.inner_text(".seen")
    page.close()


def test_a_broken_picture_is_a_message_and_the_next_is_answered(chromium: Any, photos_page: str) -> None:
    page = Watched(chromium, photos_page)
    page.drop(b"no picture at all", "<img src=x>.png")
    page.tab.wait_for_selector(".notice p")
    assert "cannot be read as an image" in page.tab.inner_text(".notice")
    assert page.tab.query_selector(".seen") is None
    page.tab.click("[aria-label='Clear'], [aria-label='Remove Image']")
    page.tab.wait_for_selector(".notice p", state="detached")
    picture = BytesIO()
    Image.fromarray(scene("bee", "b")).save(picture, "PNG")
    page.drop(picture.getvalue(), "bee.png")
    page.tab.wait_for_selector(".seen")
    page.close()


def test_a_file_over_the_limit_is_a_message(chromium: Any, photos_page: str, tmp_path: Path) -> None:
    page = Watched(chromium, photos_page)
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(MAX_UPLOAD + 1)
    page.tab.set_input_files("input[type=file]", str(large))
    page.tab.wait_for_selector("text=/exceeds|too large|maximum/i")
    assert page.tab.query_selector(".seen") is None
    page.close()


def test_a_phone_shows_all_of_its_width(chromium: Any, digits_page: str) -> None:
    page = Watched(chromium, digits_page, viewport={"width": 390, "height": 844}, has_touch=True, device_scale_factor=3)
    page.draw("3")
    assert page.label == "3"
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.tab.query_selector("canvas").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1) and box["width"] > 280
    page.close()


def test_two_tabs_at_once_have_their_own_answers(chromium: Any, digits_page: str) -> None:
    one, two = Watched(chromium, digits_page), Watched(chromium, digits_page)
    for first, second in ("07", "31", "92"):
        one.draw(first)
        two.draw(second)
        assert (one.label, two.label) == (first, second)
    one.close()
    two.close()


def test_two_checkpoints_side_by_side(chromium: Any, pretrained: Path) -> None:
    with served(SHIPPED, pretrained) as address:
        page = Watched(chromium, address)
        page.draw("7")
        assert page.tab.locator(".seen").count() == 2 and page.label == "7"
        names = page.tab.locator(".named h2").all_inner_texts()
        assert names == [str(SHIPPED), str(pretrained)]
        left, right = (page.tab.locator(".card").nth(i).bounding_box() for i in (0, 1))
        assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
        page.close()
