"""Whole runs over views, buckets and captionings: resumed bit for bit, and refused where a cache lacks them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import done, refused
from folders import Train
from support import Array, metrics
from view_cache import (
    BUCKET_FLIPS,
    BUCKETS,
    CROPS,
    FLIPS,
    PLAIN,
    UPDATES,
    Config,
    add_column,
    column,
    make_view_cache,
    view_config,
)

from kcache.shards import Cache, Field, KcacheError
from kcache.training.train import train as run

WEIGHTS = "diffusion_pytorch_model.safetensors"
Make = Callable[..., Config]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return make_view_cache(tmp_path_factory.mktemp("views") / "cache")


@pytest.fixture
def make(cache: Cache, tiny_prior: Path, tiny_decoder: Path) -> Make:
    """``make(stage, out, **changes)``: the options of a run."""
    paths = {"prior": tiny_prior, "decoder": tiny_decoder}
    return lambda stage, out, **changes: view_config(stage, cache, paths[stage], out, **changes)


@pytest.fixture
def refusal(train: Train) -> Callable[..., str]:
    """``refusal("decoder", cache, "--buckets")``: the sentence of a run that is refused before it writes anything."""

    def sentence(stage: str, cache: Cache, *options: object, code: int = 2) -> str:
        return refused(train(stage, cache.root, "--ignore-encoder-mismatch", *options), code)

    return sentence


Refusal = Callable[..., str]


# --- whole runs

RUNS = [
    ("decoder", {"buckets": True, "random_flip": True}),
    ("decoder", {"random_crops": True}),
    ("prior", {"random_flip": True, "random_crops": True, "text_column": "text-sks"}),
]


def weights(out: Path) -> bytes:
    return next(out.glob(f"[pu]*/{WEIGHTS}")).read_bytes()


@pytest.mark.parametrize(("stage", "options"), RUNS, ids=["buckets", "crops", "prior"])
def test_a_run_that_is_resumed_in_the_middle_ends_bit_identical(
    make: Make, tmp_path: Path, stage: str, options: dict[str, Any]
) -> None:
    config = make(stage, tmp_path / "straight", **options)
    run(config)
    (tmp_path / "killed").mkdir()
    shutil.copytree(tmp_path / "straight" / "checkpoint-2", tmp_path / "killed" / "checkpoint-2")
    run(replace(config, output_dir=str(tmp_path / "killed"), resume_from_checkpoint="latest"))
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")
    ours, theirs = (metrics(tmp_path / name) for name in ("killed", "straight"))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs[2:]]
    assert len({line["loss"] for line in theirs}) == UPDATES


@pytest.mark.parametrize(("stage", "options"), RUNS[:1], ids=["buckets"])
def test_accumulation_changes_nothing_but_rounding(
    make: Make, tmp_path: Path, stage: str, options: dict[str, Any]
) -> None:
    losses = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        out = tmp_path / str(batch_size)
        changes = {"train_batch_size": batch_size, "gradient_accumulation_steps": accumulation, **options}
        run(make(stage, out, **changes))
        losses.append([line["loss"] for line in metrics(out)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_both_trainers_take_the_options_on_the_command_line(train: Train, cache: Cache, tmp_path: Path) -> None:
    common = ["--random-flip", "--ignore-encoder-mismatch", "--output-dir"]
    result = done(train("decoder", cache.root, "--buckets", *common, tmp_path / "decoder"))
    assert "Trained for 1 updates" in result.stdout
    result = done(train("prior", cache.root, "--text-column=text-sks", "--random-crops", *common, tmp_path / "prior"))
    assert "Trained for 1 updates" in result.stdout


def test_shapes_with_few_samples_are_said_to_repeat(train: Train, cache: Cache) -> None:
    options = ["--buckets", "--ignore-encoder-mismatch", "--train-batch-size=3", "--probe-samples=0"]
    result = done(train("decoder", cache.root, *options))
    assert (
        "Warning: 1 of 3 shapes with fewer samples than the 3 of an update: their updates repeat samples"
        in result.stderr
    )
    result = done(
        train("decoder", cache.root, "--ignore-encoder-mismatch", "--output-dir", cache.root.parent / "plain")
    )
    assert "shapes" not in result.stderr


# --- what is refused


@pytest.mark.usefixtures("nothing_trained")
@pytest.mark.parametrize(
    ("stage", "options", "there", "missing", "remedy"),
    [
        ("decoder", "--random-flip", PLAIN, "latents-32-flip, image-flip", " --resolution 32 --flip"),
        ("decoder", "--buckets", PLAIN, "latents-32-buckets, image-32-buckets", " --resolution 32 --buckets"),
        (
            "decoder",
            "--buckets --random-flip",
            (*FLIPS, *BUCKETS),
            "latents-32-buckets-flip, image-32-buckets-flip",
            " --resolution 32 --buckets --flip",
        ),
        ("decoder", "--random-crops", PLAIN, "latents-32-crop-1, image-crop-1", " --resolution 32 --random-crops 4"),
        ("decoder", "--random-crops", CROPS[1:], "image-crop-1", " --resolution 32 --random-crops 3"),
        ("prior", "--random-flip", PLAIN, "image-flip", " --flip"),
        ("prior", "--random-crops", PLAIN, "image-crop-1", " --random-crops 4"),
        (
            "prior",
            "--random-crops --random-flip",
            ("text", *CROPS),
            "image-crop-1-flip, image-crop-2-flip, image-crop-3-flip",
            " --random-crops 3 --flip",
        ),
    ],
)
def test_a_view_that_the_cache_lacks_is_refused_with_the_command_that_adds_it(
    refusal: Refusal, tmp_path: Path, stage: str, options: str, there: tuple[str, ...], missing: str, remedy: str
) -> None:
    cache = make_view_cache(tmp_path / "cache", there)
    assert refusal(stage, cache, *options.split()) == (
        f"{cache.root} lacks {missing} (it has: {', '.join(sorted(there))}); add what is missing with"
        f" 'kcache encode DATASET {cache.root}{remedy}'"
    )


@pytest.mark.usefixtures("nothing_trained")
def test_buckets_and_random_crops_exclude_each_other(refusal: Refusal, cache: Cache) -> None:
    said = refusal("decoder", cache, "--buckets", "--random-crops")
    assert said == "a picture is cut to its bucket or at random; give --buckets or --random-crops, not both"


@pytest.mark.usefixtures("nothing_trained")
def test_buckets_alone_are_not_taken_for_squares(refusal: Refusal, tmp_path: Path) -> None:
    cache = make_view_cache(tmp_path / "cache", BUCKETS)
    assert refusal("decoder", cache) == (
        f"{cache.root} has no latents at 32 px (it has: 32-buckets); use --buckets, or add them with"
        f" 'kcache encode DATASET {cache.root} --resolution 32'"
    )
    said = refusal("decoder", cache, "--resolution", "64")
    assert said.startswith(f"{cache.root} has no latents at 64 px (it has: 32-buckets); run 'kcache encode DATASET")


@pytest.mark.usefixtures("nothing_trained")
def test_a_captioning_is_never_chosen_in_place_of_another(refusal: Refusal, tmp_path: Path) -> None:
    cache = make_view_cache(tmp_path / "cache", ["text-sks", "image"])
    said = f"{cache.root} has no captions in a column '{{}}'; choose --text-column text-sks"
    assert refusal("prior", cache) == said.format("text")
    for name in ("sks", "image"):
        assert refusal("prior", cache, "--text-column", name) == said.format(name)
    add_column(cache, column("text"))
    assert refusal("prior", cache, "--text-column", "sks") == (
        f"{cache.root} has no captions in a column 'sks'; choose --text-column text or --text-column text-sks"
    )


@pytest.mark.usefixtures("nothing_trained")
@pytest.mark.parametrize("name", ["text", "image"])
def test_a_cache_without_captions_is_refused(refusal: Refusal, tmp_path: Path, name: str) -> None:
    cache = make_view_cache(tmp_path / "cache", ["image"])
    assert refusal("prior", cache, "--text-column", name) == (
        f"{cache.root} has no captions; add them with 'kcache encode DATASET {cache.root} --columns text'"
    )


@pytest.mark.usefixtures("nothing_trained")
def test_a_resolution_that_is_missing_names_no_views(refusal: Refusal, cache: Cache) -> None:
    assert refusal("decoder", cache, "--resolution", "64") == (
        f"{cache.root} has no latents at 64 px (it has: 32, 32-buckets); use --resolution 32, or add them with"
        f" 'kcache encode DATASET {cache.root} --resolution 64'"
    )


@pytest.mark.usefixtures("nothing_trained")
def test_a_bucket_that_the_unet_cannot_halve_is_named(refusal: Refusal, tmp_path: Path, tiny_decoder: Path) -> None:
    cache = make_view_cache(tmp_path / "cache", BUCKETS[:1])
    add_column(cache, column(BUCKETS[1]), sample_6=latents(4, 7, 8))
    assert refusal("decoder", cache, "--buckets", code=1) == (
        f"column 'latents-32-buckets' of {cache.root} has a bucket with latents of 7x8 and the UNet of {tiny_decoder}"
        " halves them 1 times; encode with a larger --bucket-step"
    )


@pytest.mark.usefixtures("nothing_trained")
def test_buckets_of_other_channels_are_refused(refusal: Refusal, tmp_path: Path, tiny_decoder: Path) -> None:
    cache = make_view_cache(tmp_path / "cache", BUCKETS[:1])
    add_column(cache, column(BUCKETS[1]), sample_6=latents(6, 8, 8))
    said = refusal("decoder", cache, "--buckets", code=1)
    assert f"has latents of 6 and {tiny_decoder} takes 4 (in_channels)" in said


@pytest.mark.usefixtures("nothing_trained")
def test_mirrored_buckets_of_other_shapes_are_refused(refusal: Refusal, tmp_path: Path) -> None:
    cache = make_view_cache(tmp_path / "cache", (*BUCKETS, BUCKET_FLIPS[0]))
    add_column(cache, column(BUCKET_FLIPS[1]), sample_2=latents(4, 10, 6))
    said = refusal("decoder", cache, "--buckets", "--random-flip", code=1)
    assert "of different shapes (sample 'sample 2': 4x6x10 and 4x10x6); encode the second like the first with" in said
    assert said.endswith("--replace-column latents-32-buckets-flip'")


@pytest.mark.usefixtures("nothing_trained")
@pytest.mark.parametrize("shape", [(4, 6, 8), (-4, -8, 8), (4, 0, 8)])
def test_a_shape_that_is_not_that_of_the_latents_is_damage(
    refusal: Refusal, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    cache = make_view_cache(tmp_path / "cache", BUCKETS[:1])
    add_column(cache, column(BUCKETS[1]), sample_4={"shape": np.asarray(shape, np.int32)})
    said = refusal("decoder", cache, "--buckets", code=1)
    assert said.startswith(f"sample 'sample 4' has a shape of {'x'.join(map(str, shape))} and latents of 512 bytes")
    assert said.endswith(f"in column 'latents-32-buckets' of {cache.root}; run 'kcache verify {cache.root} --deep'")


@pytest.mark.usefixtures("nothing_trained")
@pytest.mark.parametrize(
    ("stage", "kind", "changes", "said"),
    [
        ("prior", "image", {"encoder": {"class": "none", "weights": "1" * 64}}, "weights 000000000000, not 1111111111"),
        ("decoder", "latents-32", {"fields": (Field("latents", "float32", (4, 8, 8)),)}, "dtype float16, not float32"),
    ],
)
def test_views_by_other_encoders_are_not_drawn_among(
    refusal: Refusal, tmp_path: Path, stage: str, kind: str, changes: dict[str, Any], said: str
) -> None:
    names = [name for name in (*PLAIN, *FLIPS) if name != f"{kind}-flip"]
    cache = make_view_cache(tmp_path / "cache", names)
    add_column(cache, column(f"{kind}-flip", **changes))
    sentence = refusal(stage, cache, "--random-flip", code=1)
    assert sentence.startswith(f"column '{kind}' of {cache.root} was encoded otherwise than '{kind}-flip' ({said}")
    assert sentence.endswith(f"--replace-column {kind}-flip'")


def test_a_run_is_not_resumed_with_other_views(make: Make, tmp_path: Path) -> None:
    config = make("decoder", tmp_path, buckets=True, max_train_steps=1)
    run(config)
    for changes in ({"buckets": False}, {"random_flip": True}, {"buckets": False, "random_crops": True}):
        with pytest.raises(KcacheError, match=r"was made with (snapshot|columns) .* and this run has"):
            run(replace(config, resume_from_checkpoint="latest", max_train_steps=2, **changes))


def latents(*shape: int) -> dict[str, Array]:
    """Latents of another shape than the sample's own."""
    return {"latents": np.zeros(shape, np.float16).reshape(-1), "shape": np.asarray(shape, np.int32)}
