"""Validation prompts are encoded once, by encoders that are then gone, and read back from OUT for ever after."""

import logging
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from diffusers import KandinskyV22PriorPipeline
from launched import in_two_processes
from safetensors.torch import load_file, save_file
from support import flip, relative_distance
from tiny import LONG_CAPTION, WIDTH
from torch import Tensor

from kcache.checkpoints import Checkpoint, Component
from kcache.shards import KcacheError
from kcache.training import prompts
from kcache.training.prompts import prompt_features, sampled_prompts
from kcache.training.sampling import TextFeatures

CPU = torch.device("cpu")
PROMPTS = ("a fox", "the face of a fox, orange and white, with a black nose")


@pytest.fixture
def prior(tiny_prior: Path) -> Checkpoint:
    return Checkpoint(str(tiny_prior))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list["weakref.ref[Any]"]:
    """The models that were loaded, as long as they live."""
    found: list[weakref.ref[Any]] = []
    load = Component.load

    def remembered(self: Component, model_class: Any, dtype: Any) -> Any:
        model = load(self, model_class, dtype)
        found.append(weakref.ref(model))
        return model

    monkeypatch.setattr(Component, "load", remembered)
    return found


@pytest.fixture(autouse=True)
def _said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "kcache"):
        yield


def the_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def tensors(features: TextFeatures) -> list[Tensor]:
    return [features.text_embeds, features.hidden_states, features.lengths]


def assert_equal(these: TextFeatures, those: TextFeatures) -> None:
    assert all(torch.equal(a, b) for a, b in zip(tensors(these), tensors(those), strict=True))


def test_a_resumed_run_reads_its_prompts_without_an_encoder(
    prior: Checkpoint, tmp_path: Path, loaded: list[Any]
) -> None:
    text, null = prompt_features(prior, PROMPTS, tmp_path, CPU)
    assert [one.shape[0] for one in tensors(text)] == [2, 2, 2]
    assert null.lengths.tolist() == [2]
    assert len(loaded) == 1
    again = prompt_features(prior, PROMPTS, tmp_path, CPU)
    assert len(loaded) == 1
    assert_equal(again[0], text)
    assert_equal(again[1], null)
    assert the_file(tmp_path).name.startswith("prompts-")


def test_the_decoder_needs_the_prior_once(prior: Checkpoint, tmp_path: Path, loaded: list[Any]) -> None:
    first = sampled_prompts(prior, PROMPTS, 3, 4.0, tmp_path, CPU)
    assert first.shape == (6, WIDTH)
    assert len(loaded) == 2  # the text encoder and the prior
    assert torch.equal(sampled_prompts(prior, PROMPTS, 3, 4.0, tmp_path, CPU), first)
    assert len(loaded) == 2


def test_the_encoders_are_gone_when_training_begins(prior: Checkpoint, tmp_path: Path, loaded: list[Any]) -> None:
    prompt_features(prior, PROMPTS, tmp_path, CPU)
    sampled_prompts(prior, PROMPTS, 1, 4.0, tmp_path, CPU)
    assert [one() for one in loaded] == [None, None, None]


def test_a_prompt_is_sampled_as_the_stock_pipeline_samples_it(prior: Checkpoint, tmp_path: Path) -> None:
    found = sampled_prompts(prior, PROMPTS, 2, 4.0, tmp_path, CPU)
    tiny_pipeline = stock(prior)
    expected = [
        tiny_pipeline(prompt, generator=torch.Generator().manual_seed(seed)).image_embeds
        for prompt in PROMPTS
        for seed in (0, 1)
    ]
    assert relative_distance([found], [torch.cat(expected)]) < 1e-5


