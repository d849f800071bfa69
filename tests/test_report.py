"""`kcache report`: what stands on the page, from runs in every state, before a browser opens it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands import done, kcache, refused
from finished_runs import write_grid, write_run
from PIL import Image

from kcache import report_curves, report_pictures, report_tables
from kcache.report import ReportConfig, distinct_names, report
from kcache.runs import Series, read_run


class Page(HTMLParser):
    """The page's tables, text and addresses."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: str | None = None
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.data: dict[str, Any] = {}
        self.source = path.read_text("utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open = tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.open = None

    def handle_data(self, data: str) -> None:
        if self.open == "script" and self.tags[-1][1].get("id") == "data":
            self.data = json.loads(data)
        elif self.open not in ("script", "style"):
            self.text.append(data.strip())

    @property
    def words(self) -> str:
        return " ".join(filter(None, self.text))


def page_of(tmp_path: Path, *outs: Path) -> Page:
    report(ReportConfig(outs=tuple(map(str, outs)), output=str(tmp_path / "page.html")))
    return Page(tmp_path / "page.html")


# --- one run


def test_a_page_has_the_curves_pictures_options_and_origin_of_a_run(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_run(tmp_path / "out", learning_rate=3e-5))
    titles = [chart["title"] for chart in page.data["charts"]]
    assert titles == [
        "Training loss",
        "Validation loss",
        "Loss on fixed draws",
        "Cosine similarity, sampled to true",
        "Retrieval, R@1",
        "Retrieval, R@5",
        "Validation loss by timestep",
        "Learning rate",
        "Gradient norm",
        "Samples per second",
        "Waiting for data",
        "Peak memory",
    ]
    assert [grid["step"] for grid in page.data["pictures"][0]] == [50, 100, 150, 200]
    for said in ("finished, 200 updates", "learning_rate 3e-05", "/home/ada/caches/emoji", "snapshot 3fa9c1d23fa9"):
        assert said in page.words
    assert re.search(r"torch 2\.\d+", page.words)


def test_the_bands_of_one_run_stand_in_one_chart_and_those_of_several_in_one_each(tmp_path: Path) -> None:
    outs = [write_run(tmp_path / name) for name in ("a", "b")]
    (bands,) = [chart for chart in page_of(tmp_path, outs[0]).data["charts"] if "timestep" in chart["title"]]
    assert [line["label"] for line in bands["lines"]] == [
        "timesteps 0 to 249",
        "timesteps 250 to 499",
        "timesteps 500 to 749",
        "timesteps 750 to 999",
    ]
    each = [chart for chart in page_of(tmp_path, *outs).data["charts"] if "timesteps" in chart["title"]]
    assert [len(chart["lines"]) for chart in each] == [2, 2, 2, 2]


def test_what_is_measured_beside_the_known_has_a_chart_too(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out")
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 200, "ema_distance": 0.5}\n')
    last = page_of(tmp_path, out).data["charts"][-1]
    assert (last["title"], last["section"]) == ("ema distance", "Also measured")


def test_the_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_run(tmp_path / "out"))
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "data"):
            assert name not in attributes
    assert not re.findall(r"@import|url\((?!#)", page.source)
    (policy,) = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; script-src 'sha256-")
    assert "unsafe" not in policy


# --- runs in every state


def test_a_killed_run_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", "decoder", finished=False)
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 150, "lo')
    page = page_of(tmp_path, out)
    assert "unfinished, update 140 of 200" in page.words
    assert page.data["charts"][0]["lines"][0]["steps"][-1] == 140


def test_a_run_of_metrics_alone_is_shown(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"step": 10, "loss": 0.5}\n{"step": 20, "loss": null}\n')
    page = page_of(tmp_path, out)
    assert page.data["charts"][0]["lines"][0]["values"] == [0.5, None]
    assert "unfinished, update 20" in page.words
    assert "left no record" in page.words


