"""Batches: halved when they run out of memory, as large as the device may hold, pictures of one shape together."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kcache.devices import default_batch_size, is_out_of_memory
from kcache.encoding.batches import Batches
from kcache.encoding.columns import make_encoders
from kcache.encoding.config import EncodeConfig
from kcache.encoding.encoders import Encoder, Features, Prepared
from kcache.encoding.latents_column import LatentsColumn
from kcache.encoding.text_column import TextColumn
from kcache.shards import KcacheError

CPU = torch.device("cpu")
COLUMNS = ("text", "image", "latents-32", "latents-32-buckets")
SAID_BY_THE_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


@pytest.fixture
def columns(tiny_prior: Any, tiny_decoder: Any) -> dict[str, Encoder]:
    """An encoder of each kind, and one of many shapes."""
    config = EncodeConfig(
        dataset="",
        cache="",
        columns=COLUMNS,
        bucket_step=8,
        pretrained_prior_model_name_or_path=str(tiny_prior),
        pretrained_decoder_model_name_or_path=str(tiny_decoder),
        device="cpu",
    )
    return make_encoders(config, None)


def inputs(encoder: Encoder, count: int = 11) -> list[Any]:
    """Captions or prepared pictures of several shapes, all different."""
    if isinstance(encoder, TextColumn):
        return [[f"a fox and {n} hens"] for n in range(count)]
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (24, 40), (40, 24)] if encoder.column.name.endswith("buckets") else [(32, 32)]
    pixels = [rng.uniform(-1, 1, (3, *sizes[n % len(sizes)])).astype(np.float32) for n in range(count)]
    return [Prepared(one, {"n": np.asarray([n])}) for n, one in enumerate(pixels)]


def features(encoder: Encoder, batch_size: int) -> list[Features]:
    """The features of `inputs`, given to the device and then waited for."""
    return [wait() for wait in list(encoder.features(inputs(encoder), batch_size))]


class Small:
    """A model on a device that holds ``largest`` inputs at once."""

    def __init__(self, model: Any, largest: int, error: Exception) -> None:
        self.model, self.largest, self.error = model, largest, error
        self.sizes: list[int] = []

    def __call__(self, batch: torch.Tensor) -> Any:
        return self._call(self.model, batch)

    def encode(self, batch: torch.Tensor) -> Any:
        return self._call(self.model.encode, batch)

    def _call(self, model: Callable[[torch.Tensor], Any], batch: torch.Tensor) -> Any:
        self.sizes.append(len(batch))
        if len(batch) > self.largest:
            raise self.error
        return model(batch)


def on_small_device(encoder: Any, largest: int, error: Exception | None = None) -> Small:
    """Let an encoder's model run out of memory above ``largest`` inputs."""
    small = Small(encoder._model, largest, error or torch.OutOfMemoryError("CUDA out of memory."))
    encoder.__dict__["_model"] = small
    return small


# --- out of memory


