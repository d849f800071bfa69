"""What `kcache generate` is asked for and refuses, where its pictures go, and what they say of themselves."""

import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import done, kcache, refused
from generating_support import QUICK, SIDE, make_folder, quick_config
from lora_support import make_lora_out
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny import LONG_CAPTION

from kcache.generating.config import GenerateConfig
from kcache.generating.generate import generate
from kcache.generating.metadata import read_record
from kcache.generating.output import sheet
from kcache.generating.pipelines import refuse_unfit
from kcache.generating.wanted import Wanted, wanted_pictures
from kcache.shards.errors import UsageError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_prior: Path, tiny_decoder: Path) -> Path:
    """Tiny pipelines, a photo and a mask."""
    return make_folder(tmp_path_factory.mktemp("generating"), tiny_prior, tiny_decoder)


# --- what is asked for


def test_prompts_come_from_the_command_line_the_file_and_the_mix(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("# a comment\n\n  a blue cup \nein Möhrenfuchs\n", "utf-8")
    config = GenerateConfig(
        prompts=("a fox",), prompts_file=str(tmp_path / "prompts.txt"), mix=("x=y=1", "b=3"), num_images_per_prompt=2
    )
    found = [(str(one.subject), one.seed) for one in wanted_pictures(replace(config, seed=5))]
    names = ["a fox", "a blue cup", "ein Möhrenfuchs", "0.25 x=y + 0.75 b"]
    assert found == [(name, seed) for name in names for seed in (5, 6)]


def test_lines_of_json_have_seeds_negative_prompts_and_mixes_of_their_own(tmp_path: Path) -> None:
    lines = [{"prompt": "a"}, {"prompt": "b", "seed": 9, "negative_prompt": "c"}, {"mix": {"d": 1, "e": 4}}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    config = GenerateConfig(prompts_file=str(path), negative_prompt="f", seed=2)
    found = [(str(one.subject), one.seed, one.negative_prompt) for one in wanted_pictures(config)]
    assert found == [("a", 2, "f"), ("b", 9, "c"), ("0.2 d + 0.8 e", 2, "f")]


def generated(folder: Path, *words: object, decoder: str = "decoder") -> Any:
    """`kcache generate` with the tiny pipelines."""
    return kcache("generate", *words, "--prior", folder / "prior", "--decoder", folder / decoder, *QUICK)


REFUSED = {
    "no prompt": ([], "no prompt was given"),
    "no such prompts file": (["--prompts-file", "none.txt"], "none.txt cannot be read (No such file or directory)"),
    "an empty prompts file": (["--prompts-file", "empty.txt"], "empty.txt has no prompt in it"),
    "a line that is no JSON": (["--prompts-file", "odd.jsonl"], "line 2 of odd.jsonl is not JSON"),
    "a line with another key": (["--prompts-file", "keys.jsonl"], "line 1 of keys.jsonl needs 'prompt' or 'mix'"),
    "a line with an odd seed": (["--prompts-file", "seed.jsonl"], "line 1 of seed.jsonl needs text for"),
    "a weight of 0": (["--mix", "a fox=0"], "'a fox' the weight 0.0; it must be a number above 0"),
    "a weight of nothing": (["--mix", "=1"], "a weight without a prompt or a picture"),
    "a mix with no such picture": (["--mix", "none.png=1"], "the picture none.png cannot be read (No such file"),
    "no such init image": (
        ["a", "--init-image", "none.png", "--strength=0.5"],
        "the picture none.png cannot be read (No such file",
    ),
    "an init image that is text": (["a", "--init-image", "empty.txt", "--strength=0.5"], "empty.txt cannot be read: "),
    "a strength without a picture": (["a", "--strength", "0.5"], "--strength is for a picture that is painted over"),
    "a mask without a picture": (["a", "--mask-image", "black.png"], "--mask-image is for a picture"),
    "a mask of another size": (["a", "--init-image", "photo.png", "--mask-image", "small.png"], "8 x 8 pixels and"),
    "a black mask": (["a", "--init-image", "photo.png", "--mask-image", "black.png"], "black.png has no white in it"),
    "less than a step": (["a", "--init-image", "photo.png", "--strength", "0.1"], "0.1 of 2 steps is not one step"),
    "a file for a folder": (["a", "-o", "photo.png/"], "cannot be written"),
    "a folder with files": (["a", "-o", "."], "is not empty"),
    "no ending": (["a", "-o", "fox"], "or a folder with a slash at its end: fox/"),
    "more than a grid": (["a", "--num-images-per-prompt", "401"], "401 pictures are more than a grid's 400"),
}


@pytest.mark.parametrize(("words", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_made_is_refused_with_a_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"empty.txt": "# no prompt\n", "odd.jsonl": '{"prompt": "a"}\n{', "keys.jsonl": '{"promt": "a"}'}
    for name, text in {**texts, "seed.jsonl": '{"prompt": "a", "seed": -1}'}.items():
        Path(name).write_text(text)
    Image.open(folder / "photo.png").save("photo.png")
    Image.new("L", (SIDE, SIDE)).save("black.png")
    Image.new("L", (8, 8), 255).save("small.png")
    assert sentence in refused(generated(folder, *words), code=2 if _is_usage(sentence) else 1)


def _is_usage(sentence: str) -> bool:
    signs = ("no prompt was", "weight", "is for a picture", "not one step")
    return any(sign in sentence for sign in signs)


def test_a_decoder_is_refused_what_its_unet_does_not_take(folder: Path) -> None:
    said = refused(generated(folder, "a", decoder="inpaint"), 2)
    assert said == f"{folder / 'inpaint'} paints into pictures and nothing else; give --init-image and --mask-image"
    plain = GenerateConfig(decoder="x", init_image="photo.png")
    strong = replace(plain, mask_image="mask.png", strength=0.5)
    for config, channels, sentence in ((plain, 9, "nothing else"), (strong, 9, "no --strength"), (plain, 8, "takes 8")):
        with pytest.raises(UsageError, match=sentence):
            refuse_unfit(config, channels)


# --- where they go, and what they say of themselves


def test_a_folder_gets_a_file_for_each_picture_and_a_grid(folder: Path, tmp_path: Path) -> None:
    result = done(generated(folder, "Möhre, 3 / 4", "b", "--num-images-per-prompt=2", "-o", f"{tmp_path / 'new'}/"))
    names = ["001-möhre-3-4-seed-0.png", "002-möhre-3-4-seed-1.png", "003-b-seed-0.png", "004-b-seed-1.png", "grid.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert "Wrote 4 pictures to " in result.stdout
    assert "grid.png (68 x 68 pixels)" in result.stdout
    grid, one = (np.asarray(Image.open(tmp_path / "new" / name)) for name in ("grid.png", names[2]))
    assert np.array_equal(grid[SIDE + 4 :, :SIDE], one)


def test_the_command_in_a_picture_makes_it_again_to_the_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["ein Möhrenfuchs 🥕", "--mix=a fox=0.3", f"--mix={folder / 'photo.png'}=0.7", "--negative-prompt=a hat"]
    more = ["--init-image", folder / "photo.png", "--mask-image", folder / "mask.png", "--scheduler=ddim"]
    done(generated(folder, *words, *more, "--seed=7", "-o", "made/"))
    for path in sorted(Path("made").iterdir()):
        *_, again = done(kcache("info", path)).stdout.strip().splitlines()
        done(kcache(*shlex.split(again.removeprefix("Again: "))[1:]))
        assert np.array_equal(np.asarray(Image.open("again.png")), np.asarray(Image.open(path))), path


def test_a_picture_says_how_it_was_made(folder: Path, tmp_path: Path) -> None:
    done(generated(folder, "a fox", "--negative-prompt=a hat", "--seed=3", "-o", tmp_path / "fox.png"))
    with Image.open(tmp_path / "fox.png") as picture:
        assert (picture.info["Description"], picture.info["Software"]) == ("a fox", "kcache 0.1.0")
    record = json.loads(done(kcache("info", tmp_path / "fox.png", "--json")).stdout)
    assert record == read_record(tmp_path / "fox.png")
    assert (record["prompt"], record["negative_prompt"], record["seed"]) == ("a fox", "a hat", 3)
    assert (record["num_inference_steps"], record["resolution"], record["kcache"]) == (2, SIDE, "0.1.0")
    assert len(record["prior"]["weights"]) == len(record["decoder"]["weights"]) == 64
    assert not {"batch_size", "offload"} & record.keys()  # no picture depends on them
    said = done(kcache("info", tmp_path / "fox.png")).stdout
    assert "prompt 'a fox', negative 'a hat', seed 3" in said
    assert "--json is the only option" in refused(kcache("info", tmp_path / "fox.png", "--set-aside"), 2)


@pytest.mark.parametrize("record", ["{", "[]", '{"kcache": "0.1.0"}', '{"kcache": 1, "pictures": 2}'])
def test_a_record_that_somebody_else_wrote_is_refused(tmp_path: Path, record: str) -> None:
    text = PngInfo()
    text.add_itxt("kcache", record)
    Image.new("RGB", (8, 8)).save(tmp_path / "fox.png", pnginfo=text)
    assert "is not what kcache writes" in refused(kcache("info", tmp_path / "fox.png"))
    os.truncate(tmp_path / "fox.png", 20)
    assert "cannot be read as a PNG" in refused(kcache("info", tmp_path / "fox.png"))


def test_a_picture_names_the_lora_and_its_scale(folder: Path, tmp_path: Path) -> None:
    make_lora_out(tmp_path / "lora", "decoder", folder / "decoder")
    output = str(tmp_path / "fox.png")
    lora = {"decoder": str(tmp_path / "lora"), "decoder_lora_scale": 0.5}
    generate(replace(quick_config(folder), prompts=("a fox",), output=output, **lora))
    decoder = read_record(tmp_path / "fox.png")["decoder"]
    assert (decoder["lora_scale"], decoder["trained_from"]) == (0.5, str(folder / "decoder"))
    assert len(decoder["lora"]) == 64


def test_a_picture_says_nothing_where_that_is_not_wanted(folder: Path, tmp_path: Path) -> None:
    done(generated(folder, "a fox", "--no-metadata", "-o", tmp_path / "fox.png"))
    with Image.open(tmp_path / "fox.png") as picture:
        assert "kcache" not in picture.info
    assert "does not say how it was made" in refused(kcache("info", tmp_path / "fox.png"))


def test_captions_stand_below_the_pictures() -> None:
    picture, wanted = Image.new("RGB", (128, 128), "red"), [Wanted("a fox", 1), Wanted("a fox", 2), Wanted("a cup", 1)]
    plain, captioned = (sheet([picture] * 3, wanted, 2, captions=captions) for captions in (False, True))
    ink = [(np.asarray(one.convert("L")) < 40).any() for one in (plain, captioned)]
    assert ink == [False, True]


def test_the_commands_of_the_documentation_make_their_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "generating.md").read_text("utf-8").replace("\\\n", "")
    (tiny,) = re.findall(r'^TINY="(.*?)"', text, re.MULTILINE | re.DOTALL)
    lines = [
        shlex.split(line.replace("$TINY", tiny)) for line in re.findall(r"^kcache (.*\$TINY.*)$", text, re.MULTILINE)
    ]
    assert len(lines) == 3
    for *words, name in lines:
        done(kcache(*words, tmp_path / Path(name).name, *QUICK[:1], "--num-inference-steps=5", "--batch-size=4"))
        for path in (tmp_path / Path(name).name, ROOT / name):  # those in the repository tell of themselves as well
            assert len(read_record(path)["pictures"]) == 4


def test_a_prompt_that_is_cut_is_told_of(folder: Path, tmp_path: Path) -> None:
    result = done(generated(folder, LONG_CAPTION, "a fox", "-o", tmp_path / "fox.png"))
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert "a very ripe strawberry" in line
    assert "is cut to 77 tokens" in line
