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
for (const [name, content] of arguments[1])
  transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
const event = (kind) => new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true});
for (const kind of ["dragenter", "dragover", "drop"]) document.querySelector(arguments[0]).dispatchEvent(event(kind));
"""
UNNAMED = """
return [...document.querySelectorAll('button, input, select, a[href], canvas')].filter((e) => e.checkVisibility()
  && !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim() || e.title)).map((e) => e.outerHTML);
"""
CANVAS = "#canvas-prediction"


class Page:
    """The page, open in a browser."""

    def __init__(self, browser: Any, server: Server, downloads: Path) -> None:
        self.browser = browser
        self.downloads = downloads
        browser.get(server.address)
        self.until("return document.body.dataset.page === 'ready'")

    def until(self, script: str, *arguments: Any, seconds: float = 300) -> Any:
        """What a script returns, once that is anything."""
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.browser, seconds, poll_frequency=0.1)
        return wait.until(lambda browser: browser.execute_script(script, *arguments), script)

    def state(self, *states: str) -> str:
        """Wait for one of these states."""
        return str(self.until(f"return {list(states)}.find((state) => state === document.body.dataset.state)"))

    def drop(self, *paths: Path, onto: str = "#drop") -> None:
        """Files from the desktop."""
        files = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths]
        self.browser.execute_script(DROP, onto, files)

    def click(self, selector: str) -> None:
        self.browser.execute_script("document.querySelector(arguments[0]).click()", selector)

    def text(self, selector: str) -> str:
        return str(self.browser.execute_script("return document.querySelector(arguments[0]).textContent", selector))

    def choose(self, key: str, index: int) -> None:
        """Of a list beside a film."""
        script = "const s = document.querySelector(`[data-key='${arguments[0]}']`); s.selectedIndex = arguments[1]; "
        self.browser.execute_script(script + "s.dispatchEvent(new Event('change'));", key, index)

    def slide(self, name: str, value: float) -> None:
        script = "const s = document.getElementById(arguments[0]); s.value = arguments[1]; "
        self.browser.execute_script(script + "s.dispatchEvent(new Event('input'));", name, value)

    def press(self, key: str, times: int = 1) -> None:
        """On the keyboard."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.browser).send_keys(getattr(Keys, key, key) * times).perform()

    def tab_to(self, selector: str) -> None:
        """Go forward by the Tab key alone, where the focus can be seen at every step."""
        for _ in range(60):
            self.press("TAB")
            if self.browser.execute_script("return document.activeElement.matches(arguments[0])", selector):
                assert self.browser.execute_script("return document.activeElement.matches(':focus-visible')")
                return
        raise AssertionError(f"the keyboard does not reach {selector}")

    def viewer_is_ready(self) -> None:
        found = self.until("return ['ready', 'failed'].find((s) => s === document.body.dataset.viewer)")
        assert found == "ready", self.text("#viewer-status")

    def canvas_after(self, before: str, what: str) -> str:
        """The viewer's picture, once it is another; software rendering is slow."""
        end = time.monotonic() + 30
        while (after := picture_of(self.browser, CANVAS)) == before:
            assert time.monotonic() < end, f"nothing changed: {what}"
            time.sleep(0.1)
        return after

    def download(self, kind: str, name: str) -> Path:
        """What a button saves."""
        self.click(f"[data-download='{kind}']")
        path, end = self.downloads / name, time.monotonic() + 120
        while not path.exists():
            assert time.monotonic() < end, [*self.downloads.iterdir()]
            time.sleep(0.1)
        return path


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "downloads").mkdir()
    browser = open_browser(1280, folder / "profile", folder / "downloads")
    try:
        yield Page(browser, server, folder / "downloads")
    finally:
        browser.quit()