def stock(prior: Checkpoint) -> Any:
    from diffusers import PriorTransformer, UnCLIPScheduler
    from transformers import CLIPImageProcessor, CLIPTextModelWithProjection, CLIPTokenizer
    from transformers import CLIPVisionModelWithProjection as Vision

    folder = Path(prior.name_or_path)
    pipeline = KandinskyV22PriorPipeline(
        prior=PriorTransformer.from_pretrained(folder / "prior"),
        image_encoder=Vision.from_pretrained(folder / "image_encoder"),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=UnCLIPScheduler.from_pretrained(folder / "scheduler"),
        image_processor=CLIPImageProcessor.from_pretrained(folder / "image_processor"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_other_prompts_and_other_weights_have_files_of_their_own(
    prior: Checkpoint, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    prompt_features(prior, PROMPTS, tmp_path, CPU)
    prompt_features(prior, PROMPTS[::-1], tmp_path, CPU)
    sampled_prompts(prior, PROMPTS, 1, 4.0, tmp_path, CPU)
    sampled_prompts(prior, PROMPTS, 2, 4.0, tmp_path, CPU)
    other = other_weights(prior, tmp_path_factory.mktemp("other"))
    prompt_features(other, PROMPTS, tmp_path, CPU)
    sampled_prompts(other, PROMPTS, 2, 4.0, tmp_path, CPU)
    assert len(list(tmp_path.iterdir())) == 6


def other_weights(prior: Checkpoint, folder: Path) -> Checkpoint:
    """The same checkpoint with another text encoder."""
    import shutil

    shutil.copytree(prior.name_or_path, folder / "prior")
    weights = folder / "prior" / "text_encoder" / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    return Checkpoint(str(folder / "prior"))


@pytest.mark.parametrize("damage", ["one bit", "cut", "foreign", "empty", "another's"])
def test_a_file_that_is_not_what_was_written_is_encoded_anew(
    prior: Checkpoint, tmp_path: Path, loaded: list[Any], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    text, null = prompt_features(prior, PROMPTS, tmp_path, CPU)
    path = the_file(tmp_path)
    whole = path.read_bytes()
    if damage == "one bit":
        flip(path, len(whole) - 3)
    elif damage == "another's":
        prompt_features(prior, ("a hen",), tmp_path / "other", CPU)
        path.write_bytes(the_file(tmp_path / "other").read_bytes())
    else:
        path.write_bytes({"cut": whole[:-5], "foreign": b"not tensors at all", "empty": b""}[damage])
    loaded.clear()
    again = prompt_features(prior, PROMPTS, tmp_path, CPU)
    assert len(loaded) == 1
    assert_equal(again[0], text)
    assert_equal(again[1], null)
    assert path.read_bytes() == whole
    assert f"{path} is damaged, or not what kcache wrote: the validation prompts are encoded anew" in caplog.messages


def test_an_encode_that_fails_leaves_no_file(
    prior: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(prompts, "encode_captions", refuse)
    with pytest.raises(KcacheError, match=r"do not fit into the memory of cpu .*leave --validation-prompts out"):
        prompt_features(prior, PROMPTS, tmp_path, CPU)
    assert not list(tmp_path.iterdir())


def test_a_prompt_that_is_cut_is_told(prior: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompt_features(prior, ("a fox", LONG_CAPTION), tmp_path, CPU)
    (said,) = [message for message in caplog.messages if "is cut" in message]
    assert said == f"validation prompt '{LONG_CAPTION}' is cut to 77 tokens: it has 171"


def encode_a_prompt(out: Path) -> None:
    """What each of two processes does; what it comes to goes to a file of its own."""
    logging.basicConfig(level=logging.INFO)
    rank = PartialState(cpu=True).process_index
    text, _ = prompt_features(Checkpoint((out / "prior").read_text()), ("a fox",), out, CPU)
    (out / f"sum-{rank}").write_text(str(float(text.text_embeds.sum())))


@pytest.mark.slow
def test_of_two_processes_the_main_one_encodes_and_the_other_reads(prior: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "prior").write_text(prior.name_or_path)
    said = in_two_processes(encode_a_prompt, out)
    assert (out / "sum-0").read_text() == (out / "sum-1").read_text()
    assert said.count("encoding 1 validation prompts") == 1
