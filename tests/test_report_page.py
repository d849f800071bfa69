"""The page of `kcache report` in a real browser: what is on it once its scripts ran, and what they do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import asked_for, chromium, complaints
from finished_runs import write_grid, write_run

from kcache.report import ReportConfig, report

pytestmark = pytest.mark.browser

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"
WIDTH, HEIGHT = 1200, 900


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


class Shown:
    """A page that is open in the browser."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser, self.address = browser, path.as_uri()
        complaints(browser), asked_for(browser)
        browser.get(self.address)

    def run(self, code: str, *arguments: object) -> Any:
        return self.browser.execute_script(f"return {code}", *arguments)

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        (found,) = self.all(selector)
        return found

    def paths(self, title: str, kind: str = "line") -> list[str]:
        """What is drawn in the chart with a title, line by line."""
        return [path.get_attribute("d") for path in self.all(f'[data-title="{title}"] path.{kind}')]

    def labels(self, title: str) -> list[str]:
        return [text.text for text in self.all(f'[data-title="{title}"] svg > text')]

    def slide(self, name: str, value: float) -> None:
        """Move a slider as a hand does, which the page hears of."""
        code = "((node, value) => { node.value = value; node.dispatchEvent(new Event('input')); })(...arguments)"
        self.run(code, self.one(f"#{name}"), value)

    def mouse(self) -> Any:
        from selenium.webdriver import ActionChains

        return ActionChains(self.browser, duration=50)

    def emulate(self, command: str, **options: object) -> None:
        self.browser.execute_cdp_cmd(f"Emulation.{command}", options)


def opened(browser: Any, tmp_path: Path, *outs: Path) -> Shown:
    """The page on some runs, in a window of a desk."""
    report(ReportConfig(outs=tuple(map(str, outs)), output=str(tmp_path / "page.html")))
    sizes = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
    return Shown(browser, tmp_path / "page.html")


@pytest.fixture
def page(driver: Any, tmp_path: Path) -> Shown:
    """One finished run."""
    return opened(driver, tmp_path, write_run(tmp_path / "out"))


@pytest.fixture
def sweep(driver: Any, tmp_path: Path) -> Shown:
    """Three runs, the second of which was killed."""
    rates = {"a": 1e-5, "b": 1e-4, "c": 3e-4}
    outs = [write_run(tmp_path / name, learning_rate=rate, finished=name != "b") for name, rate in rates.items()]
    return opened(driver, tmp_path, *outs)


# --- curves


def test_every_curve_is_drawn(page: Shown) -> None:
    charts = page.all("figure.chart")
    assert len(charts) == 12
    for chart in charts:
        title = chart.get_attribute("data-title")
        assert chart.find_element("css selector", "svg").size["height"] == 230, title
        lines = page.paths(title)
        assert len(lines) == (4 if "timestep" in title else 1), title
        assert all(line.startswith("M") and "NaN" not in line for line in lines), title
        assert len(page.labels(title)) >= 4, title
    assert page.paths("Training loss")[0].count("L") == 19
    assert complaints(page.browser) == []


def test_smoothing_changes_the_path_and_keeps_what_was_measured_behind_it(page: Shown) -> None:
    smoothed, (raw,) = page.paths("Training loss"), page.paths("Training loss", "raw")
    assert smoothed != [raw]
    other = page.paths("Validation loss")
    page.slide("smoothing", 0.95)
    assert page.one("output[for=smoothing]").text == "0.95"
    assert page.paths("Training loss") != smoothed
    assert page.paths("Validation loss") == other  # few and exact: never smoothed
    page.slide("smoothing", 0)
    assert page.paths("Training loss", "raw") == []
    assert page.paths("Training loss")[0].count("L") == 19


def test_smoothing_is_the_moving_average_without_its_pull_to_zero(page: Shown) -> None:
    assert page.run("smoothed([4, null, 2, 2], 0.5)") == pytest.approx([4, None, 8 / 3, 16 / 7])
    assert page.run("smoothed([3, 1, 2], 0)") == [3, 1, 2]


def test_the_logarithmic_scale_is_another_and_can_be_left(page: Shown) -> None:
    linear = page.paths("Learning rate")
    page.one("#log").click()
    assert page.paths("Learning rate") != linear
    page.one("#log").click()
    assert page.paths("Learning rate") == linear


