"""`kcache demo`: the style it teaches, the prompts it draws, the pictures before and after, and its page."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import asked_for, chromium, complaints
from commands import kcache
from PIL import Image

from kcache.demo import MOST_PROMPTS, PROMPTS, checked_prompts
from kcache.demo_style import INK, PAPER, restyle_folder, restyled
from kcache.shards.errors import UsageError

ROOT = Path(__file__).parents[1]
EVIL = "<script>window.evil = 1</script>"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a demo of one update for each stage, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kcache.demo.run_command", _in_this_process)
        patch.setattr("kcache.demo.restyle_folder", _fewer_restyled)
        done = kcache("demo", folder, "--prompt", "fox", "--prompts", f"{EVIL}; --red heart;", *_steps(1))
    assert done.exit_code == 0, done.output
    return folder, done.output


def _in_this_process(arguments: Sequence[str]) -> int:
    hasty = ["2" if before == "--num-inference-steps" else word for before, word in pairwise(["", *arguments])]
    return kcache(*hasty).exit_code


def _fewer_restyled(source: Path, target: Path) -> int:
    """As many as one batch of the prior's training takes."""
    restyle_folder(source, target)
    rows = (target / "metadata.jsonl").read_text().splitlines()
    for row in rows[32:]:
        (target / json.loads(row)["file_name"]).unlink()
    (target / "metadata.jsonl").write_text("\n".join(rows[:32]))
    return 32


def _steps(count: int) -> list[str]:
    return [f"--prior-steps={count}", f"--decoder-steps={count}"]


def test_a_sticker_is_the_picture_with_an_outline_on_paper() -> None:
    picture = Image.new("RGBA", (256, 256))
    picture.paste((255, 0, 0, 255), (64, 64, 192, 192))
    sticker = restyled(picture)
    assert (sticker.mode, sticker.size) == ("RGB", (128, 128))
    assert [sticker.getpixel(at) for at in ((2, 2), (64, 34), (64, 64))] == [PAPER, INK, (255, 0, 0)]


def test_a_picture_that_touches_its_edges_has_an_outline_too() -> None:
    sticker = restyled(Image.new("RGBA", (40, 40), "red"))
    assert [sticker.getpixel((64, y)) for y in (2, 7, 64, 120, 125)] == [PAPER, INK, (255, 0, 0), INK, PAPER]


def test_the_restyled_folder_has_each_caption_again_and_a_picture_for_it(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    Image.new("RGBA", (8, 8), "red").save(tmp_path / "from" / "a.webp")
    (tmp_path / "from" / "metadata.jsonl").write_text('{"file_name": "a.webp", "text": "a square"}\n')
    assert restyle_folder(tmp_path / "from", tmp_path / "to") == 1
    (row,) = (tmp_path / "to" / "metadata.jsonl").read_text().splitlines()
    assert json.loads(row) == {"file_name": "a.png", "text": "a square"}
    with Image.open(tmp_path / "to" / "a.png") as sticker:
        assert sticker.size == (128, 128)


def test_prompts_lose_the_space_around_them_and_are_some_but_not_many() -> None:
    assert checked_prompts([" red  apple\n", " "]) == ("red apple",)
    assert checked_prompts(PROMPTS) == PROMPTS
    with pytest.raises(UsageError, match="no prompt has a word in it"):
        checked_prompts([""])
    with pytest.raises(UsageError, match=f"{MOST_PROMPTS + 1} prompts are more than"):
        checked_prompts(["fox"] * (MOST_PROMPTS + 1))


def test_the_demo_says_each_command_and_draws_every_prompt_before_and_after(shown: tuple[Path, str]) -> None:
    folder, said = shown
    commands = [line.split()[2] for line in said.splitlines() if line.startswith("$ kcache ")]
    assert commands == ["generate", "encode", "info", "train", "train", "generate", "report"]
    for drawn in ("before", "after"):
        assert len(list((folder / drawn).glob("00*.png"))) == 3
    with Image.open(folder / "before-after.png") as sheet:
        assert sheet.width > 3 * 128
    assert f"open {folder}/demo.html in a browser" in said


def test_a_demo_in_a_folder_that_is_taken_goes_into_the_next_and_a_failed_command_is_named(
    shown: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = shown
    before = (folder / "demo.html").read_bytes()
    monkeypatch.setattr("kcache.demo.run_command", lambda _: 3)
    failed = kcache("demo", folder)
    assert failed.exit_code != 0
    assert f"{folder}-2" in failed.output
    assert "ended with exit code 3" in failed.output
    assert (folder / "demo.html").read_bytes() == before


def test_make_demo_hands_the_prompts_over_as_they_were_typed(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "kcache"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (tmp_path / ".installed").touch()
    given = [f"VENV={tmp_path}", f"STAMP={tmp_path / '.installed'}", "--assume-old=" + str(tmp_path / ".installed")]
    words = ['PROMPTS=red apple; a "cat\'s" face', "DEMO_DIR=my demo"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "-s", "demo", *given, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[:4] == ["demo", "my demo", "--prompts", 'red apple; a "cat\'s" face']


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.browser
def test_the_page_shows_its_pictures_asks_for_nothing_and_runs_no_prompt(driver: Any, shown: tuple[Path, str]) -> None:
    address = (shown[0] / "demo.html").as_uri()
    complaints(driver), asked_for(driver)
    driver.get(address)
    widths = driver.execute_script("return [...document.images].map((one) => one.naturalWidth)")
    assert len(widths) == 2
    assert min(widths) > 100
    assert driver.execute_script("return window.evil") is None
    assert EVIL in driver.find_element("css selector", "header").text
    assert len(driver.find_elements("css selector", "#commands pre")) == 7
    assert [url for url in asked_for(driver) if url.startswith(("http", "file"))] == [address]
    assert complaints(driver) == []