@pytest.mark.parametrize("name", COLUMNS)
def test_a_batch_that_is_too_large_is_halved_and_ends_with_the_same_features(
    columns: dict[str, Encoder], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    encoder = columns[name]
    expected = features(encoder, 1)
    small = on_small_device(encoder, 2)
    with caplog.at_level(logging.WARNING, "kcache"):
        found = features(encoder, 8)
    assert_close(found, expected)
    assert max(small.sizes[-3:]) <= 2
    assert caplog.messages[-1].startswith("out of memory with ")
    assert caplog.messages[-1].endswith(f"s at once for '{name}': going on with {min(2, max(small.sizes) // 2)}")


def assert_close(found: Sequence[Features], expected: Sequence[Features]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for field, array in one.items():
            np.testing.assert_allclose(array, other[field], rtol=0, atol=1e-5, err_msg=field)


def test_it_is_said_once_for_each_halving_and_the_size_is_kept(
    columns: dict[str, Encoder], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = columns["image"]
    small = on_small_device(encoder, 2)
    with caplog.at_level(logging.WARNING, "kcache"):
        features(encoder, 8)
        features(encoder, 8)
    assert caplog.messages == [
        "out of memory with 8 pictures at once for 'image': going on with 4",
        "out of memory with 4 pictures at once for 'image': going on with 2",
    ]
    assert small.sizes == [8, 4] + 2 * [2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(SAID_BY_THE_CPU), MemoryError()]
)
def test_every_kind_of_too_little_memory_is_known(columns: dict[str, Encoder], error: Exception) -> None:
    encoder = columns["latents-32"]
    on_small_device(encoder, 3, error)
    assert len(features(encoder, 8)) == 11


def test_the_cpu_says_so_itself() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize("name", COLUMNS)
def test_one_picture_that_is_too_large_is_an_error_that_says_what_to_do(columns: dict[str, Encoder], name: str) -> None:
    on_small_device(columns[name], 0)
    item = "caption" if name == "text" else "picture"
    said = re.escape(
        f"out of memory with one {item} at a time for '{name}' on cpu: free some memory there,"
        " or try --encode-dtype fp16, --device cpu or a smaller --resolution"
    )
    with pytest.raises(KcacheError, match=said):
        features(columns[name], 4)


def test_any_other_error_goes_through_at_once(columns: dict[str, Encoder]) -> None:
    small = on_small_device(columns["image"], 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        features(columns["image"], 4)
    assert small.sizes == [4]


def test_the_memory_of_a_failed_batch_is_free_before_the_next_one() -> None:
    alive: list[str] = []

    class Held:
        def __init__(self, size: int) -> None:
            alive.append(f"{size}")

        def __del__(self) -> None:
            alive.pop()

    def encode(batch: Sequence[int]) -> list[int]:
        assert not alive
        held = Held(len(batch))
        if len(batch) > 1:
            raise MemoryError
        del held
        return list(batch)

    assert list(Batches("image", "picture", CPU).map(encode, range(5), 4)) == [0, 1, 2, 3, 4]


def test_weights_that_do_not_fit_are_no_reason_for_smaller_batches(
    columns: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(self: Any, model_class: Any, dtype: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("kcache.checkpoints.Component.load", load)
    with pytest.raises(KcacheError, match=r"the image_encoder of .* in fp32 does not fit into the memory of cpu"):
        features(columns["image"], 4)
    assert not caplog.messages


@given(items=st.lists(st.integers()), size=st.integers(1, 9), largest=st.integers(1, 9))
def test_batches_keep_the_order_and_lose_nothing(items: list[int], size: int, largest: int) -> None:
    def encode(batch: Sequence[int]) -> Iterator[int]:
        if len(batch) > largest:
            raise MemoryError
        return (2 * item for item in batch)

    assert list(Batches("text", "caption", CPU).map(encode, items, size)) == [2 * item for item in items]


# --- how large a batch is


@pytest.mark.parametrize(("gibibytes", "size"), [(4, 8), (7.8, 8), (11.9, 16), (23.6, 32), (79.1, 128), (140, 128)])
def test_a_gpu_gets_batches_by_its_memory(monkeypatch: pytest.MonkeyPatch, gibibytes: float, size: int) -> None:
    seen = SimpleNamespace(total_memory=int(gibibytes * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: seen)
    assert default_batch_size(torch.device("cuda", 1)) == size


def test_a_cpu_gets_batches_of_16() -> None:
    assert default_batch_size(CPU) == 16


def test_pictures_of_one_shape_are_encoded_together(columns: dict[str, Encoder]) -> None:
    encoder = columns["latents-32-buckets"]
    small = on_small_device(encoder, 99)
    found = features(encoder, 8)
    assert small.sizes == [4, 4, 3]
    assert [one["n"].item() for one in found] == list(range(11))


def test_the_columns_of_a_run_share_a_model(columns: dict[str, Encoder]) -> None:
    square, buckets = (columns[name] for name in ("latents-32", "latents-32-buckets"))
    assert isinstance(square, LatentsColumn)
    assert isinstance(buckets, LatentsColumn)
    assert square._model is buckets._model
