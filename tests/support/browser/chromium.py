"""Headless Chromium, driven by Playwright: Debian's browser, which can reach nothing but this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.peers.programs import missing

OUTPUT = Path(__file__).parents[3] / "test-output"  # kept by continuous integration, ignored by git
LIMIT_MS = 60_000
OPTIONS = [
    "--no-sandbox",  # containers and root have no user namespaces for it; it loads pages of our own only
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """A browser; each `new_page` of it is a profile of its own."""
    executable = shutil.which("chromium") or missing("Chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, and what went wrong in it or left this machine."""

    def __init__(self, browser: Browser, width: int = 1280, height: int = 900) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(LIMIT_MS)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def strangers(self) -> list[str]:
        """The requests to anything but this machine."""
        own = ("127.0.0.1", None)
        return [url for url in self.requests if urlsplit(url).hostname not in own and urlsplit(url).scheme != "data"]

    def keep(self, name: str, whole: bool = False) -> Path:
        """A screenshot in `test-output/`; of the `whole` page, or of what a person sees without scrolling."""
        OUTPUT.mkdir(exist_ok=True)
        path = OUTPUT / f"{name}.png"
        self.page.screenshot(path=path, full_page=whole)
        return path
