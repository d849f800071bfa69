"""Pictures of every kind become the right pixels, or are set aside with a reason that helps."""

import hashlib
import io
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_files import bad_files, write_files
from commands import Encode, done, kcache
from folders import set_aside
from made_pictures import gradient, saved
from odd_files import odd_files
from PIL import Image
from PIL import features as pil_features
from support import features

from kcache import picture_formats
from kcache.encoding.dataset import Sample
from kcache.encoding.images import Decoded, Decoding, clip_pixels, decode, hushed_pillow, without_ends
from kcache.encoding.pictures import Picture, prepare
from kcache.encoding.pixels import UnreadableImageError
from kcache.shards import Cache

BAD, ODD = bad_files(), odd_files()
USUAL = Decoding("white", 2**28)


def decoded(data: bytes, decoding: Decoding = USUAL) -> Decoded:
    with hushed_pillow(decoding.max_pixels):
        return decode(data, decoding)


def reason(data: bytes, decoding: Decoding = USUAL) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        decoded(data, decoding)
    return str(caught.value)


# --- a hundred files


def test_there_are_more_than_a_hundred_of_less_than_three_megabytes() -> None:
    sizes = [len(file.data) for file in ODD.values()] + [len(data) for data, _ in BAD.values()]
    assert len(sizes) == len({*ODD, *BAD}) > 100
    assert sum(sizes) < 3_000_000


@pytest.mark.parametrize("name", ODD)
def test_an_odd_picture_has_the_pixels_that_a_person_would_see(name: str) -> None:
    file = ODD[name]
    found = decoded(file.data)
    assert (found.image.mode, found.image.size, found.frames) == ("RGB", file.picture.size, file.frames)
    difference = np.asarray(found.image, float) - np.asarray(file.picture, float)
    assert np.abs(difference).mean() <= file.tolerance


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_set_aside_with_a_reason_of_one_line(name: str) -> None:
    data, expected = BAD[name]
    said = reason(data)
    assert re.fullmatch(expected, said), said
    assert said.isprintable()
    assert len(said) < 300
    assert said == reason(data)


