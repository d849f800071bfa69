"""Where a picture is cut: the centre, fixed random squares, buckets of equal area, and mirrored pixels."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kcache.encoding.crops import (
    bucket_box,
    bucket_sizes,
    centre_square,
    mirrored,
    movq_pixels,
    nearest_bucket,
    random_square,
)
from kcache.shards import UsageError

SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
SHA256 = hashlib.sha256(b"a picture").hexdigest()

# --- random crops


@given(size=SIZES, number=st.integers(1, 9), scale=st.floats(0.05, 1), seed=st.integers(0, 9))
def test_a_random_crop_is_a_square_of_whole_pixels_inside_the_picture(
    size: tuple[int, int], number: int, scale: float, seed: int
) -> None:
    left, top, width, height = random_square(size, SHA256, number, scale, seed)
    assert width == height
    assert max(1, round(scale * min(size))) <= width <= min(size)
    assert 0 <= left <= size[0] - width
    assert 0 <= top <= size[1] - height
    assert all(isinstance(edge, int) for edge in (left, top, width, height))


def test_random_crops_are_the_same_for_ever() -> None:
    assert random_square((640, 480), SHA256, 1, 0.8, 0) == (14, 34, 396, 396)
    assert random_square((640, 480), SHA256, 2, 0.8, 0) == (60, 62, 405, 405)


def test_each_picture_number_and_seed_has_a_crop_of_its_own() -> None:
    other = hashlib.sha256(b"another picture").hexdigest()
    boxes = {random_square((999, 777), sha, k, 0.5, s) for sha in (SHA256, other) for k in (1, 2) for s in (0, 1)}
    assert len(boxes) == 8


def test_a_square_picture_at_scale_1_is_taken_whole() -> None:
    assert {random_square((300, 300), SHA256, k, 1.0, 0) for k in range(1, 20)} == {(0, 0, 300, 300)}


def test_random_crops_are_uniform_in_side_and_place() -> None:
    pictures = [hashlib.sha256(bytes([i, j])).hexdigest() for i in range(40) for j in range(50)]
    boxes = np.asarray([random_square((300, 200), picture, 1, 0.5, 0) for picture in pictures])
    sides = boxes[:, 2]
    assert (sides.min(), sides.max()) == (100, 200)
    assert abs(sides.mean() - 150) < 4 * 29.2 / math.sqrt(2000)
    across = (boxes[:, 0] + 0.5) / (300 - sides + 1)
    assert abs(across.mean() - 0.5) < 4 * 0.289 / math.sqrt(2000)
    assert abs(np.corrcoef(sides, across)[0, 1]) < 4 / math.sqrt(2000)


# --- buckets


def test_the_buckets_of_the_usual_resolutions() -> None:
    assert bucket_sizes(512, 64) == ((384, 640), (448, 576), (512, 512), (576, 448), (640, 384))
    assert bucket_sizes(768, 64) == (
        (576, 960), (576, 1024), (640, 896), (704, 832), (768, 768), (832, 704), (896, 640), (960, 576), (1024, 576),
    )  # fmt: skip


@given(step=st.sampled_from([8, 16, 32, 64, 128]), units=st.integers(1, 24))
def test_buckets_have_equal_area_as_far_as_the_step_allows(step: int, units: int) -> None:
    resolution = step * units
    buckets = bucket_sizes(resolution, step)
    assert (resolution, resolution) in buckets
    assert {(height, width) for width, height in buckets} == set(buckets)
    for width, height in buckets:
        assert width % step == height % step == 0
        assert width <= 2 * height <= 4 * width
        # Neither side could be a step longer unless the other one were the shorter for it: no area is given away.
        assert width * height <= resolution**2 < max(width, height) * (min(width, height) + step)


def test_a_step_that_does_not_divide_the_resolution_is_refused() -> None:
    with pytest.raises(UsageError, match="resolution 500 is not a multiple of --bucket-step 64"):
        bucket_sizes(500, 64)


@given(size=SIZES, step=st.sampled_from([32, 64]))
def test_a_picture_goes_to_the_bucket_of_nearest_log_aspect(size: tuple[int, int], step: int) -> None:
    buckets = bucket_sizes(512, step)

    def distance(bucket: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(bucket[0] / bucket[1]))

    assert distance(nearest_bucket(size, buckets)) <= min(map(distance, buckets)) + 1e-12


def test_ties_are_broken_by_area_and_then_for_the_wider() -> None:
    assert nearest_bucket((10, 10), [(448, 576), (576, 448)]) == (576, 448)
    assert nearest_bucket((10, 10), [(576, 448), (448, 576)]) == (576, 448)
    assert nearest_bucket((4, 2), [(64, 64), (256, 64), (128, 128)]) == (256, 64)  # as far from 1:1 as from 4:1


@given(size=SIZES, step=st.sampled_from([32, 64]))
def test_a_bucket_is_cut_from_the_largest_centred_box_of_its_aspect(size: tuple[int, int], step: int) -> None:
    bucket = nearest_bucket(size, bucket_sizes(512, step))
    left, top, width, height = bucket_box(size, bucket)
    assert width == size[0] or height == size[1]
    assert 0 <= left <= size[0] - width - left <= left + 1
    assert 0 <= top <= size[1] - height - top <= top + 1
    assert abs(width * bucket[1] - height * bucket[0]) <= max(bucket) / 2 or 1 in (width, height)


# --- pixels


def test_the_centre_square_may_lie_on_half_pixels() -> None:
    assert centre_square((7, 4)) == (1.5, 0, 4, 4)
    assert centre_square((4, 4)) == (0, 0, 4, 4)


def test_a_flip_mirrors_the_prepared_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)
    image = Image.fromarray(noise)
    turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = movq_pixels(image, centre_square(image.size), (24, 24))
    assert np.array_equal(mirrored(pixels), movq_pixels(turned, centre_square(image.size), (24, 24)))
    resized, of_turned = (movq_pixels(one, centre_square(image.size), (16, 16)) for one in (image, turned))
    assert np.abs(mirrored(resized) - of_turned).max() <= 1 / 127.5 + 1e-6  # a resize may round the other way
