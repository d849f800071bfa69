"""A stranger's column whose fields do not fit each other is refused: no caption is ever taken for another."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import kcache, refused
from folders import Train

from kcache.shards import Cache, read_rows

Change = Callable[[dict[str, Any]], object]


def with_text(root: Path, sample: str, change: Change) -> Cache:
    """The cache with other text features of one sample, committed as if they had been encoded."""
    cache = Cache(root)
    column = cache.column("text")
    for shard, generation in cache.commits("text").items():
        if sample in cache.ids(shard):
            commit = cache.commit("text", shard, generation)
            there = [i for i, key in enumerate(commit.keys) if key is not None]
            rows = read_rows(cache, column, commit, there)
            changed = rows[cache.ids(shard).index(sample)]
            change(changed)
            stored = [rows.get(i) for i in range(commit.rows)]
            cache.commit_features(column, shard, stored, commit.keys, generation + 1)
    return cache


def set_field(name: str, make: Callable[[Any], Any]) -> Change:
    return lambda row: row.update({name: np.ascontiguousarray(make(row[name]))})


CHANGES: dict[str, Change] = {
    "an embedding is missing": set_field("text_embeds", lambda embeds: embeds[:1]),
    "a length is missing": set_field("lengths", lambda lengths: lengths[:1]),
    "there are no captions": lambda row: row.update({name: array[:0] for name, array in row.items()}),
    "tokens are missing": set_field("hidden_states", lambda states: states[:-1]),
    "there are more tokens than captions have": set_field("hidden_states", lambda states: np.tile(states, (40, 1))),
    "a length is one too many": set_field("lengths", lambda lengths: lengths + np.array([1, 0], np.int32)),
    "a length is negative": set_field("lengths", lambda lengths: lengths + np.array([-99, 99], np.int32)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_training_refuses_captions_whose_beginnings_are_not_told(
    whole: Path, tmp_path: Path, train: Train, nothing_trained: None, what: str
) -> None:
    cache = with_text(shutil.copytree(whole, tmp_path / "cache"), "two-captions.webp", CHANGES[what])
    said = refused(train("prior", cache.root, "--train-batch-size=10"))
    assert re.match(
        rf"column 'text' of {cache.root} does not say where the captions of 'two-captions.webp' begin \(.+\), so kcache"
        rf" did not write it: encode it again with 'kcache encode DATASET {cache.root} --replace-column text'",
        said,
    )


def test_a_single_caption_longer_than_the_model_reads_is_refused(whole: Path, tmp_path: Path, train: Train) -> None:
    change = set_field("hidden_states", lambda states: np.tile(states, (40, 1)))
    cache = with_text(shutil.copytree(whole, tmp_path / "cache"), "apple.webp", change)
    assert "does not say where the captions of 'apple.webp' begin" in refused(train("prior", cache.root))


def test_the_list_of_cut_captions_refuses_a_sample_with_other_numbers_of_captions(whole: Path, tmp_path: Path) -> None:
    cache = with_text(shutil.copytree(whole, tmp_path / "cache"), "two-captions.webp", CHANGES["a length is missing"])
    said = refused(kcache("info", cache.root, "--cut-captions"))
    assert f"column 'text' of {cache.root} has 1 captions of 'two-captions.webp', and the sample has 2" in said
