"""Compiled encoders give the same features for the same column, and are compiled but for a few shapes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from kcache import compiler
from kcache.encoding import compiling
from kcache.encoding.columns import make_encoders
from kcache.encoding.config import EncodeConfig
from kcache.encoding.encode import encode
from kcache.encoding.encoders import Encoder, Prepared
from kcache.shards import UsageError


@pytest.fixture(autouse=True)
def _only_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and guarded as always, and run by torch's own kernels: seconds instead of minutes."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()


def config(prior: Path, decoder: Path, **options: Any) -> EncodeConfig:
    checkpoints = {"pretrained_prior_model_name_or_path": prior, "pretrained_decoder_model_name_or_path": decoder}
    named = {name: str(folder) for name, folder in checkpoints.items()}
    return EncodeConfig(**{"dataset": "", "cache": "", "device": "cpu", **named, **options})


def given(encoder: Encoder, count: int) -> list[Any]:
    """As many inputs, all different: captions of two lengths, or pictures of two shapes for buckets."""
    if encoder.column.name == "text":
        return [[("a fox and " * (n % 2 * 4)) + f"{n} hens"] for n in range(count)]
    shapes = [(3, 24, 40), (3, 40, 24)] if encoder.column.name.endswith("buckets") else [(3, 32, 32)]
    return [Prepared(np.full(shapes[n % len(shapes)], (n + 1) / count, np.float32)) for n in range(count)]


@pytest.mark.parametrize("name", ["text", "image", "latents-32-buckets"])
def test_features_are_those_of_encoders_that_are_not_compiled(tiny_prior: Path, tiny_decoder: Path, name: str) -> None:
    options: dict[str, Any] = {"bucket_step": 8} if name.endswith("buckets") else {"trim_captions": True}
    plain, compiled = (
        make_encoders(config(tiny_prior, tiny_decoder, columns=(name,), compile=one, **options), None)[name]
        for one in (False, True)
    )
    assert compiled.column == plain.column
    wanted, found = ([wait() for wait in one.features(given(one, 5), 3)] for one in (plain, compiled))
    for one, other in zip(found, wanted, strict=True):
        for field, array in one.items():
            np.testing.assert_allclose(array, other[field], rtol=1e-5, atol=1e-5, err_msg=field)
    assert counters["stats"]["unique_graphs"] == 2  # for the batch of three, and for any other
    assert not counters["graph_break"]


def test_a_dry_run_compiles_nothing(pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path) -> None:
    options = {"dataset": str(pictures), "cache": str(tmp_path / "cache"), "columns": ("image",)}
    assert encode(config(tiny_prior, tiny_decoder, compile=True, dry_run=True, **options)).estimates
    assert not counters["stats"]


def test_a_machine_that_cannot_compile_is_told_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler on a CPU, .* leave it out"):
        encode(EncodeConfig(dataset="nowhere", cache="nowhere", device="cpu", compile=True))
