"""Views: what their columns are called, which columns an encode fills, and what each is made with."""

import hashlib
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import encode_tiny

from kcache.encoding.columns import alpha_of, make_encoders
from kcache.encoding.config import EncodeConfig
from kcache.encoding.selection import column_names
from kcache.shards import Cache, KcacheError, UsageError, layout
from kcache.views import BUCKETS, CENTRE, View, parse_column

ROOT = Path(__file__).parent.parent
OPTIONS = EncodeConfig(dataset="pictures", cache="cache")
SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
VIEWS = st.builds(
    View, st.sampled_from([CENTRE, BUCKETS]) | st.integers(1, 99).map(lambda k: f"crop-{k}"), st.booleans()
)
SHA256 = hashlib.sha256(b"a picture").hexdigest()
Encoded = Callable[..., Cache]

# --- names


@given(view=VIEWS, resolution=st.integers(1, 4096))
def test_the_name_of_a_column_says_its_kind_view_and_resolution(view: View, resolution: int) -> None:
    latents = parse_column(view.latents_column(resolution))
    assert (latents.kind, latents.view, latents.resolution) == ("latents", view, resolution)
    image = parse_column(view.image_column(resolution))
    assert (image.kind, image.view, image.resolution) == ("image", view, resolution if view.cut == BUCKETS else None)
    assert layout.is_column_name(latents.name)
    assert layout.is_column_name(image.name)


def test_only_buckets_of_clip_have_a_resolution_in_their_name() -> None:
    assert View("crop-2", flip=True).image_column(512) == "image-crop-2-flip"
    assert View(BUCKETS).image_column(512) == "image-512-buckets"
    assert View(CENTRE).image_column(768) == "image"


@pytest.mark.parametrize("name", ["text", "text-sks", "text-a-photo-of-sks", "text-flip"])
def test_columns_of_captions_have_no_view(name: str) -> None:
    parsed = parse_column(name)
    assert (parsed.kind, parsed.view, parsed.resolution) == ("text", None, None)


@pytest.mark.parametrize(
    "name",
    [
        "latents", "latents-0", "latents-0512", "latents-512-crop-0", "latents-512-flip-crop-1", "image-512",
        "image-buckets", "image-512-crop-1", "image-flip-flip", "textual", "text-", "text-SKS", "samples", "",
        "text-" + "a" * 60,
    ],
)  # fmt: skip
def test_a_name_that_is_none_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UsageError, match=f"there is no column '{name}'; columns are text, image and latents-N"):
        parse_column(name)


# --- which columns


def chosen(existing: str = "", *, new: bool | None = None, **options: Any) -> str:
    """The columns of a cache that has ``existing``; a new one unless it has any."""
    new = not existing if new is None else new
    return " ".join(name.name for name in column_names(replace(OPTIONS, **options), existing.split(), new=new))


def test_a_new_cache_gets_all_kinds() -> None:
    assert chosen() == "text image latents-512"
    assert chosen(resolution=(768, 512)) == "text image latents-512 latents-768"


def test_each_view_has_columns_for_clip_and_movq() -> None:
    assert chosen(buckets=True) == "text image image-512-buckets latents-512 latents-512-buckets"
    assert chosen(random_crops=2) == (
        "text image image-crop-1 image-crop-2 latents-512 latents-512-crop-1 latents-512-crop-2"
    )
    assert chosen(buckets=True, flip=True, resolution=(64, 32)) == (
        "text image image-flip image-32-buckets image-32-buckets-flip image-64-buckets image-64-buckets-flip"
        " latents-32 latents-32-flip latents-32-buckets latents-32-buckets-flip"
        " latents-64 latents-64-flip latents-64-buckets latents-64-buckets-flip"
    )


def test_a_template_takes_the_place_of_the_plain_captions_in_a_new_cache_only() -> None:
    assert chosen(caption_template="a photo of sks {text}") == "text-a-photo-of-sks image latents-512"
    template = {"caption_template": "sks {text}", "text_column": "text-1"}
    assert chosen(**template) == "text-1 image latents-512"
    assert chosen("text image", **template) == "text text-1 image"


