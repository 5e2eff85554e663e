"""A real browser for the tests of pages: Debian's Chromium without a window, WebGL in software."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def open_browser(width: int, profile: Path, downloads: Path | None = None) -> Any:
    """Headless Chromium that reaches nothing but this computer; the test is skipped where there is none.

    Args:
        width: of the window, CSS pixels.
        profile: an empty folder.
        downloads: folder for what is downloaded.
    """
    binary, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    flags = "headless no-sandbox disable-gpu enable-unsafe-swiftshader disable-quic no-first-run disable-sync"
    flags += f" disable-background-networking disable-component-update user-data-dir={profile}"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    size = {"width": width, "height": 900, "pixelRatio": 1.0}
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": size})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    # a script waits while the page compiles its shaders, in software, which takes minutes where much else runs
    browser.command_executor.client_config.timeout = 600
    browser.set_script_timeout(600)
    if downloads is not None:
        allow = {"behavior": "allow", "downloadPath": str(downloads)}
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", allow)
    return browser


def picture_of(browser: Any, selector: str) -> str:
    """An element as PNG, base64.

    It is not WebDriver's own element screenshot, which waits for a frame that a page at rest does not draw.
    """
    script = """const r = document.querySelector(arguments[0]).getBoundingClientRect();
        return {x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height, scale: 1};"""
    shot = {"clip": browser.execute_script(script, selector), "captureBeyondViewport": True}
    return browser.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]  # type: ignore[no-any-return]


def pixels_of(screenshot: str) -> np.ndarray:
    """(rows, columns, 3) of a PNG in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(screenshot))).convert("RGB")).astype(int)
