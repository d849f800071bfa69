"""What a stranger's cache calls its samples is shown by every command, and no terminal obeys it."""

import json
import shutil
from pathlib import Path

import pytest
from commands import Encode, copy_old, done, kcache
from folders import picture, write, write_rows
from support import flip

from kcache.cli.say import shown
from kcache.shards import Cache, layout
from kcache.shards.snapshot import load_entries

EVIL = "x\x1b]0;owned\x07\r\x1b[2K\nNo fault in 1 file.\u202egnp"
SHOWN = r"x\x1b]0;owned\x07\r\x1b[2K\nNo fault in 1 file.\u202egnp"


def test_text_is_shown_as_it_is_but_for_what_a_terminal_obeys() -> None:
    assert shown(EVIL) == SHOWN
    for harmless in ("", "a b", "möhre", "胡萝卜 🥕", "جزر", "👩\u200d👧", "e\u0301", "C:\\new", "\u3000"):
        assert shown(harmless) == harmless
    assert shown("\ud800\x85\u2028") == r"\ud800\x85\u2028"


@pytest.fixture
def evil(tmp_path: Path, encode: Encode) -> tuple[Path, Path]:
    """A dataset of three pictures whose names or captions are evil, and its cache."""
    dataset = tmp_path / "dataset"
    for i, name in enumerate((f"{EVIL}.png", "long.png", "bad.png")):
        write(dataset / name, picture((20 + i, 24)) if i < 2 else b"no picture")
    write_rows(dataset, {f"{EVIL}.png": "a", "long.png": EVIL * 20, "bad.png": EVIL})
    done(encode(copy_old(dataset, tmp_path / "old"), tmp_path / "cache"), 3)
    return dataset, tmp_path / "cache"


def is_harmless(output: str) -> bool:
    return not any(character in output for character in "\x1b\x07\u202e")


def test_every_command_that_names_a_sample_shows_it(evil: tuple[Path, Path], tmp_path: Path, encode: Encode) -> None:
    dataset, cache = evil
    edited = copy_old(dataset, tmp_path / "edited")
    (edited / f"{EVIL}.png").unlink()
    write_rows(edited, {"long.png": "short", "bad.png": EVIL})
    other = shutil.copytree(cache, tmp_path / "other")
    named = [
        encode(edited, other, "--dry-run"),
        encode(edited, other, "--prune"),
        kcache("diff", cache, other),
        kcache("info", cache, "--cut-captions"),
    ]
    silent = [
        kcache("info", cache),
        kcache("info", cache, "--set-aside"),
        kcache("gc", other, "--dry-run"),
        kcache("convert", cache, tmp_path / "h5", "--format", "h5"),
        kcache("verify", cache, "--deep"),
    ]
    opened = Cache(cache)
    commit = opened.commit("image", 0, 1)
    entry = load_entries(opened, opened.column("image"), commit)[opened.ids(0).index(f"{EVIL}.png")][0]
    flip(cache / commit.file, int(entry["offset"]))
    named.append(kcache("verify", cache, "--deep"))
    for result in (*named, *silent):
        assert is_harmless(result.output), result.output
    for result in named:
        assert SHOWN in result.output, result.output


def test_an_error_and_a_file_of_no_known_kind_are_shown_too(evil: tuple[Path, Path]) -> None:
    _, cache = evil
    (cache / f"{EVIL}.bin").write_text("")
    result = done(kcache("gc", cache, "--dry-run", "--min-age=0"))
    assert SHOWN in result.output
    assert is_harmless(result.output)
    root = cache / layout.ROOT_RECORD
    root.write_text(json.dumps({"format_version": EVIL}) + "\n")
    assert is_harmless(kcache("info", cache).output)


def test_lines_that_training_logs_are_shown_too(caplog: pytest.LogCaptureFixture) -> None:
    import logging

    import click
    from click.testing import CliRunner

    from kcache.cli.shell import apply_verbosity

    @click.command()
    @click.pass_context
    def command(ctx: click.Context) -> None:
        apply_verbosity(ctx)
        logging.getLogger("kcache").warning("the loss of '%s' is high", EVIL)

    logger = logging.getLogger("kcache")
    handlers, level = logger.handlers, logger.level
    try:
        assert CliRunner().invoke(command).output == f"Warning: the loss of '{SHOWN}' is high\n"
    finally:
        logger.handlers, logger.level = handlers, level


def test_the_ids_of_the_cache_are_as_they_were(evil: tuple[Path, Path]) -> None:
    assert f"{EVIL}.png" in Cache(evil[1]).ids(0)


OWN_WORDS = {"demo.py", "doctor.py", "reference_options.py", "say.py", "shell.py"}
"""What prints nothing that a cache says, or is the one place."""


def test_commands_print_what_a_cache_says_in_one_place_or_as_json() -> None:
    for path in (Path(__file__).parent.parent / "cli").glob("*.py"):
        if path.name not in OWN_WORDS:
            printed = path.read_text().split("click.echo(")[1:]
            assert all(text.startswith("json.dumps(") for text in printed), path
