"""A real headless browser for tests of pages: Chromium by selenium.

The fixture ``browser`` of ``tests/conftest.py`` starts one for all tests, and skips those that need it where selenium,
Chromium or its driver is not there. It finds no name but this machine's own: a page that asks the network for something
has an error in its console.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Browser:
    """One tab. ``driver`` is selenium's, for what has no method here."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: str | Path) -> None:
        """Load an address or a file, with an empty console and none of :meth:`look`'s settings."""
        self.driver.get("about:blank")
        self.look()
        self.console()
        self.driver.get(page.absolute().as_uri() if isinstance(page, Path) else page)

    def look(self, width: int = 1280, height: int = 900, *, dark: bool = False, media: str = "screen") -> None:
        """Set the size of the screen in CSS pixels (below 600 a phone's), its colours, ``screen`` or ``print``."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def console(self) -> list[str]:
        """Take what the console has said since it was last asked, errors and warnings."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript with ``arguments[0]`` ..., and give what it returns."""
        return self.driver.execute_script(script, *arguments)

    def width_beyond(self) -> int:
        """How many pixels the page is wider than the screen: 0 where nobody has to scroll sideways."""
        return int(self.run("const e = document.documentElement; return e.scrollWidth - e.clientWidth;"))

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a PNG of the ``whole`` page, or of what the screen shows."""
        shot = self._command("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """Print the page to a file."""
        self._command("Emulation.setEmulatedMedia", media="")  # what printing chooses
        path.write_bytes(base64.b64decode(self._command("Page.printToPDF", printBackground=False)["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self._command("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _command(self, name: str, **parameters: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.driver.execute_cdp_cmd(name, parameters)
        return answer


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a browser; skips the test where that can't be."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    from selenium.webdriver.chrome.service import Service

    program = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver_program = shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--no-sandbox",  # root may not have one, and tests in containers are root
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    try:
        driver.set_page_load_timeout(30)
        yield Browser(driver)
    finally:
        driver.quit()
