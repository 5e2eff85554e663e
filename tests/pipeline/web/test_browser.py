"""The page in a real browser: what is dropped, overruled, refused, cancelled, looked at and taken away."""

from __future__ import annotations

import base64
import io
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from tests.browsers import open_browser, picture_of, pixels_of
from tests.pipeline.web.conftest import Server

pytestmark = pytest.mark.slow

DROP = """
const transfer = new DataTransfer();
for (const [name, content] of arguments[0])
  transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
const event = (kind) => new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true});
for (const kind of ["dragenter", "dragover", "drop"]) document.getElementById("drop").dispatchEvent(event(kind));
"""
LABELS = """
return [...document.querySelectorAll('button, input, select, a[href], canvas')].filter((e) => e.checkVisibility()
  && !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim() || e.title)).map((e) => e.outerHTML);
"""


class Page:
    """The page, open in a browser."""

    def __init__(self, browser: Any, server: Server) -> None:
        self.browser = browser
        browser.get(server.address)
        self.until("return document.body.dataset.page === 'ready'")

    def until(self, script: str, seconds: float = 120) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, seconds).until(lambda browser: browser.execute_script(script))

    def state(self, *states: str) -> str:
        """Wait for one of these states."""
        return str(self.until(f"return {list(states)}.find((state) => state === document.body.dataset.state)"))

    def drop(self, *paths: Path) -> None:
        files = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths]
        self.browser.execute_script(DROP, files)

    def click(self, selector: str) -> None:
        self.browser.execute_script("document.querySelector(arguments[0]).click()", selector)

    def text(self, selector: str) -> str:
        return str(self.browser.execute_script("return document.querySelector(arguments[0]).textContent", selector))

    def choose(self, key: str, index: int) -> None:
        script = "const s = document.querySelector(`[data-key='${arguments[0]}']`); s.selectedIndex = arguments[1]; "
        self.browser.execute_script(script + "s.dispatchEvent(new Event('change'));", key, index)

    def slide(self, axis: str, value: float) -> None:
        script = "const s = document.getElementById(`slide-${arguments[0]}`); s.value = arguments[1]; "
        self.browser.execute_script(script + "s.dispatchEvent(new Event('input'));", axis, value)
        time.sleep(0.5)  # until the next frame is on the screen; software rendering is slow


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "downloads").mkdir()
    browser = open_browser(1280, folder / "profile", folder / "downloads")
    try:
        yield Page(browser, server)
    finally:
        browser.quit()


