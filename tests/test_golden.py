"""Caches of every version of the format, kept as they were written: they are read, verified and extended."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import copy_old, counted, done, kcache, tree
from folders import picture, write
from golden_caches import TINY, values

from kcache.shards import Cache, read_null, verify

GOLDEN = Path(__file__).parent / "golden"
CACHES = sorted(GOLDEN.glob("format-*/*/kcache.json"))


@pytest.fixture(params=CACHES, ids=lambda path: "-".join(path.parent.parts[-2:]))
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a golden cache."""
    return shutil.copytree(request.param.parent, tmp_path / "cache")


@pytest.fixture
def expected(golden: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The values that it held when it was made."""
    return dict(json.loads((request.node.callspec.params["golden"].parent.parent / "values.json").read_text()))


def test_its_values_are_those_that_were_written(golden: Path, expected: dict[str, Any]) -> None:
    cache = Cache(golden)
    assert values(cache) == expected
    assert values(cache) == expected  # from index/ this time
    assert cache.samples(0)[0]["captions"][0] == "an orange disc"
    assert {name: set(read_null(cache, cache.column(name))) for name in ("image", "text")} == {
        "image": {"image_embeds"},
        "text": {"text_embeds", "hidden_states", "lengths"},
    }


def test_every_byte_of_it_is_verified(golden: Path) -> None:
    assert verify(Cache(golden), deep=True).faults == []
    assert "its dataset is read with --caption-column caption\n" in done(kcache("info", golden)).stdout


def test_it_is_extended_and_no_file_of_it_rewritten(golden: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    before, root = tree(golden), GOLDEN.parent.parent
    dataset = copy_old(GOLDEN / "pictures", tmp_path / "pictures")
    write(dataset / "third.png", picture((70, 64)))
    with open(dataset / "metadata.jsonl", "a") as file:
        file.write('{"file_name": "third.png", "caption": "noise"}\n')
    models = [f"--pretrained-{stage}-model-name-or-path={root / TINY / stage}" for stage in ("prior", "decoder")]
    result = done(kcache("encode", dataset, golden, *models, "--device=cpu"))
    for column in ("image", "latents-64", "text"):
        assert counted(result)[column] == {"hit": 2, "changed": 0, "new": 1, "gone": 0, "set aside": 0}
    after = tree(golden, without=("index/",))
    assert {name: after[name] for name in before} == before
    now = values(Cache(golden))
    assert {name: now[name] for name in expected} == expected
    assert set(now) - set(expected) == {"third.png"}
    assert verify(Cache(golden), deep=True).faults == []