def test_ticks_are_round_numbers(page: Shown) -> None:
    assert page.run("ticks(0, 200, 4)") == [0, 50, 100, 150, 200]
    assert page.run("ticks(0.283, 0.52, 5)") == [0.3, 0.35, 0.4, 0.45, 0.5]
    assert page.run("logTicks(0.01, 9)") == [0.01, 0.03, 0.1, 0.3, 1, 3]
    assert page.run("logTicks(1e-6, 9)") == [1e-6, 1e-4, 1e-2, 1]
    assert page.run("[said(0.25, 'share'), said(3.4e9, 'bytes'), said(1e-5, ''), said(null, '')]") == [
        "25 %",
        "3.4 GB",
        "1e-5",
        "no number",
    ]


def test_the_best_validation_is_marked(page: Shown) -> None:
    (mark,) = page.all('[data-title="Validation loss"] text.best')
    assert mark.text.startswith("best 0.28")
    assert mark.text.endswith("at 150")
    (mark,) = page.all('[data-title="Retrieval, R@1"] text.best')
    assert mark.text.endswith("at 200")


def test_a_curve_is_read_under_the_mouse_and_all_charts_show_where(page: Shown) -> None:
    chart = page.one('[data-title="Training loss"]')
    page.mouse().move_to_element(chart.find_element("css selector", "svg")).perform()
    readout = chart.find_element("css selector", ".readout")
    assert readout.is_displayed()
    assert readout.text.startswith("update ")
    assert "smoothed" in readout.text
    assert "measured" in readout.text
    assert {line.get_attribute("visibility") for line in page.all("line.cursor")} == {"visible"}
    page.mouse().move_to_element(page.one("h1")).perform()
    assert not readout.is_displayed()


def test_a_range_is_dragged_and_left_again(page: Shown) -> None:
    whole = page.labels("Gradient norm")
    svg = page.one('[data-title="Training loss"] svg')
    page.mouse().move_to_element_with_offset(svg, -60, 0).click_and_hold().move_by_offset(120, 0).release().perform()
    assert page.labels("Gradient norm") != whole  # all charts look at the same updates
    assert page.one("#whole").is_enabled()
    page.one("#whole").click()
    assert page.labels("Gradient norm") == whole
    page.mouse().move_to_element_with_offset(svg, -60, 0).click_and_hold().move_by_offset(120, 0).release().perform()
    page.mouse().double_click(svg).perform()
    assert page.labels("Gradient norm") == whole
    assert not page.one("#whole").is_enabled()


def test_the_keyboard_reads_and_zooms(page: Shown) -> None:
    from selenium.webdriver import Keys

    svg = page.one('[data-title="Training loss"] svg')
    page.run("arguments[0].focus()", svg)
    whole = page.labels("Training loss")
    page.mouse().send_keys(Keys.HOME).perform()
    readout = page.one('[data-title="Training loss"] .readout')
    assert readout.text.startswith("update 10")
    page.mouse().send_keys(Keys.END).perform()
    assert readout.text.startswith("update 200")
    page.mouse().send_keys("+").perform()
    assert page.labels("Training loss") != whole
    page.mouse().send_keys(Keys.ESCAPE).perform()
    assert page.labels("Training loss") == whole
    assert "from" in svg.get_attribute("aria-label")


def test_a_long_run_is_drawn_with_its_range(driver: Any, tmp_path: Path) -> None:
    page = opened(driver, tmp_path, write_run(tmp_path / "out", steps=40_000))
    assert len(page.paths("Training loss", "range")) == 1
    assert page.paths("Training loss")[0].count("L") == 1499
    assert page.one("output[for=smoothing]").text == "0.90"


def test_a_value_that_is_no_number_is_a_gap(driver: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    values = ("1", "2", "null", "2", "1")
    (out / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "loss": {v}}}\n' for i, v in enumerate(values)))
    (line,) = opened(driver, tmp_path, out).paths("Training loss")
    assert (line.count("M"), line.count("L")) == (2, 2)