def test_a_folder_of_all_of_them_is_encoded_but_for_the_bad_ones(
    encode: Encode, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reasons = write_files(tmp_path / "dataset")
    result = done(encode(tmp_path / "dataset", tmp_path / "cache", "--shard-size", "64"), code=3)
    cache = Cache(tmp_path / "cache")
    rows = {row["id"]: row for shard in range(cache.shard_count) for row in cache.samples(shard)}
    aside = {name: row["set_aside"] for name, row in rows.items() if "set_aside" in row}
    assert set(rows) == set(reasons)
    assert set(aside) == {name for name, expected in reasons.items() if expected}
    assert not [said for name, said in aside.items() if not re.fullmatch(reasons[name] or "", said)]
    assert {n: (rows[n]["width"], rows[n]["height"]) for n in ODD} == {n: f.picture.size for n, f in ODD.items()}
    for column in ("text", "image", "latents-32"):
        assert set(features(cache, column)) == set(ODD)
    counted = f"{len(aside) - 1} of them counted above as new or changed"  # all but the folder
    assert f"Set aside {len(aside)} samples (exit code 3), {counted}:" in result.stderr
    assert capfd.readouterr() == ("", ""), "a codec wrote to the terminal on its own"
    assert set_aside(cache.root) == aside
    done(kcache("verify", cache.root, "--deep"))


# --- options


@pytest.mark.parametrize("name", ["half of RGBA.png", "transparent LA.png", "palette with alphas.png", "whole.gif"])
def test_with_alpha_drop_the_pixels_are_those_of_the_reference(name: str) -> None:
    data = ODD[name].data
    found = decoded(data, Decoding("drop", 2**28)).image
    with hushed_pillow(2**28):
        assert found.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_an_ordinary_picture_is_converted_bit_for_bit_as_in_the_reference() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        data = saved(gradient(), kind)
        assert decoded(data).image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_the_limit_is_a_picture_that_is_exactly_as_large() -> None:
    data = saved(gradient(40, 30), "PNG")
    assert decoded(data, Decoding("white", 1200)).image.size == (40, 30)
    assert reason(data, Decoding("white", 1199)) == "it has 40 x 30 = 1,200 pixels, more than --max-pixels 1,199"
    assert reason(data, Decoding("white", 599)) == "it has 1,200 pixels, more than --max-pixels 599"


def test_a_picture_between_pillows_limit_and_ours_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decoded(saved(gradient(40, 30), "PNG")).image.size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_frame_larger_than_its_header_says_is_held_to_the_limit() -> None:
    icon = bytearray(saved(gradient(200, 200), "ICO", sizes=[(200, 200)]))
    icon[6:8] = bytes([16, 16])
    assert reason(bytes(icon), Decoding("white", 1000)) == "it has 40,000 pixels, more than --max-pixels 1,000"


# --- what is missing here


@pytest.fixture
def without_optional_formats(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation whose Pillow was built without AVIF, and that lacks pillow-heif."""
    check = pil_features.check
    monkeypatch.setattr(pil_features, "check", lambda name: name != "avif" and check(name))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    picture_formats.readable.cache_clear()
    yield
    picture_formats.readable.cache_clear()


COMMANDS = [("HEIF", "HEIC", "pip install pillow-heif"), ("AVIF", "AVIF", "pip install 'pillow>=11.3'")]


@pytest.mark.parametrize(("kind", "name", "command"), COMMANDS)
def test_a_format_that_is_missing_is_answered_with_the_command_that_brings_it(
    without_optional_formats: None, kind: str, name: str, command: str
) -> None:
    assert reason(saved(gradient(), kind)) == f"it is {name}, which needs: {command}"
    assert re.search(rf"{name} +cannot be read: {command}\n", kcache("doctor").stdout)


def test_the_doctor_says_which_optional_formats_can_be_read() -> None:
    assert re.search(r"AVIF +can be read\nHEIC +can be read\n", kcache("doctor").stdout)


def test_what_is_set_aside_may_be_tried_again_when_a_format_or_the_limit_is_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = USUAL.signature
    assert before == Decoding("drop", 2**28).signature
    assert before != Decoding("white", 2**20).signature
    monkeypatch.setattr("PIL.__version__", "99.0")
    assert before != USUAL.signature


def test_without_the_optional_formats_the_signature_is_another(without_optional_formats: None) -> None:
    assert "HEIF" not in str(USUAL.signature["formats"])
    assert USUAL.signature["packages"] == {"pillow": Image.__version__, "pillow-heif": None}


def test_threads_that_begin_at_once_all_read_heic() -> None:
    data, sizes = saved(gradient(), "HEIF"), []
    picture_formats.readable.cache_clear()
    threads = [threading.Thread(target=lambda: sizes.append(decode(data, USUAL).image.size)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [(48, 36)] * 4


# --- one picture on its way to the encoders


class OnePicture:
    """A dataset of one picture, with or without the memory to read it."""

    samples = (Sample("a.gif", ("a caption",), None),)

    def __init__(self, data: bytes | None) -> None:
        self.data = data

    def read(self, sample_id: str) -> bytes:
        if self.data is None:
            raise MemoryError
        return self.data

    def sha256(self, sample_id: str) -> str:
        return hashlib.sha256(self.read(sample_id)).hexdigest()

    def stat(self, sample_id: str) -> None:
        return None


class Greedy:
    """An encoder for which there is never enough memory."""

    def prepare(self, image: Image.Image, sha256: str) -> object:
        raise MemoryError


def prepared(data: bytes | None, **encoders: Any) -> Picture:
    dataset = OnePicture(data)
    return prepare(dataset, dataset.samples[0], encoders, USUAL)


def test_a_picture_says_how_many_frames_its_file_has() -> None:
    picture = prepared(ODD["two frames.gif"].data)
    assert (picture.frames, picture.width, picture.height, picture.set_aside) == (2, 48, 36, None)
    assert prepared(ODD["whole.gif"].data).frames == 1


def test_a_picture_for_which_there_is_not_enough_memory_is_set_aside_for_now() -> None:
    data = ODD["whole.png"].data
    for picture in (prepared(data, image=Greedy()), prepared(None)):
        assert picture.transient
        assert picture.set_aside == "there was not enough memory for it; try again with fewer --workers"
    assert prepared(data, image=Greedy()).sha256 == hashlib.sha256(data).hexdigest()
    assert not prepared(b"no picture").transient


# --- panoramas


@pytest.mark.parametrize("size", [(7, 3001), (3000, 7), (1, 5000), (40, 2000)])
def test_the_middle_of_a_panorama_gives_clip_the_same_square(size: tuple[int, int], tiny_prior: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(str(tiny_prior / "image_processor"))
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    assert max(without_ends(image).size) < max(size)
    whole = processor(images=[image], input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    assert np.abs(clip_pixels(processor)(image) - whole).mean() < 0.02


def test_a_picture_that_is_not_very_long_keeps_its_ends() -> None:
    image = gradient(320, 10)
    assert without_ends(image) is image
