"""What `kcache generate` makes: the stock pipelines' pictures to the bit, from prompts, pictures, masks and mixes."""

import json
import os
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import done, kcache, refused
from lora_support import make_lora_out
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from pipelines import make_pipelines
from tiny import LONG_CAPTION

from kcache.generating.config import GenerateConfig
from kcache.generating.encoded_once import encoded_once
from kcache.generating.generate import generate, pictures_of
from kcache.generating.metadata import read_record
from kcache.generating.mixing import parse_mix
from kcache.generating.output import sheet
from kcache.generating.pictures import make_pictures
from kcache.generating.pipelines import Pipelines, load_pipelines
from kcache.generating.repaint import keeping_outside
from kcache.generating.wanted import Wanted, wanted_pictures

ROOT = Path(__file__).parent.parent
SIDE = 32
QUICK = ("--prior-num-inference-steps=2", "--num-inference-steps=2", "--resolution=32", "--device=cpu")
CHANNELS = pytest.mark.parametrize("decoder", ["decoder", "inpaint"], ids=["4 channels", "9 channels"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_prior: Path, tiny_decoder: Path) -> Path:
    """Pipelines of every kind, and what to begin from: ``photo.png``, and ``mask.png`` with a white right half."""
    folder = make_pipelines(tmp_path_factory.mktemp("generating"), tiny_prior, tiny_decoder)
    photo = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * n).resize((SIDE, SIDE)) for n in range(3)])
    photo.save(folder / "photo.png")
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).rectangle((SIDE // 2, 0, SIDE, SIDE), fill=255)
    mask.save(folder / "mask.png")
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> GenerateConfig:
    """Two steps of each of the tiny pipelines."""
    return GenerateConfig(
        prior=str(folder / "prior"),
        decoder=str(folder / "decoder"),
        prior_num_inference_steps=2,
        num_inference_steps=2,
        resolution=SIDE,
        device="cpu",
    )


@pytest.fixture(scope="module")
def pipelines(config: GenerateConfig) -> Pipelines:
    """Those of ``config``."""
    return load_pipelines(config)


def made(pipelines: Pipelines, config: GenerateConfig, *wanted: Wanted) -> "list[np.ndarray[Any, Any]]":
    """The pixels of each picture, as whole numbers that can be subtracted."""
    return [np.asarray(one).astype(int) for one in make_pictures(pipelines, wanted, config)]


def over(config: GenerateConfig, folder: Path, **options: Any) -> GenerateConfig:
    """``config`` for painting over the photo; with ``mask=True`` in its right half."""
    mask = str(folder / "mask.png") if options.pop("mask", False) else None
    strength = options.pop("strength", None if mask else 0.5)
    return replace(config, init_image=str(folder / "photo.png"), mask_image=mask, strength=strength, **options)


# --- the same bits as the stock pipelines


def stock_embeds(pipelines: Pipelines, generator: torch.Generator, negative: str | None) -> dict[str, torch.Tensor]:
    made = pipelines.prior("a red fox", negative_prompt=negative, num_inference_steps=2, generator=generator)
    return {"image_embeds": made.image_embeds, "negative_image_embeds": made.negative_image_embeds}


def stock(pipeline: Any, **options: Any) -> "np.ndarray[Any, Any]":
    sizes = {"height": SIDE, "width": SIDE, "num_inference_steps": 2}
    return np.asarray(pipeline(**sizes, **options).images[0]).astype(int)


@pytest.mark.parametrize("negative", ["", "a blue cup"])
def test_a_picture_is_that_of_the_stock_pipelines_to_the_bit(
    pipelines: Pipelines, config: GenerateConfig, negative: str
) -> None:
    generator = torch.Generator("cpu").manual_seed(3)
    embeds = stock_embeds(pipelines, generator, negative or None)
    expected = stock(pipelines.decoder, **embeds, generator=generator)
    assert expected.std() > 0
    (found,) = made(pipelines, config, Wanted("a red fox", 3, negative))
    assert np.array_equal(found, expected)


def test_image_to_image_is_that_of_the_stock_pipeline_to_the_bit(
    pipelines: Pipelines, config: GenerateConfig, folder: Path
) -> None:
    generator = torch.Generator("cpu").manual_seed(3)
    embeds = stock_embeds(pipelines, generator, None)
    with Image.open(folder / "photo.png") as photo:
        pipeline = pipelines.decoder_as("KandinskyV22Img2ImgPipeline")
        expected = stock(pipeline, **embeds, image=photo, strength=0.5, generator=generator)
    (found,) = made(pipelines, over(config, folder, strength=0.5), Wanted("a red fox", 3))
    assert np.array_equal(found, expected)


def test_inpainting_with_nine_channels_is_that_of_the_stock_pipeline_within_the_mask(
    config: GenerateConfig, folder: Path
) -> None:
    config = over(config, folder, mask=True, decoder=str(folder / "inpaint"))
    pipelines, generator = load_pipelines(config), torch.Generator("cpu").manual_seed(3)
    embeds = stock_embeds(pipelines, generator, None)
    with Image.open(folder / "photo.png") as photo, Image.open(folder / "mask.png") as mask:
        pipeline = pipelines.decoder_as("KandinskyV22InpaintPipeline")
        expected = stock(pipeline, **embeds, image=photo, mask_image=mask, generator=generator)
    (found,) = made(pipelines, config, Wanted("a red fox", 3))
    assert np.array_equal(found[:, SIDE // 2 :], expected[:, SIDE // 2 :])


@pytest.mark.parametrize("negative", ["", "a blue cup"])
def test_a_mix_is_that_of_the_stock_pipeline_to_the_bit(
    pipelines: Pipelines, config: GenerateConfig, folder: Path, negative: str
) -> None:
    generator = torch.Generator("cpu").manual_seed(3)
    with Image.open(folder / "photo.png") as photo:
        embeds = pipelines.prior.interpolate(
            ["a red fox", photo],
            [0.6, 0.4],
            num_inference_steps=2,
            generator=generator,
            negative_prior_prompt=negative or None,
        )
    expected = stock(pipelines.decoder, **embeds, generator=generator)
    mix = parse_mix(["a red fox=0.6", f"{folder / 'photo.png'}=0.4"])
    (found,) = made(pipelines, config, Wanted(mix, 3, negative))
    assert np.array_equal(found, expected)


def test_a_picture_does_not_depend_on_what_else_is_in_its_batch(
    pipelines: Pipelines, config: GenerateConfig, folder: Path
) -> None:
    mix = parse_mix(["a red fox", str(folder / "photo.png")])
    subjects: list[Any] = ["a red fox", "a blue cup, with a very long handle", mix, mix]
    wanted = [Wanted(one, seed, negative) for negative in ("", "a hat") for seed, one in enumerate(subjects)]
    for each in (config, over(config, folder), over(config, folder, mask=True)):
        alone = [made(pipelines, each, one)[0] for one in wanted]
        together = made(pipelines, replace(each, batch_size=3), *wanted)
        assert max(abs(one - other).max() for one, other in zip(alone, together, strict=True)) <= 1


def test_nine_channels_paint_several_pictures_at_once(config: GenerateConfig, folder: Path) -> None:
    config = over(config, folder, mask=True, decoder=str(folder / "inpaint"))
    pipelines, wanted = load_pipelines(config), [Wanted("a red fox", seed) for seed in (1, 2)]
    alone = [made(pipelines, config, one)[0] for one in wanted]
    together = made(pipelines, replace(config, batch_size=2), *wanted)
    assert max(abs(one - other).max() for one, other in zip(alone, together, strict=True)) <= 1


def test_each_text_and_picture_is_encoded_once(pipelines: Pipelines, config: GenerateConfig) -> None:
    texts: Counter[str] = Counter()
    forwards = [type(getattr(pipelines.prior, name)).forward for name in ("text_encoder", "image_encoder")]

    def counting(name: str, forward: Any) -> Any:
        def count(*args: Any, **options: Any) -> Any:
            texts[name] += 1
            return forward(*args, **options)

        return count

    models = (pipelines.prior.text_encoder, pipelines.prior.image_encoder)
    with pytest.MonkeyPatch.context() as patch:
        for model, forward in zip(models, forwards, strict=True):
            patch.setattr(type(model), "forward", counting(type(model).__name__, forward))
        wanted = [Wanted(one, seed) for one in ("a fox", "a cup") for seed in range(3)]
        made(pipelines, replace(config, batch_size=2), *wanted)
    assert sorted(texts.values()) == [1, 3]  # a picture of zeros; two prompts and the empty one
    assert all("forward" not in vars(model) for model in models)


def test_half_precision_runs_the_text_once_and_makes_about_the_same(config: GenerateConfig, folder: Path) -> None:
    config = replace(config, dtype="bf16")
    pipelines, mix = load_pipelines(config), parse_mix(["a red fox", str(folder / "photo.png")])
    whole = load_pipelines(replace(config, dtype="fp32"))
    runs: list[int] = []
    pipelines.prior.prior.encoder_hidden_states_proj.register_forward_pre_hook(lambda _, args: runs.append(1))
    for subject in ("a red fox", mix):
        (found,), (expected,) = (made(each, config, Wanted(subject, 1)) for each in (pipelines, whole))
        assert abs(found - expected).mean() < 10
    assert len(runs) == 3  # of a mix its prompt, and the empty one of which the pipeline has its zeros


def test_what_was_encoded_long_ago_is_forgotten(pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kcache.generating.encoded_once.KEPT", 2)
    ids = pipelines.prior.tokenizer(["a", "b", "c"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad(), encoded_once(pipelines.prior):
        pipelines.prior.text_encoder(ids)
        assert len(pipelines.prior.text_encoder.forward._kept) == 2


@pytest.mark.parametrize(("prior", "decoder", "counts"), [(4.0, 1.0, True), (1.0, 4.0, True), (1.0, 1.0, False)])
def test_a_negative_prompt_guides_prior_and_decoder(
    pipelines: Pipelines, config: GenerateConfig, prior: float, decoder: float, counts: bool
) -> None:
    config = replace(config, prior_guidance_scale=prior, guidance_scale=decoder)
    one, other = made(pipelines, config, Wanted("a fox", 1, "a hat"), Wanted("a fox", 1, "a blue cup"))
    assert np.array_equal(one, other) != counts


# --- from pictures


def test_a_larger_strength_leaves_less_of_the_picture(
    pipelines: Pipelines, config: GenerateConfig, folder: Path
) -> None:
    config, photo = replace(config, num_inference_steps=10), np.asarray(Image.open(folder / "photo.png")).astype(int)
    movq = pipelines.decoder.movq
    with torch.no_grad():
        pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1
        decoded = movq.decode(movq.encode(pixels)["latents"], force_not_quantize=True)["sample"]
    seen = ((decoded[0].permute(1, 2, 0) * 0.5 + 0.5).clamp(0, 1) * 255).numpy()
    away = [
        abs(made(pipelines, over(config, folder, strength=one), Wanted("a fox", 1))[0] - seen).mean()
        for one in (0.1, 0.5, 1.0)
    ]
    assert away[0] < away[1] < away[2]


@CHANNELS
def test_inpainting_changes_the_inside_and_no_pixel_outside(config: GenerateConfig, folder: Path, decoder: str) -> None:
    config = over(config, folder, mask=True, decoder=str(folder / decoder))
    photo, half = np.asarray(Image.open(folder / "photo.png")).astype(int), SIDE // 2
    one, other = made(load_pipelines(config), config, Wanted("a fox", 1), Wanted("a fox", 2))
    assert np.array_equal(one[:, :half], photo[:, :half])
    assert abs(one[:, half:] - photo[:, half:]).mean() > 5
    assert not np.array_equal(one, other)


def test_latents_outside_the_mask_are_the_noised_picture_after_every_step(pipelines: Pipelines) -> None:
    scheduler, generator = pipelines.decoder.scheduler, torch.Generator("cpu").manual_seed(0)
    pixels, mask = torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 5, 9] = 1  # one pixel, in the latent of row 1 and column 2
    with torch.no_grad():
        latents = pipelines.decoder.movq.encode(pixels)["latents"]
    callback = keeping_outside(pipelines.decoder, pixels, mask, [generator])
    noise = torch.randn(latents.shape, generator=torch.Generator("cpu").manual_seed(0))
    scheduler.set_timesteps(4)
    ours = torch.full_like(latents, 7.0)
    for step, timestep in enumerate(scheduler.timesteps):
        found = callback(pipelines.decoder, step, timestep, {"latents": ours})["latents"]
        later = scheduler.timesteps[step + 1 : step + 2]
        expected = scheduler.add_noise(latents, noise, later) if len(later) else latents.clone()
        expected[..., 1, 2] = 7.0
        assert torch.equal(found, expected)


def test_the_shape_of_a_picture_is_kept(
    pipelines: Pipelines, config: GenerateConfig, folder: Path, tmp_path: Path
) -> None:
    Image.open(folder / "photo.png").resize((100, 50)).save(tmp_path / "wide.png")
    (found,) = made(pipelines, replace(config, init_image=str(tmp_path / "wide.png"), strength=0.5), Wanted("a fox"))
    assert found.shape == (SIDE, 2 * SIDE, 3)


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver"])
def test_every_scheduler_makes_pictures_of_its_own(config: GenerateConfig, folder: Path, scheduler: str) -> None:
    config = replace(config, scheduler=scheduler, num_inference_steps=4)
    pipelines = load_pipelines(config)
    assert type(pipelines.decoder.scheduler).__name__.lower().startswith(scheduler[:4])
    for each in (config, over(config, folder, mask=True)):
        one, other = made(pipelines, each, Wanted("a fox", 1), Wanted("a fox", 2))
        assert not np.array_equal(one, other)


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
    source = ["--init-image", folder / "photo.png"]
    masked = [*source, "--mask-image", folder / "mask.png"]
    assert "paints into pictures and nothing else" in refused(generated(folder, "a", decoder="inpaint"), 2)
    assert "paints into pictures and nothing else" in refused(
        generated(folder, "a", *source, "--strength=0.5", decoder="inpaint"), 2
    )
    assert "no --strength" in refused(generated(folder, "a", *masked, "--strength=0.5", decoder="inpaint"), 2)
    assert "takes 8 channels" in refused(generated(folder, "a", decoder="controlnet"), 2)


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


def test_a_picture_names_the_lora_and_its_scale(config: GenerateConfig, folder: Path, tmp_path: Path) -> None:
    make_lora_out(tmp_path / "lora", "decoder", folder / "decoder")
    output = str(tmp_path / "fox.png")
    lora = replace(config, prompts=("a fox",), decoder=str(tmp_path / "lora"), decoder_lora_scale=0.5, output=output)
    generate(lora)
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


def test_pictures_of_prompts_are_had_from_python_without_loading_twice(
    pipelines: Pipelines, config: GenerateConfig
) -> None:
    config = replace(config, num_images_per_prompt=2, seed=4)
    found = pictures_of(["a fox", "a cup"], config, pipelines)
    expected = made(pipelines, config, Wanted("a fox", 4), Wanted("a fox", 5), Wanted("a cup", 4), Wanted("a cup", 5))
    assert [np.array_equal(np.asarray(one), other) for one, other in zip(found, expected, strict=True)] == [True] * 4