def test_a_cache_keeps_all_that_it_has_and_gets_what_is_asked_for() -> None:
    assert chosen("latents-512 image text") == "text image latents-512"
    assert chosen("text") == "text"
    assert chosen("text image latents-512", resolution=(768,)) == "text image latents-512 latents-768"
    assert chosen("text image latents-64", flip=True) == "text image image-flip latents-64 latents-64-flip"
    assert chosen("text image", buckets=True, resolution=(64,)) == (
        "text image image-64-buckets latents-64 latents-64-buckets"
    )


def test_a_cache_that_was_killed_before_its_first_shard_is_a_new_one() -> None:
    assert chosen("text", new=True) == "text image latents-512"
    assert chosen("text image-flip", new=True, flip=True) == "text image image-flip latents-512 latents-512-flip"


def test_flips_are_added_to_the_views_that_a_cache_has() -> None:
    had = "text image image-crop-1 latents-32 latents-32-crop-1 latents-64"
    assert chosen(had, flip=True) == (
        "text image image-flip image-crop-1 image-crop-1-flip latents-32 latents-32-flip latents-32-crop-1"
        " latents-32-crop-1-flip latents-64 latents-64-flip"
    )
    assert chosen(had, flip=True, resolution=(64,)).endswith("latents-32 latents-32-crop-1 latents-64 latents-64-flip")


