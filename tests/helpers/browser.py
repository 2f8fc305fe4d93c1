"""A real browser for tests of pages: Debian's chromium, if it is installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver

from tools.chromium import browser


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """Start the browser with a new profile. Without one, skip the test, or fail if FASTDPS_TEST_BROWSER is set."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        why = "chromium is not installed: apt-get install chromium chromium-driver"
        pytest.fail(why) if os.environ.get("FASTDPS_TEST_BROWSER") else pytest.skip(why)
    with browser(profile, logs=True) as session:
        yield session


def resize(session: webdriver.Chrome, width: int, height: int = 900, *, phone: bool = False) -> None:
    """Set the size of the page in CSS pixels. It may be narrower than a window of chromium can be."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    session.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def prefer(session: webdriver.Chrome, scheme: str) -> None:
    """Emulate a preference for "dark" or "light" pages."""
    session.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