def test_a_run_that_has_measured_nothing_yet_is_a_page_without_complaints(driver: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.jsonl").write_text("")
    page = opened(driver, tmp_path, out)
    assert page.one("h1").text == "out"
    assert complaints(driver) == []


# --- pictures


def test_the_slider_goes_through_the_pictures(page: Shown) -> None:
    picture = page.one(".grids img")
    last = picture.get_attribute("src")
    assert page.one(".grids figcaption").text == "update 200"
    assert page.run("arguments[0].decode().then(() => arguments[0].naturalWidth)", picture) == 196
    page.slide("update", 0)
    assert picture.get_attribute("src") != last
    assert page.one(".grids figcaption").text == "update 50"
    assert picture.get_attribute("alt") == "Validation pictures after update 50: a red fox; a blue cup"
    assert [item.text for item in page.all(".grids li")] == ["a red fox", "a blue cup"]


def test_runs_show_their_pictures_beside_each_other(sweep: Shown) -> None:
    assert [caption.text for caption in sweep.all(".grids figcaption")] == [
        "a, update 200",
        "b, update 150",  # killed before the last
        "c, update 200",
    ]
    sweep.slide("update", 1)
    assert {caption.text[3:] for caption in sweep.all(".grids figcaption")} == {"update 100"}


# --- several runs


def test_runs_lie_over_one_another_and_can_be_left_out(sweep: Shown) -> None:
    lines = sweep.paths("Training loss")
    assert len(set(lines)) == 3
    colours = [
        group.value_of_css_property("color") for group in sweep.all('[data-title="Training loss"] g[data-label]')
    ]
    assert len(set(colours)) == 3
    key = sweep.all(".legend .key")[1]
    assert (key.text, key.get_attribute("aria-pressed")) == ("b", "true")
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    assert {len(sweep.paths(title)) for title in ("Training loss", "Peak memory", "Retrieval, R@5")} == {2}
    key.click()
    assert sweep.paths("Training loss") == lines


def test_the_scores_begin_with_the_best_and_sort_by_any_column(sweep: Shown) -> None:
    def runs() -> list[str]:
        return [head.text for head in sweep.all("table.sortable tbody th")]

    assert runs() == ["c", "a", "b"]
    buttons = {button.text: button for button in sweep.all("table.sortable th button")}
    buttons["run"].click()
    assert runs() == ["a", "b", "c"]
    buttons["run"].click()
    assert runs() == ["c", "b", "a"]
    assert [head.text for head in sweep.all("th[aria-sort=descending]")] == ["run"]
    buttons["loss on fixed draws"].click()
    assert runs()[-1] == "b"  # which has none


def test_what_differs_between_runs_is_a_table(sweep: Shown) -> None:
    rows = [[cell.text for cell in row.find_elements("css selector", "th, td")] for row in sweep.all("#differing tr")]
    assert rows == [["option", "a", "b", "c"], ["learning_rate", "1e-05", "0.0001", "0.0003"]]


# --- windows, light and dark


@pytest.mark.parametrize("width", [360, 800, 1900])
def test_nothing_is_wider_than_the_window(sweep: Shown, width: int) -> None:
    sweep.emulate("setDeviceMetricsOverride", width=width, height=HEIGHT, deviceScaleFactor=1, mobile=False)
    assert sweep.run("document.documentElement.scrollWidth") <= width
    sweep.run("new Promise(requestAnimationFrame)")
    for chart in sweep.all("figure.chart"):
        assert chart.size["width"] <= width


def test_the_page_is_light_or_dark_as_the_reader_has_it(page: Shown) -> None:
    def ground() -> str:
        return str(page.run("getComputedStyle(document.body).backgroundColor"))

    seen = []
    for scheme in ("light", "dark"):
        page.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        seen.append(ground())
    page.emulate("setEmulatedMedia", features=[])
    assert seen == ["rgb(246, 247, 249)", "rgb(17, 21, 27)"]


# --- nothing but what is on it


def test_the_page_asks_for_itself_and_nothing_else(sweep: Shown) -> None:
    sweep.slide("update", 1)
    asked = [address for address in asked_for(sweep.browser) if not address.startswith("data:image/")]
    assert asked == [sweep.address]


def test_an_evil_prompt_does_nothing_but_stand_there(driver: Any, tmp_path: Path) -> None:
    out = write_run(tmp_path / EVIL.replace("/", "∕"), validation_prompts=(EVIL,), tracker_project_name=EVIL)
    write_grid(out, 200, 1, (EVIL, "b"))
    other = write_run(tmp_path / "other")
    page = opened(driver, tmp_path, out, other)
    assert EVIL in page.one(".grids figure:first-child li:first-child").text
    assert page.run("window.evil === undefined")
    assert len(page.all("script")) == 2
    assert page.all("img[onerror]") == []
    assert len(page.all("figure.chart")) > 10
    assert complaints(driver) == []


def test_the_browser_would_run_no_script_that_is_not_the_page_s_own(driver: Any, tmp_path: Path) -> None:
    page = opened(driver, tmp_path, write_run(tmp_path / "out"))
    path = tmp_path / "page.html"
    path.write_text(path.read_text("utf-8").replace("<main>", "<main><script>window.evil = 1</script>", 1), "utf-8")
    page = Shown(driver, path)
    assert page.run("window.evil === undefined")
    assert any("Content Security Policy" in said for said in complaints(driver))
    assert len(page.all("figure.chart")) == 12
