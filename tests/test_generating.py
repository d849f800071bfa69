"""What `kcache generate` makes: the stock pipelines' pictures to the bit, from prompts, pictures, masks and mixes."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generating_support import SIDE, make_folder, quick_config
from PIL import Image

from kcache.generating.config import GenerateConfig
from kcache.generating.encoded_once import encoded_once
from kcache.generating.generate import pictures_of
from kcache.generating.mixing import parse_mix
from kcache.generating.offload import Room, taking_turns
from kcache.generating.pictures import make_pictures
from kcache.generating.pipelines import Pipelines, load_pipelines
from kcache.generating.repaint import keeping_outside
from kcache.generating.wanted import Wanted
from kcache.shards.errors import KcacheError, UsageError

CHANNELS = pytest.mark.parametrize("decoder", ["decoder", "inpaint"], ids=["4 channels", "9 channels"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_prior: Path, tiny_decoder: Path) -> Path:
    """Tiny pipelines, a photo and a mask."""
    return make_folder(tmp_path_factory.mktemp("generating"), tiny_prior, tiny_decoder)


@pytest.fixture(scope="module")
def config(folder: Path) -> GenerateConfig:
    """Two steps of each of them."""
    return quick_config(folder)


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
    subjects: list[Any] = ["a red fox", "a blue cup, with a very long handle", mix]
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


def test_half_precision_runs_the_text_once_and_makes_about_the_same(
    pipelines: Pipelines, config: GenerateConfig, folder: Path
) -> None:
    halved, mix = load_pipelines(replace(config, dtype="bf16")), parse_mix(["a red fox", str(folder / "photo.png")])
    runs: list[int] = []
    halved.prior.prior.encoder_hidden_states_proj.register_forward_pre_hook(lambda _, args: runs.append(1))
    for subject in ("a red fox", mix):
        (found,), (expected,) = (made(each, config, Wanted(subject, 1)) for each in (halved, pipelines))
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


def test_pictures_of_prompts_are_had_from_python_without_loading_twice(
    pipelines: Pipelines, config: GenerateConfig
) -> None:
    config = replace(config, num_images_per_prompt=2, seed=4)
    found = pictures_of(["a fox", "a cup"], config, pipelines)
    expected = made(pipelines, config, Wanted("a fox", 4), Wanted("a fox", 5), Wanted("a cup", 4), Wanted("a cup", 5))
    assert [np.array_equal(np.asarray(one), other) for one, other in zip(found, expected, strict=True)] == [True] * 4


# --- on a small GPU


@pytest.mark.parametrize(("dtype", "mask"), [(None, True), ("bf16", False)], ids=["fp32, a mask", "bf16"])
def test_parts_that_take_turns_make_the_same_pictures(
    config: GenerateConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None, mask: bool
) -> None:
    mix = parse_mix(["a red fox", str(folder / "photo.png")])
    wanted = [Wanted("a red fox", 1), Wanted("a blue cup", 2, "a hat"), Wanted(mix, 3)]
    config = over(config, folder, mask=True) if mask else config
    pipelines = load_pipelines(replace(config, dtype=dtype))
    expected, there = made(pipelines, config, *wanted), entered(monkeypatch)
    found = made(replace(pipelines, take_turns=True), config, *wanted)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert_took_turns(there, pipelines)
    assert not any(hasattr(part, "_hf_hook") for parts in pipelines.groups for part in parts)


def entered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The parts that come to the room, group by group; an empty group when the room is cleared."""
    there: list[Any] = []
    enter, clear = Room.enter, Room.clear

    def entering(room: Room, parts: Any) -> None:
        enter(room, parts)
        there.append(parts)

    def clearing(room: Room) -> None:
        clear(room)
        there.append(())

    monkeypatch.setattr(Room, "enter", entering)
    monkeypatch.setattr(Room, "clear", clearing)
    return there


def assert_took_turns(there: list[Any], pipelines: Pipelines) -> None:
    """No group came while another was there, the image encoder came once for each thing it saw, the decoder once."""
    changes = [parts for parts, before in zip(there, [(), *there], strict=False) if parts != before]
    assert changes[-1] == ()
    assert all((now == ()) != (before == ()) for now, before in zip(changes, [(), *changes], strict=False))
    image, _, decoder = pipelines.groups
    assert changes.count(decoder) == 1
    assert changes.count(image) <= 2  # a picture of zeros, and the one that is mixed in


def test_what_a_part_is_given_comes_to_where_the_part_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "clear", lambda room: None)  # nothing comes back from this device
    part = torch.nn.Linear(2, 3)
    with taking_turns([(part,)], torch.device("meta")):
        assert part.weight.device.type == "cpu"
        assert part(torch.ones(1, 2)).device.type == "meta"
        assert part(input=torch.ones(1, 2)).device.type == "meta"


def test_taking_turns_on_a_cpu_is_refused(config: GenerateConfig) -> None:
    with pytest.raises(UsageError, match="--offload spares the memory of a GPU, and this would run on the CPU"):
        load_pipelines(replace(config, offload=True, device="cpu"))


# --- what was mixed up


def test_a_weight_with_a_comma_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(UsageError, match=r"has the weight 0,6; write it with a point: 'a fox=0\.6'"):
        parse_mix(["a fox=0,6", "a cup"])
    assert parse_mix(["a sign that says a=b"]).prompts == ("a sign that says a=b",)


@pytest.mark.parametrize(("stage", "other"), [("prior", "decoder"), ("decoder", "prior")])
def test_a_checkpoint_of_the_other_stage_is_refused_by_its_name(
    config: GenerateConfig, tmp_path: Path, stage: str, other: str
) -> None:
    (tmp_path / "training.json").write_text(f'{{"stage": "{other}"}}')
    for folder in (Path(getattr(config, other)), tmp_path):
        with pytest.raises(KcacheError, match=f"{folder} is a {other}; give it as --{other}, and a {stage} here"):
            load_pipelines(replace(config, **{stage: str(folder)}))


@pytest.mark.parametrize("name", ["./my-prior", "/none/my-prior", "runs/first/my-prior", "my-prior"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(config: GenerateConfig, name: str) -> None:
    with pytest.raises(KcacheError, match=f"^{name} does not exist; name the --output-dir"):
        load_pipelines(replace(config, prior=name))
