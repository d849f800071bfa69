"""What is encoded equals what the reference computes at each step, from its equations, for every awkward picture."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference import Encoders, open_on_white, open_picture, square
from support import Array, features, ids
from tiny import LONG_CAPTION, PIXELS

from kcache.shards import Cache, read_null

Encoded = Callable[..., Cache]
CLOSE = {"rtol": 0, "atol": 1e-5}
TRANSPARENT = ("apple.webp", "see-through.png", "more/möhre.png")
OPAQUE = ("grey.png", "turned.jpg")


@pytest.fixture(scope="module")
def live(tiny_prior: Path, tiny_decoder: Path) -> Encoders:
    return Encoders(tiny_prior, tiny_decoder)


@pytest.fixture(scope="module", params=["tar", "h5"])
def cache(request: pytest.FixtureRequest, encoded: Encoded) -> Cache:
    return encoded(format=request.param, alpha="drop")


def captions(cache: Cache) -> dict[str, list[str]]:
    return {row["id"]: row["captions"] for shard in range(cache.shard_count) for row in cache.samples(shard)}


def each_caption(text: dict[str, Array]) -> list[tuple[Array, Array]]:
    """``(text_embeds, hidden_states)`` of every caption of one sample."""
    ends = np.cumsum(text["lengths"])
    return list(zip(text["text_embeds"], np.split(text["hidden_states"], ends[:-1]), strict=True))


def test_the_cache_holds_every_picture_once(cache: Cache, pictures: Path) -> None:
    found = {p.relative_to(pictures).as_posix() for p in pictures.rglob("*") if p.suffix in (".png", ".jpg", ".webp")}
    assert sorted(ids(cache)) == ids(cache) == sorted(found)
    assert len(found) == 10


def test_text_features_are_those_of_the_padded_unmasked_encoder(cache: Cache, live: Encoders) -> None:
    stored = features(cache, "text")
    for sample, texts in captions(cache).items():
        expected = live.text(texts)
        for i, (embeds, hidden_states) in enumerate(each_caption(stored[sample])):
            real = expected.hidden_states[i][expected.mask[i]]
            np.testing.assert_allclose(embeds, expected.embeds[i], **CLOSE, err_msg=sample)
            np.testing.assert_allclose(hidden_states, real, **CLOSE, err_msg=sample)


def test_captions_encoded_at_their_own_length_differ_by_rounding_alone(encoded: Encoded, cache: Cache) -> None:
    trimmed = encoded(columns=("text",), trim_captions=True)
    assert trimmed.column("text").preprocessing["padded_to_multiple_of"] == 8
    assert trimmed.column("text").fingerprint != cache.column("text").fingerprint
    padded = features(cache, "text")
    for sample, text in features(trimmed, "text").items():
        assert text["lengths"].tolist() == padded[sample]["lengths"].tolist()
        for field in ("text_embeds", "hidden_states"):
            np.testing.assert_allclose(text[field], padded[sample][field], rtol=0, atol=2e-6, err_msg=sample)


def test_only_real_tokens_are_stored(cache: Cache) -> None:
    lengths = {sample: text["lengths"].tolist() for sample, text in features(cache, "text").items()}
    assert captions(cache)["long-caption.webp"] == [LONG_CAPTION]
    assert lengths["long-caption.webp"] == [77]
    assert lengths["empty-caption.webp"] == [2]
    assert lengths["apple.webp"] == [4]
    assert len(lengths["two-captions.webp"]) == 2


def test_image_embeddings_are_those_of_the_pil_processor(cache: Cache, live: Encoders, pictures: Path) -> None:
    for sample, stored in features(cache, "image").items():
        expected = live.image([open_picture(pictures / sample)])[0]
        np.testing.assert_allclose(stored["image_embeds"], expected, **CLOSE, err_msg=sample)


def test_latents_are_movqs_before_quantisation(cache: Cache, live: Encoders, pictures: Path) -> None:
    for sample, stored in features(cache, "latents-32").items():
        expected = live.latents([open_picture(pictures / sample)], PIXELS)[0]
        np.testing.assert_allclose(stored["latents"], expected, **CLOSE, err_msg=sample)


@pytest.fixture(scope="module")
def views(encoded: Encoded) -> Cache:
    """Every view of the pictures, transparency dropped as in the reference."""
    return encoded(flip=True, buckets=True, bucket_step=8, random_crops=2, crop_scale=0.6, alpha="drop")


def cut(picture: Image.Image, crop: Array) -> Image.Image:
    """The part of a picture that a ``crop`` field tells of."""
    left, top, width, height = crop.tolist()
    return picture.crop((left, top, left + width, top + height))


def pixels(picture: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """A picture of this width and height in [-1, 1] (1, 3, H, W)."""
    small = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=1)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def movq(live: Encoders, picture: torch.Tensor) -> Array:
    """Latents (C, H, W) of one picture's pixels."""
    return np.asarray(live.movq.encode(picture).latents[0])


