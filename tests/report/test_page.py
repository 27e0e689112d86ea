"""The page in a real browser: headless Chromium, driven by selenium. Its own lane: ``pytest -m browser tests/report``.

Needs the programs ``chromium`` and ``chromedriver`` (Debian: chromium, chromium-driver).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from compared_net import Compared

from ccrewrite.report import Comparison

pytestmark = pytest.mark.browser
REPORTS = Path(__file__).parents[2] / "reports"
FOLDERS = sorted(p.parent for p in REPORTS.rglob("report.json"))


class Browser:
    """One Chromium with a fresh profile; ``open`` checks that the page makes no request and logs nothing."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver  # pyright: ignore[reportMissingImports]

        options = webdriver.ChromeOptions()
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
        for flag in (*flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.binary_location = _program("chromium")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=_program("chromedriver"))
        self.driver: Any = webdriver.Chrome(options=options, service=service)
        self.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})

    def open(self, page: Path, width: int = 1200, *, dark: bool = False) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        self.driver.get_log("performance")
        self.driver.get(page.as_uri())

    def requests(self) -> list[str]:
        """Addresses asked for since ``open``, without the page itself and data: addresses."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [u for u in asked if not u.startswith(("data:", "file:"))] + [u for u in asked if u.startswith("file:")][1:]

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def busy(self) -> float:
        """Seconds that the thread of the open page has worked, however long it had to wait for a processor."""
        found = self.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return next(m["value"] for m in found if m["name"] == "TaskDuration")

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def column(self, number: int) -> list[str]:
        rows = "document.querySelectorAll('.sites:not([hidden]) tbody tr')"
        return self.js(f"return [...{rows}].map(r => r.cells[arguments[0]].textContent)", number)

    def hover(self, selector: str, index: int = 0) -> str:
        """Put the pointer on an element; what the tip says."""
        from selenium.webdriver.common.action_chains import ActionChains  # pyright: ignore[reportMissingImports]
        from selenium.webdriver.common.by import By  # pyright: ignore[reportMissingImports]

        element = self.driver.find_elements(By.CSS_SELECTOR, selector)[index]
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.driver).move_to_element(element).perform()
        figure = self.js("return arguments[0].closest('figure')", element)
        return self.js("return arguments[0].querySelector('[aria-label=tip]').textContent", figure)


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found, f"the browser lane needs {name} on the path"
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Generator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


@pytest.fixture(scope="module")
def saved(compared: Compared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compared.comparison.save(tmp_path_factory.mktemp("report"))[2]


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False), (390, True)])
def test_it_opens_without_requests_or_complaints(browser: Browser, saved: Path, width: int, dark: bool) -> None:
    browser.open(saved, width, dark=dark)
    assert browser.requests() == []
    assert browser.complaints() == []
    assert browser.js("return document.querySelectorAll('#latency svg rect').length") >= 6
    assert browser.js("return document.documentElement.scrollWidth") <= width, "nothing is wider than the screen"
    background = browser.js("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")


def test_sorting_by_mouse_and_keyboard(browser: Browser, saved: Path) -> None:
    from selenium.webdriver.common.by import By  # pyright: ignore[reportMissingImports]
    from selenium.webdriver.common.keys import Keys  # pyright: ignore[reportMissingImports]

    browser.open(saved)
    run = browser.column(0)
    heads = browser.driver.find_elements(By.CSS_SELECTOR, ".sites:not([hidden]) thead button")
    names = [h.text for h in heads]
    added = names.index("added")
    heads[added].click()
    numbers = [int(t.replace(",", "")) for t in browser.column(added)]
    assert numbers == sorted(numbers)
    heads[added].send_keys(Keys.ENTER)
    numbers = [int(t.replace(",", "")) for t in browser.column(added)]
    assert numbers == sorted(numbers, reverse=True)
    state = "return [...document.querySelectorAll('.sites:not([hidden]) th[aria-sort]')].map(h => h.getAttribute('aria-sort'))"
    assert [s for s in browser.js(state) if s != "none"] == ["descending"]
    heads[0].send_keys(Keys.SPACE)
    assert browser.column(0) == sorted(run)
    change = names.index("MFLOP change")
    heads[change].click()
    percents = [float(t.removesuffix(" %")) for t in browser.column(change)]
    assert percents == sorted(percents)
    assert browser.complaints() == []


def test_hover_shows_the_numbers(browser: Browser, saved: Path, compared: Compared) -> None:
    browser.open(saved)
    timing = compared.comparison["original"]["latency"]["inference"]
    tip = browser.hover("#latency rect")
    assert "original: inference" in tip
    assert f"{timing['rounds']} rounds" in tip
    choose(browser, "dilated", "trained")
    learnt = next(s for s in compared.comparison.data["sites"] if s["name"] == "dilated")["variants"]["trained"]["learnt"]
    place = learnt["positions"]["now"][4]
    tip = browser.hover("#charts figure:first-child [aria-label=dot] circle", 4)
    assert "tap 4, set 0" in tip
    assert f"at ({float(f'{place[0]:.3g}'):g}, {float(f'{place[1]:.3g}'):g})" in tip
    assert "row" in browser.hover("#charts [aria-label=cell] rect")
    assert browser.complaints() == []


def test_batches_internal_sizes_and_scale_groups(browser: Browser, saved: Path) -> None:
    browser.open(saved)
    assert "batch 1" in browser.hover("#batches [aria-label=dot] circle")
    assert "native" in browser.hover("#trade [aria-label=dot] circle")
    assert "score 0" in browser.hover("#trade [aria-label=dot] circle", 1)
    tip = browser.hover("#groups [aria-label=dot] circle", 1)
    for words in ("up", "20 x 24 natively", "axis 0 pinned by"):
        assert words in tip
    assert browser.complaints() == []


def choose(browser: Browser, site: str, variant: str) -> None:
    from selenium.webdriver.common.by import By  # pyright: ignore[reportMissingImports]
    from selenium.webdriver.support.ui import Select  # pyright: ignore[reportMissingImports]

    Select(browser.driver.find_element(By.ID, "variant")).select_by_visible_text(variant)
    buttons = browser.driver.find_elements(By.CSS_SELECTOR, ".sites:not([hidden]) tbody button")
    next(b for b in buttons if b.text == site).click()


def test_every_site_shows_its_pictures(browser: Browser, saved: Path) -> None:
    browser.open(saved)
    for variant in ("rewritten", "trained"):
        for site, pictures in {"down": 6, "dilated": 5, "depthwise": 5, "kernel": 5, "up": 6}.items():
            choose(browser, site, variant)
            assert browser.js("return document.getElementById('detail-title').textContent") == f"{site} in {variant}"
            assert browser.js("return document.querySelectorAll('#charts figure svg[aria-label]').length") == pictures
            assert browser.js("return document.querySelectorAll('#facts dd').length") >= 6
    assert "NaN" not in browser.js("return document.body.innerHTML.replace(/<script[^]*?<\\/script>/g, '')")
    assert browser.complaints() == []


def test_for_screen_readers(browser: Browser, saved: Path) -> None:
    browser.open(saved)
    assert browser.js("return document.documentElement.lang") == "en"
    assert browser.js("return document.querySelectorAll('figure:not([role=img]) svg:not([role=img][aria-label])').length") == 0
    assert browser.js("return [...document.querySelectorAll('figure[role=img]')].every(f => f.ariaLabel)")
    assert browser.js("return [...document.querySelectorAll('table')].every(t => t.caption && t.querySelector('th[scope]'))")
    assert browser.js("return [...document.querySelectorAll('h1, h2')].map(h => h.tagName)")[0] == "H1"
    unnamed = (
        "return [...document.querySelectorAll('button, select')].filter(b => !b.textContent.trim() && !b.labels?.length).length"
    )
    assert browser.js(unnamed) == 0


def test_two_hundred_sites(browser: Browser, compared: Compared, tmp_path: Path) -> None:
    """Less than 3 MB; a second of the page's own thread, scripts and layout, makes it ready, and less shows another site."""
    data = json.loads(compared.comparison.to_json())
    data["sites"] = [s | {"name": f"{s['name']}.{i}"} for i in range(40) for s in data["sites"][1:]]
    page = Comparison(data).save(tmp_path)[2]
    assert len(data["sites"]) == 200
    assert page.stat().st_size < 3e6
    browser.open(page)
    assert browser.busy() < 1
    before = browser.busy()
    show = (
        "const select = document.getElementById('variant');"
        "select.value = 'trained'; select.dispatchEvent(new Event('change'));"
        "[...document.querySelectorAll('.sites:not([hidden]) tbody button')].find(b => b.textContent === 'up.39').click();"
        "return document.body.offsetHeight && document.getElementById('detail-title').textContent"
    )
    assert browser.js(show) == "up.39 in trained"
    assert browser.busy() - before < 1


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: str(f.relative_to(REPORTS)))
def test_pages_of_the_committed_reports(browser: Browser, folder: Path, tmp_path: Path) -> None:
    """Every one opens without requests or complaints, sorts, and says its numbers under the pointer."""
    from selenium.webdriver.common.by import By  # pyright: ignore[reportMissingImports]

    data = Comparison.load(folder).data
    page = Comparison(data).save(tmp_path)[2]
    for width in (1200, 390):
        browser.open(page, width)
        assert browser.requests() == []
        assert browser.js("return document.documentElement.scrollWidth") <= width, "nothing is wider than the screen"
    browser.open(page)
    assert page.stat().st_size < 3e6
    assert browser.js("return document.querySelectorAll('#latency svg rect').length") >= 2
    timing = data["variants"][0]["latency"]["inference"]
    tip = browser.hover("#latency rect")
    assert "original: inference" in tip
    assert f"median {short(timing['median_s'] * 1e3)} ms" in tip
    heads = browser.driver.find_elements(By.CSS_SELECTOR, ".sites:not([hidden]) thead button")
    number = [h.text for h in heads].index("MFLOP before")
    for descending in (False, True):
        heads[number].click()
        values = [float(t.replace(",", "")) for t in browser.column(number)]
        assert len(values) == len(data["sites"])
        assert values == sorted(values, reverse=descending)
    assert browser.js("return document.querySelectorAll('#charts figure svg').length") >= 3
    assert "row" in browser.hover("#charts [aria-label=cell] rect")
    assert browser.complaints() == []


def short(value: float) -> str:
    """As the page writes numbers."""
    return f"{value:.1e}".replace("e-0", "e-") if 0 < abs(value) < 0.001 else f"{float(f'{value:.3g}'):g}"
