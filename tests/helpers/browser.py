"""A real browser for tests of pages: Debian's chromium, if it is installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """Start the browser with a new profile. Without one, skip the test, or fail if FASTDPS_TEST_BROWSER is set."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        why = "chromium is not installed: apt-get install chromium chromium-driver"
        pytest.fail(why) if os.environ.get("FASTDPS_TEST_BROWSER") else pytest.skip(why)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options, Service(driver))
    try:
        yield session
    finally:
        session.quit()


def resize(session: webdriver.Chrome, width: int, height: int = 900, *, phone: bool = False) -> None:
    """Set the size of the page in CSS pixels. It may be narrower than a window of chromium can be."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    session.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def prefer(session: webdriver.Chrome, scheme: str) -> None:
    """Emulate a preference for "dark" or "light" pages."""
    session.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