def test_a_run_that_has_measured_nothing_yet_is_a_page(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.jsonl").write_text("")
    assert page_of(tmp_path, out).data == {"runs": ["out"], "charts": [], "pictures": [[]]}


def test_a_grid_without_its_record_is_shown_without_captions(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out")
    (out / "validation" / "step-000050.json").unlink()
    assert page_of(tmp_path, out).data["pictures"][0][0]["cells"] == []


def test_the_cells_may_lie_in_a_record_with_more_in_it(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out")
    path = out / "validation" / "step-000050.json"
    path.write_text(json.dumps({"step": 50, "cells": [{"caption": "a", "kind": "true picture", "seed": None}]}))
    assert read_run(out).grids[0].cells[0]["caption"] == "a"
    assert page_of(tmp_path, out).data["pictures"][0][0]["cells"] == [{"caption": "a", "kind": "true picture"}]


# --- several runs


def test_a_sweep_has_its_differences_and_scores_from_the_best_on(tmp_path: Path) -> None:
    rates = {"slow": 1e-5, "best": 3e-4, "middle": 1e-4}
    page = page_of(tmp_path, *(write_run(tmp_path / name, learning_rate=rate) for name, rate in rates.items()))
    assert page.data["runs"] == ["slow", "best", "middle"]
    assert [line["label"] for line in page.data["charts"][0]["lines"]] == ["slow", "best", "middle"]
    assert "learning_rate 1e-05 0.0003 0.0001" in page.words
    runs = {name: read_run(tmp_path / name) for name in rates}
    assert [option for option, _ in report_tables.differing(runs)] == ["learning_rate"]
    assert report_tables.ranked(runs) == [1, 2, 0]
    rows = [attributes["data-value"] for tag, attributes in page.tags if tag == "th" and "data-value" in attributes]
    assert rows == ["best", "middle", "slow"]


def test_runs_that_were_asked_for_the_same_differ_in_nothing(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    assert "None: these runs were asked for the same." in page.words


def test_runs_of_one_name_are_told_apart_by_the_folders_they_lie_in() -> None:
    assert distinct_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert distinct_names([Path("/one/out"), Path("/two/out")]) == ["one/out", "two/out"]


def test_a_run_that_is_named_twice_is_shown_once(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out")
    assert page_of(tmp_path, out, tmp_path / "." / "out").data["runs"] == ["out"]


# --- long runs and large pictures


def test_a_long_curve_is_means_between_its_lowest_and_highest() -> None:
    values: list[float | None] = [float(i % 10) for i in range(20_000)]
    values[5000] = 99.0
    drawn = report_curves.curve(Series(list(range(20_000)), values))
    assert len(drawn["steps"]) == len(drawn["values"]) == report_curves.POINTS
    assert drawn["steps"][-1] == 19_999
    assert max(drawn["high"]) == 99.0
    assert min(drawn["low"]) == 0.0
    assert drawn["values"][0] == pytest.approx(48 / 13)  # of 0 to 9 and 0 to 2


def test_of_many_grids_the_first_and_the_last_stay(tmp_path: Path) -> None:
    for step in range(200):
        write_grid(tmp_path, step, 1)
    kept = report_pictures.spread(read_run(tmp_path).grids)
    assert len(kept) == report_pictures.MOST
    assert (kept[0].step, kept[-1].step) == (0, 199)


def test_a_large_grid_becomes_a_smaller_file(tmp_path: Path) -> None:
    path = tmp_path / "step-000001.png"
    Image.effect_noise((900, 900), 80).convert("RGB").save(path)
    uri = report_pictures.data_uri(path)
    assert uri.startswith("data:image/webp;base64,")
    assert len(uri) < path.stat().st_size


# --- what anyone may have written into a caption


def test_no_text_can_leave_its_place(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u2028"
    out = write_run(tmp_path / "out", validation_prompts=(evil,), tracker_project_name=evil)
    write_grid(out, 200, 1, (evil, "b"))
    page = page_of(tmp_path, out)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in page.tags]
    assert page.data["pictures"][0][-1]["cells"][0]["caption"] == evil
    assert page.words.count(evil.strip()) == 2


# --- the command


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out")
    result = done(kcache("report", out, "-o", tmp_path / "new" / "page.html"))
    assert re.fullmatch(
        rf"Wrote {tmp_path}/new/page\.html \(1 run, 4 grids of pictures, [\d.]+ KB\); open it in a browser\.\n",
        result.stdout,
    )


def test_a_folder_that_is_no_run_is_refused_with_what_to_do(tmp_path: Path) -> None:
    assert "is not a folder; name the --output-dir" in refused(kcache("report", tmp_path / "none"))
    sweep = tmp_path / "sweep"
    write_run(sweep / "a")
    said = refused(kcache("report", sweep))
    assert said == (
        f"{sweep} has no metrics.jsonl, which 'kcache train' writes into its --output-dir;"
        f" it holds runs, so name these: kcache report {sweep}/*"
    )
    assert "cannot be a page" in refused(kcache("report", sweep / "a", "-o", tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out")
    (out / "training.json").write_text("{")
    assert "training.json is not JSON" in refused(kcache("report", out, "-o", tmp_path / "page.html"))