def test_named_columns_are_exactly_these() -> None:
    assert chosen(columns=("image", "text")) == "text image"
    assert chosen("text image latents-64 latents-32", columns=("latents",)) == "latents-32 latents-64"
    assert chosen("text image", columns=("latents",), resolution=(64,), flip=True) == "latents-64 latents-64-flip"
    assert chosen(columns=("image-64-buckets", "latents-64-buckets")) == "image-64-buckets latents-64-buckets"
    assert chosen(columns=("text",), caption_template="sks {text}") == "text-sks"


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("--flip", {"flip": True, "columns": ("text",)}),
        ("--buckets", {"buckets": True, "columns": ("latents-512",)}),
        ("--random-crops", {"random_crops": 2, "columns": ("text",)}),
        ("--bucket-step", {"bucket_step": 32}),
        ("--crop-scale", {"crop_scale": 0.5, "buckets": True}),
        ("--crop-seed", {"crop_seed": 0}),
        ("--caption-template", {"caption_template": "sks {text}", "columns": ("image",)}),
    ],
)
def test_an_option_that_no_column_hears_is_refused(option: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{option} has no effect on the columns "):
        chosen(**options)


# --- what each column is made with


def fingerprints(cache: Cache | None, **options: Any) -> dict[str, str]:
    """The fingerprint of every column that an encode with these options would fill."""
    encoders = make_encoders(replace(OPTIONS, device="cpu", **options), cache)
    return {name: encoder.column.fingerprint for name, encoder in encoders.items()}


def recorded(cache: Cache) -> dict[str, str]:
    return {name: cache.column(name).fingerprint for name in cache.column_names()}


@pytest.fixture(scope="module")
def views(encoded: Encoded) -> Cache:
    """The ten pictures in every view, with options that are not the defaults."""
    return encoded(
        resolution=(32,), flip=True, buckets=True, bucket_step=8, random_crops=2, crop_scale=0.6, crop_seed=5,
        caption_template="a photo of sks {text}", alpha="drop",
    )  # fmt: skip


def test_plain_columns_are_fingerprinted_as_they_always_were() -> None:
    tiny = ROOT / "kcache" / "data" / "kandinsky-tiny"
    made = fingerprints(
        None,
        resolution=(64,),
        pretrained_prior_model_name_or_path=str(tiny / "prior"),
        pretrained_decoder_model_name_or_path=str(tiny / "decoder"),
    )
    assert made == {
        "text": "732b2f0b0975e0ac50349e76724a6f2c7aab157a84f95f735142e70985ca0fea",
        "image": "09e09d94bab0fde5ffa7b98bfd0bebdb152a269f4a7a97b70b2e1f8341e3f89b",
        "latents-64": "2710466b3a0f790c58c21f988a96942af3a4f6688b8ec6cdf900d0c3935308b7",
    }


def test_no_two_columns_share_a_fingerprint(views: Cache) -> None:
    assert len(set(recorded(views).values())) == len(views.column_names()) == 17


def test_a_second_encode_needs_no_options(views: Cache) -> None:
    assert fingerprints(views) == recorded(views)


def test_a_column_that_is_added_is_made_as_those_beside_it(views: Cache) -> None:
    added = make_encoders(replace(OPTIONS, device="cpu", resolution=(64,), random_crops=3, buckets=True), views)
    crop = added["latents-64-crop-3"].column
    assert crop.preprocessing["crop"] == {"kind": "random square", "number": 3, "scale": 0.6, "seed": 5}
    assert (crop.preprocessing["alpha"], crop.fields[0].dtype, crop.encode_dtype) == ("drop", "float32", "fp32")
    assert crop.encoder == views.column("latents-32").encoder
    assert added["latents-64-buckets"].column.preprocessing["crop"]["step"] == 8


@pytest.mark.parametrize(
    ("option", "value", "changed"),
    [
        ("alpha", "white", 16),
        ("store_dtype", "fp16", 17),
        ("encode_dtype", "bf16", 17),
        ("crop_scale", 0.7, 8),
        ("crop_seed", 6, 8),
        ("bucket_step", 4, 4),
    ],
)
def test_an_option_that_contradicts_the_records_makes_other_fingerprints(
    views: Cache, option: str, value: Any, changed: int
) -> None:
    before, after = recorded(views), fingerprints(views, **{option: value})
    assert before.keys() == after.keys()
    assert sum(before[name] != after[name] for name in before) == changed


def test_clip_and_movq_must_see_the_same_part_of_a_picture(views: Cache) -> None:
    with pytest.raises(UsageError, match="'image-crop-1' and 'latents-32-crop-1' must be cut alike and are not"):
        fingerprints(views, columns=("latents-32-crop-1",), crop_scale=0.9)


def test_columns_of_one_run_take_transparency_in_one_way(views: Cache) -> None:
    white = make_encoders(replace(OPTIONS, columns=("latents-64",), alpha="white", device="cpu"), views)
    with pytest.raises(UsageError, match=r"'image' \(--alpha drop\) and 'latents-64' \(--alpha white\)"):
        alpha_of([views.column("image"), white["latents-64"].column])


def test_a_checkpoint_folder_that_is_gone_is_named_with_the_option_that_replaces_it(
    tiny_prior: Path, tiny_decoder: Path, tmp_path: Path, pictures: Path
) -> None:
    prior = shutil.copytree(tiny_prior, tmp_path / "prior")
    cache = encode_tiny(tmp_path / "cache", pictures, prior, tiny_decoder, columns=("text",))
    shutil.rmtree(prior)
    with pytest.raises(KcacheError, match="say where it is now with --pretrained-prior-model-name-or-path"):
        fingerprints(cache)
    assert fingerprints(cache, pretrained_prior_model_name_or_path=str(tiny_prior)) == recorded(cache)


@pytest.mark.parametrize("scale", [0.0, -0.5, 1.01, math.nan])
def test_a_crop_scale_that_is_no_part_of_the_picture_is_refused(views: Cache, scale: float) -> None:
    with pytest.raises(UsageError, match="is not above 0 and at most 1"):
        fingerprints(views, crop_scale=scale)


def test_buckets_that_movq_cannot_shrink_are_refused(views: Cache) -> None:
    with pytest.raises(KcacheError, match="a bucket of 22 x 44 pixels does not fit: this MoVQ shrinks pictures by 4"):
        fingerprints(views, columns=("latents-32-buckets", "image-32-buckets"), bucket_step=2)
