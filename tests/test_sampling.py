"""Image embeddings sampled from text features are those that the stock prior pipeline gives."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import KandinskyV22PriorPipeline, PriorTransformer, UnCLIPScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from support import relative_distance
from tiny import LONG_CAPTION, WIDTH
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from kcache.checkpoints import Checkpoint
from kcache.progress import hush_libraries
from kcache.shards import Cache, KcacheError
from kcache.shards.reader import read_null
from kcache.text_features import encode_captions, load_tokenizer
from kcache.training.kept_text import text_run_once
from kcache.training.sampling import (
    HUB_SCHEDULER,
    TextFeatures,
    first_noise,
    sample_image_embeds,
    sampling_scheduler,
)

CPU = torch.device("cpu")
SHORT = ["a fox", "eine Möhre, 胡萝卜 🥕", "the face of a fox, orange and white, with a black nose", ""]
CASES = {"short captions": SHORT, "one caption of 77 tokens": [*SHORT, LONG_CAPTION]}


@pytest.fixture(scope="module")
def pipeline(tiny_prior: Path) -> Any:
    """The stock pipeline, which encodes prompts by itself."""
    pipeline = KandinskyV22PriorPipeline(
        prior=PriorTransformer.from_pretrained(tiny_prior, subfolder="prior"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(tiny_prior / "image_encoder"),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(tiny_prior / "text_encoder"),
        tokenizer=load_tokenizer(tiny_prior / "tokenizer"),
        scheduler=UnCLIPScheduler.from_pretrained(tiny_prior, subfolder="scheduler"),
        image_processor=CLIPImageProcessorPil.from_pretrained(tiny_prior / "image_processor"),
    )
    pipeline.set_progress_bar_config(disable=True)
    hush_libraries()
    return pipeline


@pytest.fixture
def model(tiny_prior: Path) -> Any:
    return PriorTransformer.from_pretrained(tiny_prior, subfolder="prior").eval()


def features(pipeline: Any, captions: list[str]) -> TextFeatures:
    return TextFeatures.of(encode_captions(pipeline.text_encoder, pipeline.tokenizer, captions, CPU))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampled(pipeline: Any, model: Any, captions: list[str], noise: Tensor, generator: Any, **options: Any) -> Tensor:
    """By kcache, with the scheduler of the pipeline and the empty caption for null."""
    scheduler = UnCLIPScheduler.from_config(pipeline.scheduler.config)
    text, null = (
        features(pipeline, captions),
        features(pipeline, [""] * len(captions)),
    )  # in batches like the pipeline's
    null = TextFeatures(null.text_embeds[:1], null.hidden_states[:1], null.lengths[:1])
    return sample_image_embeds(model, scheduler, text, null, noise_BD=noise, generator=generator, **options)


def one_by_one(pipeline: Any, model: Any, captions: list[str], **options: Any) -> Tensor:
    """By kcache, caption N with all its noise from seed N."""
    generators = [seeded(n) for n in range(len(captions))]
    return sampled(pipeline, model, captions, first_noise(model, generators), generators, **options)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("captions", CASES.values(), ids=CASES)
def test_sampled_embeddings_are_those_of_the_stock_pipeline(
    pipeline: Any, model: Any, captions: list[str], guidance_scale: float
) -> None:
    noise = torch.randn(len(captions), WIDTH, generator=seeded(7))
    expected = pipeline(captions, latents=noise, generator=seeded(3), guidance_scale=guidance_scale).image_embeds
    found = sampled(pipeline, model, captions, noise, seeded(3), guidance_scale=guidance_scale)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert float(expected.std()) > 0.1
    assert relative_distance([found], [expected]) < 1e-5  # rounding differs, and guidance makes it larger


def test_a_negative_prompt_that_is_empty_is_the_null_caption(pipeline: Any, model: Any) -> None:
    noise = torch.randn(2, WIDTH, generator=seeded(7))
    expected = pipeline(SHORT[0], negative_prompt="", latents=noise, generator=seeded(3))
    found = sampled(pipeline, model, [SHORT[0], ""], noise, seeded(3))
    assert relative_distance([found], [torch.cat(expected.to_tuple())]) < 1e-5


def test_a_caption_with_a_generator_of_its_own_is_sampled_as_if_it_were_alone(pipeline: Any, model: Any) -> None:
    captions = [*SHORT, LONG_CAPTION]
    together = one_by_one(pipeline, model, captions)
    alone = torch.cat([pipeline(one, generator=seeded(n)).image_embeds for n, one in enumerate(captions)])
    assert relative_distance([together], [alone]) < 1e-5


def test_captions_are_run_once_at_the_length_of_the_longest(pipeline: Any, model: Any) -> None:
    lengths: list[int] = []
    model.encoder_hidden_states_proj.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    one_by_one(pipeline, model, ["a fox"], steps=3)
    one_by_one(pipeline, model, ["a fox", LONG_CAPTION], steps=2)
    assert lengths == [8, 77]


def texts_run(model: Any) -> list[int]:
    """A list that grows by the captions in a batch whenever text enters the model."""
    runs: list[int] = []
    model.encoder_hidden_states_proj.register_forward_pre_hook(lambda _, args: runs.append(len(args[0])))
    return runs


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("negative", [None, "a blue cup"])
def test_the_stock_pipeline_gives_the_same_with_the_text_run_once(
    pipeline: Any, guidance_scale: float, negative: str | None
) -> None:
    prompts, options = [SHORT[0], SHORT[1], LONG_CAPTION], {"guidance_scale": guidance_scale, "num_inference_steps": 7}

    def embeds() -> list[Tensor]:
        made = [pipeline(one, negative_prompt=negative, generator=seeded(3), **options) for one in prompts]
        return [tensor for one in made for tensor in one.to_tuple()]

    expected, runs = embeds(), texts_run(pipeline.prior)
    with text_run_once(pipeline.prior):
        found = embeds()
    assert relative_distance(found, expected) < 1e-5
    rows = (1 if guidance_scale == 1 else 2) * (1 if negative is None else 2)
    assert runs == [rows] * len(prompts)


def test_a_model_is_as_before_after_its_text_was_run_once(pipeline: Any) -> None:
    expected = pipeline("a fox", generator=seeded(3)).image_embeds
    with pytest.raises(KeyboardInterrupt), text_run_once(pipeline.prior):
        raise KeyboardInterrupt
    runs = texts_run(pipeline.prior)
    assert torch.equal(pipeline("a fox", generator=seeded(3)).image_embeds, expected)
    assert len(runs) == 25


def test_a_prior_that_is_built_otherwise_runs_its_text_at_every_step(pipeline: Any, model: Any) -> None:
    runs = texts_run(model)
    model.set_attn_processor(AttnProcessor())
    found = one_by_one(pipeline, model, SHORT, steps=3)
    assert len(runs) == 3
    with text_run_once(model):
        assert "forward" not in vars(model)
    model.set_attn_processor(AttnProcessor2_0())
    assert relative_distance([one_by_one(pipeline, model, SHORT, steps=3)], [found]) < 1e-5


def test_mixed_precision_and_half_weights_give_fp32_that_is_close(pipeline: Any, model: Any) -> None:
    expected = one_by_one(pipeline, model, SHORT)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = one_by_one(pipeline, model, SHORT)
    halved = one_by_one(pipeline, model.to(torch.bfloat16), SHORT)
    for found in (mixed, halved):
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        assert float((found - expected).norm() / expected.norm()) < 0.1


def test_the_cached_null_caption_is_the_one_that_guidance_needs(
    pipeline: Any, model: Any, encoded: Callable[..., Cache]
) -> None:
    cache = encoded(alpha="drop")
    cached = read_null(cache, cache.column("text"))
    null = TextFeatures.of([(cached["text_embeds"][0], cached["hidden_states"])])
    live = features(pipeline, [""])
    assert null.lengths.tolist() == live.lengths.tolist() == [2]
    torch.testing.assert_close(null.text_embeds, live.text_embeds, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(null.hidden_states, live.hidden_states, atol=1e-6, rtol=1e-6)


def test_the_scheduler_is_the_checkpoints_own(tiny_prior: Path) -> None:
    assert sampling_scheduler(Checkpoint(str(tiny_prior))).config.clip_sample_range == 5.0


def test_a_bare_prior_is_sampled_with_the_schedule_of_the_hub(
    tiny_prior: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_prior / "prior", tmp_path / "bare" / "prior")
    with caplog.at_level(logging.INFO, "kcache"):
        scheduler = sampling_scheduler(Checkpoint(str(tmp_path / "bare")))
    assert dict(scheduler.config).items() >= HUB_SCHEDULER.items()
    assert caplog.messages == [f"{tmp_path / 'bare'} has no scheduler: sampling with that of kandinsky-2-2-prior"]


def test_a_scheduler_that_is_damaged_is_refused(tiny_prior: Path, tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(KcacheError, match=r"scheduler_config.json is not JSON \("):
        sampling_scheduler(Checkpoint(str(tmp_path)))


def test_the_tokenizer_of_the_checkpoint_is_read_from_its_folder(tiny_prior: Path) -> None:
    assert load_tokenizer(tiny_prior / "tokenizer")("a photo of a cat").input_ids[:3] == [49406, 320, 1125]
