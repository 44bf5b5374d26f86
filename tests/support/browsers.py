"""Chromium as Debian ships it, driven by Playwright, in the sizes and colour schemes that people have.

Turns a size and a scheme into a page that fails the test on any error of its console. Tests that use it carry the marker
`browser`, and are left out where there is no Chromium.
"""

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
SCHEMES = ("light", "dark")
REFUSED = (
    "the server responded with a status of",
    "Response Status Error Code",
)  # Chromium's and htmx's notes of a refusal


def program() -> str | None:
    """The path of Chromium; None if it is not installed."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


def installed() -> bool:
    """Whether the tests can drive a browser here."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return False
    return program() is not None


@contextlib.contextmanager
def browser() -> "Iterator[Browser]":
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        try:
            yield launched
        finally:
            launched.close()


@contextlib.contextmanager
def page(browser: "Browser", size: str = "desktop", scheme: str = "light") -> "Iterator[Page]":
    """A fresh page; errors of its scripts and of its content security policy fail the test at the end."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light"
    )
    context.set_default_timeout(180_000)  # beside other loads
    opened, errors = context.new_page(), list[str]()
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    try:
        yield opened
    finally:
        context.close()
    assert not [error for error in errors if not any(note in error for note in REFUSED)], errors