def test_from_a_drop_to_the_volume_and_away(page: Page, film: Callable[..., Path], tmp_path_factory):
    page.drop(film("side_lat.png", 1, lambda picture: picture.flip(1)), film("front_pa.png", 0))
    assert page.state("ready", "refused") == "ready"
    titles = page.browser.execute_script("return [...document.querySelectorAll('.film h3')].map((e) => e.textContent)")
    assert titles == ["Frontal (PA)by its name", "Lateralby its name"]
    lateral = "[data-view='1']"
    assert "Faced right: mirrored" in page.text(lateral)

    # one click overrules
    image = f"{lateral} .frame img"
    mirrored = pixels_of(picture_of(page.browser, image))
    page.choose("turn-1", 1)  # leave as stored
    page.until("return document.body.textContent.includes('Upright as it is stored, as stated')")
    page.until(f'return document.querySelector("{image}").complete')
    time.sleep(0.5)
    stored = pixels_of(picture_of(page.browser, image))
    inside = slice(stored.shape[1] // 4, 3 * stored.shape[1] // 4)  # without the inset
    likeness = [
        np.corrcoef(stored[inside, inside].ravel(), other[inside, inside].ravel())[0, 1]
        for other in (mirrored, mirrored[:, ::-1])
    ]
    assert likeness[1] > max(likeness[0], 0.8)
    focused = page.browser.execute_script("return document.activeElement.dataset.key ?? document.activeElement.tagName")
    assert focused in ("turn-1", "BODY")
    page.choose("turn-1", 0)
    page.until("return document.body.textContent.includes('Faced right: mirrored')")
    assert page.browser.execute_script(LABELS) == [], "everything has a name"

    page.click("#reconstruct")
    assert page.state("done", "failed") == "done", page.text("#progress-text")
    assert page.until("return ['ready', 'failed'].find((s) => s === document.body.dataset.viewer)") == "ready"
    assert "differ" in page.text("#verdict") and "HU" in page.text("#doubt-value")
    time.sleep(1)
    before = picture_of(page.browser, "#canvas-prediction")
    time.sleep(0.5)
    assert picture_of(page.browser, "#canvas-prediction") == before, "it changes only when it is told to"
    for axis in "zyx":
        page.slide(axis, 0.75)
        after = picture_of(page.browser, "#canvas-prediction")
        assert np.abs(pixels_of(after) - pixels_of(before)).mean() > 1, axis
        assert page.text(f"#value-{axis}") == "90 mm"
        before = after
    page.click("[data-window='-450,1050']")
    time.sleep(0.5)
    assert picture_of(page.browser, "#canvas-prediction") != before

    # what is taken away is the volume
    folder = next(tmp_path_factory.getbasetemp().glob("browser*")) / "downloads"
    for name in ("nifti", "dicom"):
        page.click(f"[data-download='{name}']")
    wanted = {"patient_ct.nii.gz", "patient_ct_dicom.zip"}
    end = time.monotonic() + 60
    while {path.name for path in folder.iterdir()} != wanted and time.monotonic() < end:
        time.sleep(0.2)
    image_file: Any = nib.load(folder / "patient_ct.nii.gz")
    values = np.asarray(nib.as_closest_canonical(image_file).dataobj)
    with zipfile.ZipFile(folder / "patient_ct_dicom.zip") as archive:
        slices = [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    stack = np.stack([one.pixel_array.T for one in slices], axis=2)
    np.testing.assert_array_equal(stack[::-1, ::-1], values)

    # nothing came from elsewhere, and nothing was against the page's own policy
    addresses = page.browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert not [a for a in addresses if not a.startswith((page.browser.current_url.split("#")[0], "data:", "blob:"))]
    assert not [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_refused_file_and_what_can_be_done(page: Page, film: Callable[..., Path], tmp_path: Path):
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    page.drop(text, film("front_pa.png", 0))
    assert page.state("refused") == "refused"
    page.until("return document.querySelector('.film.wrong') !== null")
    assert "notes.png is not a PNG" in page.text(".film.wrong .refusal")
    assert page.browser.execute_script("return document.getElementById('reconstruct').disabled")
    page.drop(film("side_lat.png", 1))  # begins anew, since what was there was refused
    page.until("return document.body.dataset.state === 'incomplete'")
    page.drop(film("front_pa.png", 0))
    assert page.state("ready") == "ready"
    assert page.browser.execute_script("return document.querySelectorAll('#history li').length") >= 3


def test_cancelling_ends_it_and_a_reload_loses_nothing(page: Page, film: Callable[..., Path]):
    page.drop(film("one_pa.png", 0), film("two_lat.png", 1, lambda picture: picture * 0.9))
    page.until("return document.querySelector('.film .file')?.textContent.startsWith('one_pa.png')")
    assert page.state("ready") == "ready"
    page.click("#reconstruct")
    page.state("waiting", "running")
    page.click("#cancel")
    assert page.state("cancelled", "done") == "cancelled"
    assert "Nothing was kept" in page.text("#progress-text")
    page.click("#reconstruct")
    page.state("running", "done")
    page.browser.refresh()  # as if it had been closed
    page.until("return document.body.dataset.page === 'ready'")
    assert page.state("done") == "done"


@pytest.mark.parametrize("width", [390, 768, 1920])
def test_nothing_sticks_out_to_the_side(page: Page, width: int):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    time.sleep(0.3)
    assert page.browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
