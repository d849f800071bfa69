"""Validation pictures: those of `kcache generate`, the same whenever they are made, and no change to the training."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from tiny import PIXELS, WIDTH

from kcache.generating.config import GenerateConfig
from kcache.generating.generate import generate
from kcache.grids import Group, grid, labelled_sheet
from kcache.shards import Cache, KcacheError
from kcache.shards.reader import read_null
from kcache.training import painter
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.stages import make_stage
from kcache.training.validation import HeldOutPictures, Picture, Validator, make_validator

TINY = Path(__file__).parent.parent / "kcache" / "data" / "kandinsky-tiny"
CPU = torch.device("cpu")
PROMPTS = ("a fox", "eine Möhre")
Config = PriorConfig | DecoderConfig


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(painter, "STEPS", 3)


@pytest.fixture
def make(tiny_prior: Path, tiny_decoder: Path, tmp_path: Path) -> Callable[..., tuple[Config, Validator | None]]:
    """``make(stage, held_out, ...)``: the configuration and validator of a run of the tiny models."""

    def made(stage: str, held_out: HeldOutPictures | None = None, **options: Any) -> tuple[Config, Validator | None]:
        chosen: dict[str, Any] = {
            "cache": "-",
            "output_dir": str(tmp_path),
            "pretrained_prior_model_name_or_path": str(tiny_prior),
            "pretrained_decoder_model_name_or_path": str(tiny_decoder),
            "resolution": PIXELS,
        }
        config = (PriorConfig if stage == "prior" else DecoderConfig)(**{**chosen, **options})
        null = torch.linspace(-1, 1, WIDTH)
        return config, make_validator(config, stage, tmp_path, CPU, null, held_out)

    return made


@pytest.fixture
def models(encoded: Callable[..., Cache], tiny_prior: Path, tiny_decoder: Path) -> Callable[[str], Any]:
    """The component of a stage as training has it."""
    cache = encoded()

    def model(stage: str) -> Any:
        paths = {"cache": str(cache.root), "output_dir": "-"}
        if stage == "prior":
            config: Config = PriorConfig(**paths, pretrained_prior_model_name_or_path=str(tiny_prior))
        else:
            decoder = {"pretrained_decoder_model_name_or_path": str(tiny_decoder), "resolution": PIXELS}
            config = DecoderConfig(**paths, **decoder)
        return make_stage(config, cache).model.train()

    return model


def held_out(count: int = 2, side: int = PIXELS // 4) -> HeldOutPictures:
    random = torch.Generator().manual_seed(0)
    latents, embeds = (torch.randn(shape, generator=random) for shape in ((count, 4, side, side), (count, WIDTH)))
    return HeldOutPictures(latents, embeds, [f"picture {n}" for n in range(count)])


def pixels(pictures: list[Picture]) -> list[bytes]:
    return [one.image.tobytes() for one in pictures]


def cells(pictures: list[Picture]) -> list[tuple[str, str, int | None]]:
    return [(one.caption, one.kind, one.seed) for one in pictures]


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_nothing_is_made_where_nothing_was_asked_for(make: Any, tmp_path: Path, stage: str) -> None:
    assert make(stage)[1] is None
    assert make("prior", held_out())[1] is None  # the prior has no pictures of its own
    assert not list(tmp_path.iterdir())


def test_the_prior_draws_its_prompts_and_writes_them_down(make: Any, models: Any, tmp_path: Path) -> None:
    _, validator = make("prior", validation_prompts=PROMPTS, num_validation_images=2)
    pictures = validator.draw(models("prior"), 500)
    assert cells(pictures) == [(prompt, "prompt", seed) for prompt in PROMPTS for seed in (0, 1)]
    assert len(set(pixels(pictures))) == 4
    assert {one.image.size for one in pictures} == {(PIXELS, PIXELS)}
    record = json.loads((tmp_path / "validation" / "step-000500.json").read_text("utf-8"))
    assert record["step"] == 500
    assert record["cells"] == [{"caption": one.caption, "kind": one.kind, "seed": one.seed} for one in pictures]
    with Image.open(tmp_path / "validation" / record["picture"]) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 4 * PIXELS


def test_the_decoder_draws_held_out_pairs_and_then_prompts(make: Any, models: Any) -> None:
    _, validator = make("decoder", held_out(), validation_prompts=PROMPTS[:1])
    pictures = validator.draw(models("decoder"), 1)
    assert cells(pictures) == [
        ("picture 0", "cached picture", None),
        ("picture 0", "generated", 0),
        ("picture 1", "cached picture", None),
        ("picture 1", "generated", 0),
        ("a fox", "prompt", 0),
    ]
    assert len(set(pixels(pictures))) == 5


def test_either_of_pairs_and_prompts_may_be_left_out(make: Any, models: Any) -> None:
    model = models("decoder")
    assert [one.kind for one in make("decoder", held_out(1))[1].draw(model, 1)] == ["cached picture", "generated"]
    assert [one.kind for one in make("decoder", validation_prompts=PROMPTS)[1].draw(model, 1)] == ["prompt"] * 2


def test_a_lora_makes_four_pictures_of_a_prompt_as_the_reference_does(make: Any, models: Any) -> None:
    _, validator = make("prior", validation_prompts=PROMPTS[:1], lora=True)
    model = models("prior")
    before = pixels(validator.draw(model, 1))
    assert len(before) == 4
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    assert pixels(validator.draw(model, 2)) != before


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Cache:
    """The ten pictures by the encoders of kandinsky-tiny."""
    from support import encode_tiny

    root = tmp_path_factory.mktemp("emoji") / "cache"
    return encode_tiny(root, pictures, TINY / "prior", TINY / "decoder", resolution=(64,))


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_picture_can_be_made_again_by_generate(tmp_path: Path, emoji: Cache, stage: str) -> None:
    paths = {"cache": str(emoji.root), "output_dir": str(tmp_path), "resolution": 64}
    config = (PriorConfig if stage == "prior" else DecoderConfig)(
        **paths,
        pretrained_prior_model_name_or_path=str(TINY / "prior"),
        pretrained_decoder_model_name_or_path=str(TINY / "decoder"),
        validation_prompts=("a red fox",),
        num_validation_images=2,
    )
    null = torch.from_numpy(read_null(emoji, emoji.column("image"))["image_embeds"].copy())
    validator = make_validator(config, stage, tmp_path, CPU, null)
    assert validator is not None
    _, second = validator.draw(make_stage(config, emoji).model, 1)
    made = GenerateConfig(
        prompts=("a red fox",),
        prior=str(TINY / "prior"),
        decoder=str(TINY / "decoder"),
        output=str(tmp_path / "again.png"),
        seed=1,
        num_inference_steps=painter.STEPS,
        resolution=64,
        device="cpu",
    )
    generate(made)
    with Image.open(tmp_path / "again.png") as again:
        assert_close(second.image, again)


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_picture_depends_on_its_prompt_and_number_alone(make: Any, models: Any, stage: str) -> None:
    model = models(stage)
    held = held_out(1) if stage == "decoder" else None
    _, validator = make(stage, held, validation_prompts=PROMPTS, num_validation_images=1)
    first = validator.draw(model, 1)
    torch.randn(7)
    assert pixels(validator.draw(model, 2)) == pixels(first)
    _, more = make(stage, validation_prompts=(PROMPTS[1], "a hen", PROMPTS[0]), num_validation_images=2)
    others = {(one.caption, one.seed): one.image for one in more.draw(model, 1)}
    for one in first[-2:]:
        assert_close(one.image, others[one.caption, one.seed])


def assert_close(one: Image.Image, other: Image.Image) -> None:
    difference = np.asarray(one).astype(int) - np.asarray(other).astype(int)
    assert abs(difference).max() <= 2


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_validation_changes_nothing_of_the_training(make: Any, models: Any, stage: str) -> None:
    model = models(stage)
    part = next(model.children()).eval()  # modes differ within the model
    model.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, wants = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    expected = torch.randn(4, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    _, validator = make(stage, held_out(1), validation_prompts=PROMPTS)
    validator.draw(model, 1)
    assert torch.equal(torch.randn(4), expected)
    assert not part.training
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wants
    assert all(p.grad is None for p in model.parameters())
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_dropout_is_off_in_pictures_and_on_again_after_an_error(make: Any, models: Any) -> None:
    model = models("prior")
    _, validator = make("prior", validation_prompts=PROMPTS)
    seen: list[bool] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        seen.append(model.training)
        raise ValueError("no picture")

    model.norm_out.forward = refuse
    with pytest.raises(ValueError, match="no picture"):
        validator.draw(model, 1)
    assert seen == [False]
    assert model.training


def test_too_little_memory_costs_the_pictures_and_not_the_run(
    make: Any, models: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = models("prior")
    _, validator = make("prior", validation_prompts=PROMPTS)
    forward = model.norm_out.forward

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.norm_out.forward = refuse
    assert validator.draw(model, 1500) == []
    assert "cpu has too little memory for the pictures after update 1,500" in caplog.messages
    assert not list((tmp_path / "validation").glob("step-*"))
    model.norm_out.forward = forward
    assert len(validator.draw(model, 2000)) == 2


def test_mixed_precision_draws_too(make: Any, models: Any) -> None:
    for stage in ("prior", "decoder"):
        model = models(stage)
        _, validator = make(stage, held_out(1) if stage == "decoder" else None, validation_prompts=PROMPTS)
        full = validator.draw(model, 1)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = validator.draw(model, 2)
        assert cells(mixed) == cells(full)
        assert all(not tensor.isnan().any() for tensor in model.parameters())


def test_a_model_that_diverged_has_pictures_too(make: Any, models: Any) -> None:
    model = models("decoder")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    _, validator = make("decoder", held_out(1))
    assert len(validator.draw(model, 1)) == 2


def test_held_out_pictures_may_have_the_shapes_of_their_buckets(make: Any, models: Any) -> None:
    latents = [torch.zeros(4, 8, 16), torch.zeros(4, 16, 8)]
    held = HeldOutPictures(latents, torch.zeros(2, WIDTH), ["wide", "high"])
    pictures = make("decoder", held)[1].draw(models("decoder"), 1)
    assert [one.image.size for one in pictures[::2]] == [(64, 32), (32, 64)]
    assert [one.image.size for one in pictures[1::2]] == [(64, 32), (32, 64)]


def test_no_frozen_unet_is_loaded_for_the_decoder(make: Any, models: Any, tiny_decoder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    for part in ("movq", "scheduler"):
        shutil.copytree(tiny_decoder / part, bare / part)
    _, validator = make("decoder", held_out(1), pretrained_decoder_model_name_or_path=str(bare))
    assert len(validator.draw(models("decoder"), 1)) == 2


def test_the_frozen_decoder_is_said_once_with_its_size(
    make: Any, models: Any, caplog: pytest.LogCaptureFixture, tiny_decoder: Path
) -> None:
    _, validator = make("prior", validation_prompts=PROMPTS)
    model = models("prior")
    with caplog.at_level(logging.INFO, "kcache"):
        for step in (1, 2):
            validator.draw(model, step)
    said = [message for message in caplog.messages if message.startswith("loaded the")]
    assert [message.split(" for ")[0] for message in said] == [
        f"loaded the {part} of {tiny_decoder}" for part in ("movq", "unet")
    ]
    assert all(re.search(r": \d+\.\d MB, kept in this machine's memory between them$", one) for one in said)


def test_a_checkpoint_that_cannot_make_the_pictures_is_refused_before_training(
    make: Any, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    for part in ("movq", "scheduler"):
        shutil.copytree(tiny_decoder / part, tmp_path / "bare" / part)
    prior, decoder = "pretrained_prior_model_name_or_path", "pretrained_decoder_model_name_or_path"
    with pytest.raises(KcacheError, match=r"bare has no 'unet' \(it has: movq, scheduler\)"):
        make("prior", validation_prompts=PROMPTS, **{decoder: str(tmp_path / "bare")})
    with pytest.raises(KcacheError, match=r"takes image embeddings of 64 and the cache has 16; name the decoder of"):
        make("prior", validation_prompts=PROMPTS, **{decoder: str(TINY / "decoder")})
    with pytest.raises(KcacheError, match=r"gives image embeddings of 64 and the cache has 16; name the prior of"):
        make("decoder", validation_prompts=PROMPTS, **{prior: str(TINY / "prior")})


# --- the sheets


def red(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (255, 0, 0))


def test_a_plain_grid_has_nothing_but_pictures() -> None:
    assert grid([red(10, 10)] * 5, columns=3).size == (3 * 14 - 4, 2 * 14 - 4)
    assert grid([red(10, 20)], columns=4).size == (10, 20)


def test_small_pictures_are_enlarged_and_texts_are_cut_to_their_width() -> None:
    words = "a very long caption " * 20
    plain, long = (labelled_sheet([("Title", [Group(one, [red(32, 32)], [""])])]) for one in ("a fox", words))
    endless = labelled_sheet([("Title", [Group("x" * 500, [red(32, 32)], ["y" * 500])])])
    assert plain.width == long.width == endless.width == 128 + 2 * 14
    assert long.height - plain.height == round(1.3 * 14)  # one more line and no more
    assert np.count_nonzero((np.asarray(plain) == (255, 0, 0)).all(-1)) == 128 * 128


def test_texts_that_are_empty_or_not_latin_do_no_harm() -> None:
    for caption in ("", " ", "胡萝卜 🥕", "two\nlines"):
        labelled_sheet([("", [Group(caption, [red(32, 48)], ["label"])])])