def test_from_a_drop_to_the_volume_and_away(page: Page, film: Callable[..., Path]):
    page.drop(film("side_lat.png", 1, lambda picture: picture.flip(1)), film("front_pa.png", 0))
    assert page.state("ready", "refused") == "ready"
    titles = page.browser.execute_script("return [...document.querySelectorAll('.film h3')].map((e) => e.textContent)")
    assert titles == ["Frontal (PA)by its name", "Lateralby its name"]
    lateral = "[data-view='1']"
    assert "Faced right: mirrored" in page.text(lateral)

    # one click overrules
    image = f"{lateral} .frame img"
    address = page.browser.execute_script("return document.querySelector(arguments[0]).src", image)
    mirrored = pixels_of(picture_of(page.browser, image))
    page.choose("turn-1", 1)  # leave as stored
    page.until("return document.body.textContent.includes('Upright as it is stored, as stated')")
    page.until(
        "const e = document.querySelector(arguments[0]); return e.src !== arguments[1] && e.complete", image, address
    )
    stored = pixels_of(picture_of(page.browser, image))
    inside = slice(stored.shape[1] // 4, 3 * stored.shape[1] // 4)  # without the inset
    likeness = [
        np.corrcoef(stored[inside, inside].ravel(), other[inside, inside].ravel())[0, 1]
        for other in (mirrored, mirrored[:, ::-1])
    ]
    assert likeness[1] > max(likeness[0], 0.8)
    page.choose("turn-1", 0)
    page.until("return document.body.textContent.includes('Faced right: mirrored')")
    assert page.browser.execute_script(UNNAMED) == [], "everything has a name"

    page.click("#reconstruct")
    assert page.state("done", "failed") == "done", page.text("#progress-text")
    page.viewer_is_ready()
    assert "differ" in page.text("#verdict") and "not calibrated" in page.text("#verdict")
    assert "±" in page.text("#doubt-value") and "HU" in page.text("#doubt-value")
    time.sleep(0.5)
    before = picture_of(page.browser, CANVAS)
    time.sleep(0.5)
    assert picture_of(page.browser, CANVAS) == before, "it changes only when it is told to"
    for axis in "zyx":
        page.slide(f"slide-{axis}", 0.75)
        after = page.canvas_after(before, axis)
        assert np.abs(pixels_of(after) - pixels_of(before)).mean() > 1, axis
        assert page.text(f"#value-{axis}") == "90 mm"
        before = after
    page.click("[data-window='-450,1050']")
    grey = page.canvas_after(before, "another window")
    assert np.ptp(pixels_of(grey), axis=2).mean() < 4, "grey, but for the cross-hair"
    page.slide("doubt-opacity", 1)
    doubt = page.canvas_after(grey, "the doubt over the picture")
    assert np.ptp(pixels_of(doubt), axis=2).mean() > 10, "colours"

    # what is taken away is the volume
    volume: Any = nib.load(page.download("nifti", "patient_ct.nii.gz"))
    values = np.asarray(nib.as_closest_canonical(volume).dataobj)
    bounds: Any = nib.load(page.download("interval", "patient_ct_interval.nii.gz"))
    assert bounds.shape == (*volume.shape, 2)
    with zipfile.ZipFile(page.download("dicom", "patient_ct_dicom.zip")) as archive:
        slices = [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    stack = np.stack([one.pixel_array.T for one in slices], axis=2)
    np.testing.assert_array_equal(stack[::-1, ::-1], values)

    # nothing came from elsewhere, and nothing was against the page's own policy
    addresses = page.browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert not [a for a in addresses if not a.startswith((page.browser.current_url.split("#")[0], "data:", "blob:"))]
    assert not [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_refused_file_and_what_can_be_done(page: Page, film: Callable[..., Path], tmp_path: Path):
    text = tmp_path / f"{'notes_of_somebody_' * 4}.png"  # a long word of a name
    text.write_text("no picture")
    page.drop(text, film("front_pa.png", 0), onto=CANVAS)  # the viewer does not take it for a volume
    page.until("return document.querySelector('.film.wrong') !== null")
    assert page.state("refused") == "refused"
    assert f"{text.name} is no PNG" in page.text(".film.wrong .refusal")
    assert page.browser.execute_script("return document.getElementById('reconstruct').disabled")
    assert page.browser.execute_script("return document.getElementById('reset')") is None, "nothing was overruled"
    page.drop(film("side_lat.png", 1))  # begins anew, since what was there was refused
    page.until("return document.body.dataset.state === 'incomplete'")
    page.drop(film("front_pa.png", 0))
    assert page.state("ready") == "ready"
    assert page.browser.execute_script("return document.querySelectorAll('#history li').length") >= 2


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


def test_the_sample_through_a_shipped_network_by_keyboard_alone(page: Page):
    page.browser.get(page.browser.current_url.split("#")[0])
    page.until("return document.body.dataset.page === 'ready'")
    page.tab_to("#sample")
    page.press("ENTER")
    assert page.state("ready", "refused") == "ready"
    assert "not trained on" in page.text("#films-status")
    page.tab_to("[data-key='turn-1']")
    page.press("ARROW_DOWN")
    page.until("return document.querySelector('#reset') !== null")
    page.until("return document.activeElement.dataset.key === 'turn-1'")  # the focus is where it was
    page.tab_to("#reset")
    page.press("ENTER")
    page.until("return document.querySelector('#reset') === null && document.body.dataset.state === 'ready'")
    page.tab_to("#network")
    page.press("cascade64")
    page.until("return document.getElementById('network-facts').textContent.startsWith('64³')")
    assert page.state("ready", "refused") == "ready"
    page.tab_to("#reconstruct")
    page.press("ENTER")
    page.until("return document.activeElement.id === 'cancel' || document.body.dataset.state === 'done'")
    assert page.state("done", "failed") == "done", page.text("#progress-text")
    page.viewer_is_ready()
    page.until("return document.activeElement.id === 'result'")  # it goes on at what is new
    assert page.text("#verdict b") == "The volume fits its X-rays"
    assert page.browser.execute_script("return document.getElementById('doubt').checkVisibility()"), "it has bounds"
    before = picture_of(page.browser, CANVAS)
    page.tab_to(CANVAS)
    page.press("ARROW_LEFT", 3)
    after = page.canvas_after(before, "the rendering is turned")
    page.tab_to("#slide-z")
    page.press("ARROW_RIGHT", 20)
    page.canvas_after(after, "another slice")
    assert page.text("#value-z") != "0 mm"
    page.tab_to("[data-download='nrrd']")
    page.press("ENTER")
    page.until("return document.getElementById('download-status').textContent === ''")
    page.tab_to("#history .open")


@pytest.mark.parametrize("width", [390, 768, 1920])
def test_nothing_sticks_out_to_the_side(page: Page, width: int):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    cases = page.browser.execute_script("return document.querySelectorAll('#history .open').length")
    for number in range(cases):
        page.browser.execute_script("document.querySelectorAll('#history .open')[arguments[0]].click()", number)
        time.sleep(0.2)
        assert page.browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