def test_latents_of_buckets_are_those_of_the_recorded_crop(views: Cache, live: Encoders, pictures: Path) -> None:
    shapes = set()
    for sample, stored in features(views, "latents-32-buckets").items():
        channels, height, width = shape = tuple(stored["shape"].tolist())
        assert stored["latents"].shape == (channels * height * width,)
        expected = movq(live, pixels(cut(open_picture(pictures / sample), stored["crop"]), (4 * width, 4 * height)))
        np.testing.assert_allclose(stored["latents"].reshape(shape), expected, **CLOSE, err_msg=sample)
        shapes.add(shape)
    assert shapes == {(4, 8, 8), (4, 6, 10), (4, 10, 6)}  # 32 x 32, 40 x 24 and 24 x 40 pixels


def test_latents_of_random_crops_are_those_of_the_recorded_crop(views: Cache, live: Encoders, pictures: Path) -> None:
    for column in ("latents-32-crop-1", "latents-32-crop-2"):
        for sample, stored in features(views, column).items():
            expected = movq(live, pixels(cut(open_picture(pictures / sample), stored["crop"]), (PIXELS, PIXELS)))
            np.testing.assert_allclose(stored["latents"], expected, **CLOSE, err_msg=sample)


@pytest.mark.parametrize("view", ["crop-1", "crop-2", "32-buckets"])
def test_clip_sees_the_same_crop_as_movq(views: Cache, live: Encoders, pictures: Path, view: str) -> None:
    latents = features(views, f"latents-{view}" if "buckets" in view else f"latents-32-{view}")
    for sample, stored in features(views, f"image-{view}").items():
        expected = live.image([cut(open_picture(pictures / sample), latents[sample]["crop"])])[0]
        np.testing.assert_allclose(stored["image_embeds"], expected, **CLOSE, err_msg=sample)


def test_flipped_latents_are_those_of_the_mirrored_pixels(views: Cache, live: Encoders, pictures: Path) -> None:
    for sample, stored in features(views, "latents-32-flip").items():
        expected = movq(live, square(open_picture(pictures / sample), PIXELS)[None].flip(3))
        np.testing.assert_allclose(stored["latents"], expected, **CLOSE, err_msg=sample)


@pytest.mark.parametrize("column", ["latents-32-buckets", "latents-32-crop-1"])
def test_a_flipped_view_is_the_mirrored_cut_of_its_view(
    views: Cache, live: Encoders, pictures: Path, column: str
) -> None:
    plain = features(views, column)
    for sample, stored in features(views, f"{column}-flip").items():
        assert stored["crop"].tolist() == plain[sample]["crop"].tolist()
        channels, height, width = stored.get("shape", np.asarray((4, 8, 8))).tolist()
        small = pixels(cut(open_picture(pictures / sample), stored["crop"]), (4 * width, 4 * height))
        latents = stored["latents"].reshape(channels, height, width)
        np.testing.assert_allclose(latents, movq(live, small.flip(3)), **CLOSE, err_msg=sample)


def test_flipped_embeddings_are_those_of_the_mirrored_pixels(views: Cache, live: Encoders, pictures: Path) -> None:
    for sample, stored in features(views, "image-flip").items():
        prepared = live.processor([open_picture(pictures / sample)], return_tensors="pt").pixel_values
        expected = live.image_pixels(prepared.flip(3))[0]
        np.testing.assert_allclose(stored["image_embeds"], expected, **CLOSE, err_msg=sample)


def test_the_plain_columns_do_not_change_with_other_views_beside_them(views: Cache, encoded: Encoded) -> None:
    alone = encoded(format="tar", alpha="drop")
    for column in ("text", "image", "latents-32"):
        assert views.column(column).fingerprint == alone.column(column).fingerprint
        among_views = features(views, column)
        for sample, fields in features(alone, column).items():
            assert {f: a.tobytes() for f, a in fields.items()} == {
                f: a.tobytes() for f, a in among_views[sample].items()
            }


def test_a_templated_column_holds_the_captions_inside_the_template(
    encoded: Encoded, live: Encoders, pictures: Path
) -> None:
    cache = encoded(columns=("text",), caption_template="a photo of {{sks}} {text}!")
    stored = features(cache, "text-a-photo-of-sks")
    for sample, texts in captions(cache).items():
        expected = live.text([f"a photo of {{sks}} {text}!" for text in texts])
        for i, (embeds, hidden_states) in enumerate(each_caption(stored[sample])):
            np.testing.assert_allclose(embeds, expected.embeds[i], **CLOSE, err_msg=sample)
            np.testing.assert_allclose(hidden_states, expected.hidden_states[i][expected.mask[i]], **CLOSE)
    null = read_null(cache, cache.column("text-a-photo-of-sks"))
    np.testing.assert_allclose(null["text_embeds"], live.text([""]).embeds, **CLOSE)


