"""The page of `kcache preview` in a real browser: it shows, searches, pages, filters, and runs nobody else's script."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import asked_for, chromium, complaints
from preview_cache import EVIL, make_preview_cache

from kcache.preview import PreviewConfig, preview
from kcache.shards import Cache

pytestmark = pytest.mark.browser

PAINTED = "return [...document.querySelectorAll('#cards canvas')].filter((one) => 'painted' in one.dataset).length"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def opened(driver: Any, cache: Cache, page: Path, inside: int = 4000, width: int = 1200) -> Any:
    """The browser with the page of a cache."""
    preview(PreviewConfig(cache=str(cache.root), output=str(page), device="cpu"), inside)
    sizes = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
    complaints(driver), asked_for(driver)
    driver.get(page.as_uri())
    waited(driver, "return document.querySelectorAll('#cards .sample').length > 0")
    return driver


def waited(driver: Any, code: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 10, 0.05).until(lambda browser: browser.execute_script(code))


def texts(driver: Any, selector: str) -> list[str]:
    return [found.text for found in driver.find_elements("css selector", selector)]


def press(driver: Any, selector: str) -> None:
    driver.find_element("css selector", selector).click()


def search(driver: Any, words: str) -> list[str]:
    """The ids that are found."""
    field = driver.find_element("css selector", "#search")
    field.clear()
    field.send_keys(words)
    return texts(driver, "#cards .words > .id:nth-of-type(2)")


@pytest.mark.parametrize("inside", [4000, 3])
def test_pictures_are_shown_from_the_page_or_the_folder_beside_it(
    encoded: Callable[..., Cache], driver: Any, tmp_path: Path, inside: int
) -> None:
    opened(driver, encoded(), tmp_path / "page.html", inside)
    waited(driver, f"{PAINTED} === 10")
    shown = "return document.querySelector('#cards canvas').width"
    assert driver.execute_script(shown) == 128
    assert complaints(driver) == []
    asked = [address for address in asked_for(driver) if not address.startswith("data:")]
    assert all(address.startswith("file:") for address in asked)
    assert len(asked) == (1 if inside == 4000 else 3)  # the page; its rows and one sheet


def test_it_searches_pages_filters_and_shows_neighbours(driver: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    opened(driver, make_preview_cache(tmp_path / "cache"), tmp_path / "page.html")
    assert len(texts(driver, "#cards .sample")) == 120
    press(driver, "#next")
    assert (len(texts(driver, "#cards .sample")), texts(driver, "#where")) == (10, ["Page 2 of 2"])
    assert search(driver, "RED number 128") == ["sample-128"]
    assert search(driver, '"fox, number" 77') == ["sample-77"]
    assert search(driver, "sample-12 -fox -cup") == []
    assert texts(driver, "#count") == ["Nothing fits. Try fewer words, or All."]
    search(driver, " ")
    assert [name.split("\n")[0].rstrip("0123456789 ") for name in texts(driver, "#filters button")] == [
        "All",
        "Same file",
        "Almost equal",
        "Set aside",
        "Unusual norm",
    ]
    press(driver, "[data-filter=aside]")
    assert "the file is cut off" in texts(driver, "#cards .sample")[0]
    assert "could not be encoded" in texts(driver, "#meaning")[0]
    press(driver, "[data-filter=same]")
    assert len(texts(driver, "#cards .sample")) == 2
    driver.find_element("css selector", "#cards .sample").send_keys(Keys.ENTER)
    assert "number 1" in texts(driver, ".about li")[0]
    assert "1.000 · sample-2" in texts(driver, ".near .sample")[0]
    ActionChains(driver).send_keys(Keys.ARROW_RIGHT).perform()
    assert "number 2" in texts(driver, ".about li")[0]
    press(driver, ".near .sample")
    assert "number 1" in texts(driver, ".about li")[0]
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()
    assert not driver.find_element("css selector", "#detail").is_displayed()
    assert complaints(driver) == []


@pytest.mark.parametrize("inside", [4000, 3])
def test_a_hostile_caption_does_nothing_but_stand_there(driver: Any, tmp_path: Path, inside: int) -> None:
    opened(driver, make_preview_cache(tmp_path / "cache", 6), tmp_path / "page.html", inside)
    assert EVIL in texts(driver, "#cards .caption")
    press(driver, "#cards .sample")
    assert texts(driver, ".about li") == [EVIL]
    assert driver.execute_script("return window.evil === undefined && !document.querySelector('[onerror]')")
    assert complaints(driver) == []


@pytest.mark.parametrize("width", [360, 1900])
def test_nothing_is_wider_than_the_window(driver: Any, tmp_path: Path, width: int) -> None:
    opened(driver, make_preview_cache(tmp_path / "cache", 12), tmp_path / "page.html", width=width)
    press(driver, "#cards .sample")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
