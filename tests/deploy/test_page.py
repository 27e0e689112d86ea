"""examples/browser, built and opened in headless Chromium: the network there gives what it gives in eager mode, at any size.

Needs the programs ``chromium`` and ``chromedriver`` (Debian: chromium, chromium-driver); runs in ``make deploy``.
"""

from __future__ import annotations

import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

import ccrewrite
from ccrewrite.demo.canvases import canvases

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.browser


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The module that builds the page, and what it built."""
    sys.path.insert(0, str(ROOT / "examples" / "browser"))
    try:
        import build
    finally:
        sys.path.pop(0)
    directory = tmp_path_factory.mktemp("page") / "page"
    build.build(directory)
    return build, directory


@pytest.fixture(scope="module")
def page(example: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Generator[Any]:
    """Chromium with the page open and its first image shown."""
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    handler = functools.partial(Quiet, directory=str(example[1]))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1200,1000"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=shutil.which("chromedriver")))
    driver.set_script_timeout(60)
    driver.get(f"http://127.0.0.1:{server.server_port}/")
    driver.settled = lambda: WebDriverWait(driver, 60).until(lambda d: state(d) in ("ready", "failed")) and state(driver)
    try:
        assert driver.settled() == "ready", driver.find_element("id", "error").text
        yield driver
        assert driver.get_log("browser") == []
    finally:
        driver.quit()
        server.shutdown()
        server.server_close()


def state(driver: Any) -> str:
    return driver.execute_script("return document.body.dataset.state")


def slide(page: Any, index: int, value: int) -> None:
    move(page, f"size-{index}", value)
    assert page.settled() == "ready"


def move(page: Any, name: str, value: int) -> None:
    code = "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input'))"
    page.execute_script(code, name, value)


def scores(page: Any, first: int, count: int, sizes: list[int]) -> torch.Tensor:
    """What the page's own network gives, as the page runs it."""
    run = """
        const [first, count, sizes, done] = arguments;
        import("./page.js").then((page) => page.scores(first, count, sizes))
            .then(({ data }) => done([...data]), (error) => done(String(error)));
    """
    numbers = page.execute_async_script(run, first, count, sizes)
    assert isinstance(numbers, list), numbers
    return torch.tensor(numbers).view(count, 11, 64, 64)


@pytest.mark.parametrize("size", [0, 1, 5, 20, 27, 32, 45, 96])
def test_the_scores_are_those_of_eager_mode(page: Any, example: tuple[Any, Path], size: int) -> None:
    build, _ = example
    images, _ = canvases(build.COUNT, build.SEED, "test")
    model = build.network(images)
    with torch.no_grad(), ccrewrite.resized(model, {"down1.0": (size or 32) / 32}, images[3:5]):
        expected = model(images[3:5])
    found = scores(page, 3, 2, [size, 0])
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def text(page: Any, name: str) -> str:
    return page.find_element("id", name).text


def test_sliders_change_the_result_and_the_button_undoes_it(page: Any) -> None:
    page.find_element("id", "native").click()
    assert page.settled() == "ready"
    assert text(page, "same") == "100.0 %"
    assert text(page, "sliders").count("as the network makes it") == 2
    before = text(page, "overlap")
    slide(page, 0, 12)
    assert "12 × 12" in text(page, "sliders")  # noqa: RUF001
    assert text(page, "same") != "100.0 %"
    assert text(page, "overlap") != before
    slide(page, 1, 9)
    assert "9 × 9" in text(page, "sliders")  # noqa: RUF001
    page.find_element("id", "native").click()
    assert page.settled() == "ready"
    assert (text(page, "same"), text(page, "overlap")) == ("100.0 %", before)
    assert text(page, "time").endswith(" ms")


def test_all_sizes_are_tried_and_shown(page: Any) -> None:
    page.find_element("id", "sweep").click()
    assert page.settled() == "ready"
    assert page.execute_script("return document.querySelectorAll('#chart-overlap circle').length") == 13
    assert page.execute_script("return document.querySelectorAll('#chart-time circle').length") == 13
    assert "NaN" not in page.find_element("id", "charts").get_attribute("innerHTML")


def test_other_images(page: Any) -> None:
    def pixels(name: str) -> str:
        return page.execute_script("return document.getElementById(arguments[0]).toDataURL()", name)

    before = [pixels(name) for name in ("image", "found", "truth")]
    move(page, "which", 5)
    assert page.settled() == "ready"
    assert text(page, "which-now") == "6 of 12"
    assert all(pixels(name) != old for name, old in zip(("image", "found", "truth"), before, strict=True))


def test_it_fits_a_phone_and_asks_no_other_server(page: Any) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    asked = page.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert len(asked) >= 6
    assert all(address.startswith("http://127.0.0.1:") for address in asked)
    assert page.execute_script("return [...document.querySelectorAll('input')].every((i) => i.labels.length === 1)")
