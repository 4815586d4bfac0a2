"""A real browser without a window: Debian's chromium, driven by selenium.

    python -m tests.browser ADDRESS FILE.png      # what it shows
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

SEEN = """
const parts = [];
(function walk(node) {
  if (node.nodeType === Node.TEXT_NODE) { parts.push(node.textContent); return; }
  if (node.nodeType === Node.ELEMENT_NODE) {
    if (['SCRIPT', 'STYLE', 'TEMPLATE'].includes(node.tagName) || !node.checkVisibility()) return;
    if (node.shadowRoot) walk(node.shadowRoot);
    if (node.tagName === 'SLOT') { node.assignedNodes().forEach(walk); return; }
  }
  node.childNodes.forEach(walk);
})(document.body);
return parts.join(' ').replace(/\\s+/g, ' ');
"""


def why_not() -> str | None:
    """Why there is no browser here; None if there is one."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        return f"no {' and no '.join(missing)} here: Debian's packages chromium and chromium-driver"
    return None if find_spec("selenium") else "the package selenium is not installed (the extra 'test' has it)"


needs_browser = pytest.mark.skipif(why_not() is not None, reason=f"needs a browser: {why_not()}")


@contextmanager
def browser(width: int = 1600, height: int = 1100) -> Iterator:
    """A selenium driver with a page of this size, pixels."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", f"--window-size={width},{height}"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def seen(driver) -> str:
    """The text of the page that is not hidden, also that of web components."""
    return driver.execute_script(SEEN)


def until(condition, seconds: float = 120) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.5)


def main(address: str, file: str) -> None:
    """A picture of the page, once its text has stopped to change."""
    with browser(1920, 1250) as driver:
        driver.get(address)
        texts: list[str] = []

        def settled() -> bool:
            texts.append(seen(driver))
            return len(texts) > 10 and len(texts[-1]) > 200 and len(set(texts[-6:])) == 1

        until(settled)
        driver.save_screenshot(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
