"""`kcache info --fits` says of each column what training would say of it, before anything is trained."""

import json
import shutil
from pathlib import Path

import pytest
from commands import done, kcache, refused
from folders import Train
from view_cache import BUCKETS, make_view_cache

from kcache.fit_report import fits
from kcache.shards import Cache


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, tiny_prior: Path, tiny_decoder: Path) -> dict[str, Path]:
    """Both checkpoints, their models said to be of other dimensions."""
    made = {}
    for stage, folder, model, changes in (
        ("prior", tiny_prior, "prior", {"embedding_dim": 24}),
        ("decoder", tiny_decoder, "unet", {"in_channels": 9, "encoder_hid_dim": 32}),
    ):
        made[stage] = shutil.copytree(folder, tmp_path_factory.mktemp("narrow") / stage)
        path = made[stage] / model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return made


def test_a_cache_fits_the_checkpoints_that_made_it(whole: Path, tiny_prior: Path, tiny_decoder: Path) -> None:
    lines = done(kcache("info", whole, "--fits", tiny_prior, tiny_decoder)).stdout.splitlines()
    assert lines == [
        f"image        prior {tiny_prior}: fits (its encoder is the checkpoint's own)",
        f"text         prior {tiny_prior}: fits (its encoder is the checkpoint's own)",
        f"image        decoder {tiny_decoder}: fits (the encoder was not compared)",
        f"latents-32   decoder {tiny_decoder}: fits (its encoder is the checkpoint's own)",
    ]


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_what_does_not_fit_is_said_as_training_would_say_it(
    train: Train, whole: Path, narrow: dict[str, Path], stage: str
) -> None:
    result = done(kcache("info", whole, "--fits", narrow[stage], "--json"), code=1)
    why = [fit["why_not"] for fit in json.loads(result.stdout) if fit["why_not"]]
    assert len(why) == 2
    assert refused(train(stage, whole, checkpoint=narrow[stage])) in why


def test_another_encoder_is_told(whole: Path, tiny_prior: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_prior, tmp_path / "other")
    shutil.copy(other / "image_encoder" / "model.safetensors", other / "text_encoder" / "model.safetensors")
    why = {fit.column: fit.why_not for fit in fits(Cache(whole), str(other))}
    assert why["image"] is None
    assert str(why["text"]).startswith(f"column 'text' of {whole} was encoded with another text_encoder (from ")


def test_every_shape_of_a_bucket_is_looked_at(tiny_decoder: Path, tmp_path: Path) -> None:
    cache = make_view_cache(tmp_path / "views", BUCKETS)
    folder = shutil.copytree(tiny_decoder, tmp_path / "deep")
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [16, 32, 32]}))
    why = {fit.column: fit.why_not for fit in fits(cache, str(folder))}
    assert why["image-32-buckets"] is None
    assert "has a bucket with latents of 6x10 and the UNet of" in str(why["latents-32-buckets"])


def test_an_encoder_that_is_not_there_is_not_compared(whole: Path, tiny_prior: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_prior / "prior", tmp_path / "alone" / "prior")
    found = fits(Cache(whole), str(tmp_path / "alone"))
    assert [(fit.column, fit.why_not, fit.encoder_compared) for fit in found] == [
        ("image", None, False),
        ("text", None, False),
    ]


def test_of_a_checkpoint_on_the_hub_only_configurations_are_fetched(
    whole: Path, tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patterns: list[str] = []

    def download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        patterns.extend(allow_patterns)
        return str(tiny_decoder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = fits(Cache(whole), "someone/a-decoder")
    assert {fit.column: (fit.why_not, fit.encoder_compared) for fit in found} == {
        "image": (None, False),
        "latents-32": (None, False),
    }
    assert set(patterns) == {"prior/*.json", "prior/*.txt", "unet/*.json", "unet/*.txt"}


def test_a_checkpoint_with_neither_stage_is_refused(whole: Path, tmp_path: Path) -> None:
    said = refused(kcache("info", whole, "--fits", tmp_path))
    assert said.startswith(
        f"checkpoint {tmp_path} has neither 'prior' nor 'unet'; name a folder or hub id in the layout"
    )