def test_the_null_caption_is_the_encoded_empty_string(cache: Cache, live: Encoders) -> None:
    null, expected = read_null(cache, cache.column("text")), live.text([""])
    np.testing.assert_allclose(null["text_embeds"], expected.embeds, **CLOSE)
    np.testing.assert_allclose(null["hidden_states"], expected.hidden_states[expected.mask], **CLOSE)
    assert null["lengths"].tolist() == [2]


def test_the_null_image_is_the_embedding_of_a_tensor_of_zeros(cache: Cache, live: Encoders) -> None:
    null = read_null(cache, cache.column("image"))["image_embeds"]
    np.testing.assert_allclose(null, live.image_pixels(torch.zeros(1, 3, PIXELS, PIXELS))[0], **CLOSE)
    black = live.image([Image.new("RGB", (PIXELS, PIXELS))])[0]
    assert np.abs(null - black.numpy()).max() > 0.01


def test_pictures_differ_by_far_more_than_the_tolerance(cache: Cache) -> None:
    for column, field in (("image", "image_embeds"), ("latents-32", "latents")):
        values = np.stack([stored[field] for stored in features(cache, column).values()])
        apart = np.abs(values[:, None] - values[None]).reshape(10, 10, -1).max(2)
        assert apart[~np.eye(10, dtype=bool)].min() > 0.01


def test_transparent_pictures_stand_on_white_by_default(encoded: Encoded, live: Encoders, pictures: Path) -> None:
    cache = encoded()
    images, latents = features(cache, "image"), features(cache, "latents-32")
    for sample in (*TRANSPARENT, *OPAQUE):
        # Pillow rounds the blend in 8 bits its own way: a pixel may be one apart.
        picture = open_on_white(pictures / sample)
        np.testing.assert_allclose(images[sample]["image_embeds"], live.image([picture])[0], atol=0.02, rtol=0)
        np.testing.assert_allclose(latents[sample]["latents"], live.latents([picture], PIXELS)[0], atol=0.02, rtol=0)


def test_alpha_changes_transparent_pictures_and_no_other(encoded: Encoded) -> None:
    white, dropped = features(encoded(), "latents-32"), features(encoded(format="tar", alpha="drop"), "latents-32")
    for sample in TRANSPARENT:
        assert np.abs(white[sample]["latents"] - dropped[sample]["latents"]).max() > 0.1, sample
    for sample in OPAQUE:
        assert np.array_equal(white[sample]["latents"], dropped[sample]["latents"]), sample


def test_a_photograph_is_turned_upright_first(cache: Cache, live: Encoders, pictures: Path) -> None:
    lying = Image.open(pictures / "turned.jpg")
    rows = {row["id"]: row for shard in range(cache.shard_count) for row in cache.samples(shard)}
    assert (rows["turned.jpg"]["width"], rows["turned.jpg"]["height"]) == (lying.height, lying.width) == (160, 256)
    upright = lying.transpose(Image.Transpose.ROTATE_270)
    stored = features(cache, "latents-32")["turned.jpg"]["latents"]
    np.testing.assert_allclose(stored, live.latents([upright], PIXELS)[0], **CLOSE)
    assert np.abs(stored - live.latents([lying.convert("RGB")], PIXELS)[0].numpy()).max() > 0.1


def test_tar_and_h5_hold_the_same_bits(encoded: Encoded) -> None:
    tar, h5 = encoded(format="tar", alpha="drop"), encoded(format="h5", alpha="drop")
    for column in ("text", "image", "latents-32"):
        one, other = features(tar, column), features(h5, column)
        assert list(one) == list(other)
        for sample, fields in one.items():
            assert {f: a.tobytes() for f, a in fields.items()} == {f: a.tobytes() for f, a in other[sample].items()}


def test_fp16_features_are_the_fp32_ones_rounded(encoded: Encoded) -> None:
    exact, rounded = encoded(), encoded(store_dtype="fp16")
    for column in ("text", "image", "latents-32"):
        full, half = features(exact, column), features(rounded, column)
        for sample, fields in half.items():
            for field, array in fields.items():
                if field != "lengths":
                    assert array.dtype == np.float16
                    assert np.array_equal(array, full[sample][field].astype(np.float16)), (sample, field)
        null, half_null = read_null(exact, exact.column("text")), read_null(rounded, rounded.column("text"))
        assert np.array_equal(null["text_embeds"].astype(np.float16), half_null["text_embeds"])
