"""Which samples a run trains on and which it holds out, by ``--where``, ids, a number, and the hash of an id."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Encode, done
from support import ids

from kcache.shards import Cache, KcacheError, Snapshot, UsageError, records
from kcache.training.chosen import choose, choose_mixed, planned_ids, selection_record
from kcache.training.config import PriorConfig
from kcache.training.train import train


@pytest.fixture(scope="module")
def snapshot(encoded: Callable[..., Cache]) -> Snapshot:
    return Snapshot(encoded(), ["text", "image"])


def names(snapshot: Snapshot, positions: Any) -> list[str]:
    every = ids(snapshot.cache)
    return [every[position] for position in positions]


def config(**changes: Any) -> PriorConfig:
    return PriorConfig(**{"cache": "cache", "output_dir": "out", **changes})


def test_all_samples_are_trained_on_unless_something_is_said(snapshot: Snapshot) -> None:
    chosen = choose(config(), snapshot, 0)
    assert chosen.train.tolist() == list(range(10))
    assert not len(chosen.held_out)


def test_what_is_chosen_does_not_hang_on_how_many_samples_are_placed_at_once(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(names(snapshot, [9, 0, 4, 5])), "utf-8")
    made = config(sample_ids=str(listed), where="width > 1", validation_split=0.5)
    expected = choose(made, snapshot, 0)
    assert sorted([*expected.train.tolist(), *expected.held_out.tolist()]) == [0, 4, 5, 9]
    shuffled = np.array([7, 2, 9, 0])
    ids_of_shuffled = planned_ids(snapshot, shuffled)
    assert ids_of_shuffled == names(snapshot, shuffled)
    monkeypatch.setattr("kcache.training.chosen._PIECE", 3)
    again = choose(made, snapshot, 0)
    assert again.train.tolist() == expected.train.tolist()
    assert again.held_out.tolist() == expected.held_out.tolist()
    assert planned_ids(snapshot, shuffled) == ids_of_shuffled


def test_the_digest_of_samples_is_that_of_their_numbers_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [np.arange(10), np.zeros(0, np.int64), np.array([2**62, 7])]
    for piece in (1, 3, 100):
        monkeypatch.setattr(records, "_PIECE", piece)
        for some in (lists, lists[:1], []):
            assert records.digest_of_numbers(some) == records.digest([values.tolist() for values in some])


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("width >= 200 and height >= 200", 5),
        ('"fox" in text', 1),
        ('id == "grey.png"', 1),
        ('id not in ["grey.png", "flat.png"]', 8),
        ('"fox" in text and "nose" in text', 1),  # several captions are one text of as many lines
        ('text == ""', 1),
    ],
)
def test_where_looks_at_what_the_cache_knows_of_a_sample(snapshot: Snapshot, where: str, expected: int) -> None:
    rows = [row for shard in range(snapshot.cache.shard_count) for row in snapshot.cache.samples(shard)]
    chosen = choose(config(where=where), snapshot, 0)
    assert len(chosen.train) == expected, [(row["id"], row["width"], row["height"]) for row in rows]


def test_where_that_names_nothing_there_is_answered_with_the_nearest(snapshot: Snapshot) -> None:
    with pytest.raises(UsageError, match=r"names 'widht', which .* does not have .*did you mean 'width'"):
        choose(config(where="widht > 3"), snapshot, 0)


def test_nothing_left_to_train_on_is_refused(snapshot: Snapshot) -> None:
    with pytest.raises(KcacheError, match="has 10 samples and none is left to train on; loosen --where"):
        choose(config(where="width > 10000"), snapshot, 0)


def test_a_list_of_ids_trains_on_those(snapshot: Snapshot, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed = tmp_path / "ids.txt"
    listed.write_text("grey.png\nmore/möhre.png\nnot-there.png\n", "utf-8")
    with caplog.at_level("WARNING", "kcache"):
        chosen = choose(config(sample_ids=str(listed)), snapshot, 0)
    assert names(snapshot, chosen.train) == ["grey.png", "more/möhre.png"]
    assert "1 of the 3 ids in" in caplog.text
    assert "'not-there.png'" in caplog.text
    with pytest.raises(UsageError, match=r"cannot be read .*; give a text file with one id in a line"):
        choose(config(sample_ids=str(tmp_path / "none.txt")), snapshot, 0)


def test_a_number_of_samples_is_chosen_by_the_seed(snapshot: Snapshot) -> None:
    some = [choose(config(max_train_samples=4), snapshot, seed).train.tolist() for seed in (0, 0, 1, 2, 3)]
    assert some[0] == some[1] == sorted(some[0])
    assert len({tuple(one) for one in some}) > 1
    assert all(len(set(one)) == 4 for one in some)
    assert len(choose(config(max_train_samples=99), snapshot, 0).train) == 10


def test_held_out_are_those_whose_hash_is_below_the_share(snapshot: Snapshot) -> None:
    every = ids(snapshot.cache)
    hashes = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") / 2**64 for name in every}
    before: set[str] = set()
    for share in (0.2, 0.4, 0.7):
        chosen = choose(config(validation_split=share), snapshot, 0)
        held_out = names(snapshot, chosen.held_out)
        assert held_out == sorted((name for name in every if hashes[name] < share), key=lambda name: hashes[name])
        assert before <= set(held_out)
        assert sorted([*chosen.train, *chosen.held_out]) == list(range(10))
        before = set(held_out)
    assert len(before) > 3


def test_the_seed_and_the_number_of_samples_do_not_move_what_is_held_out(snapshot: Snapshot) -> None:
    held_out = [
        choose(config(validation_split=0.4, max_train_samples=number), snapshot, seed).held_out.tolist()
        for seed, number in ((0, None), (9, None), (9, 2))
    ]
    assert held_out[0] == held_out[1] == held_out[2]


def test_mixed_caches_leave_out_what_is_held_out_and_are_filtered_by_nothing_else(snapshot: Snapshot) -> None:
    chosen = choose(config(validation_split=0.4), snapshot, 0)
    mixed = choose_mixed(config(validation_split=0.4, where="width > 10000", max_train_samples=1), snapshot)
    assert np.array_equal(mixed.train, chosen.train)


def test_a_share_that_holds_out_nothing_is_refused(snapshot: Snapshot) -> None:
    with pytest.raises(KcacheError, match="--validation-split 1e-06 holds out none of 10 samples"):
        choose(config(validation_split=1e-6), snapshot, 0)


def test_a_renamed_picture_stays_on_its_side_of_the_split(pictures: Path, encode: Encode, tmp_path: Path) -> None:
    dataset, cache = tmp_path / "pictures", tmp_path / "cache"
    shutil.copytree(pictures, dataset)
    done(encode(dataset, cache))
    before = choose(config(validation_split=0.4), Snapshot(Cache(cache), ["image"]), 0).held_out.tolist()
    assert before
    metadata = (dataset / "metadata.jsonl").read_text("utf-8")
    for number, line in enumerate(metadata.splitlines()):
        name = line.split('"')[3]
        new = f"renamed-{number}{Path(name).suffix}"
        (dataset / name).rename(dataset / new)
        metadata = metadata.replace(f'"{name}"', f'"{new}"')
    (dataset / "metadata.jsonl").write_text(metadata, "utf-8")
    done(encode(dataset, cache))
    assert ids(Cache(cache))[0].startswith("renamed-")
    assert choose(config(validation_split=0.4), Snapshot(Cache(cache), ["image"]), 0).held_out.tolist() == before


def test_the_record_of_a_selection_tells_lists_apart_by_content(tmp_path: Path) -> None:
    listed = tmp_path / "ids.txt"
    records = []
    for text in ("a\n", "b\n", "a\n"):
        listed.write_text(text)
        records.append(selection_record(config(sample_ids=str(listed))))
    assert records[0] == records[2] != records[1]


def test_training_reads_the_chosen_samples_alone(
    encoded: Callable[..., Cache], tiny_prior: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"pretrained_prior_model_name_or_path": str(tiny_prior), "output_dir": str(tmp_path)}
    report = train(config(cache=str(encoded().root), where='"a" in id', max_train_steps=2, probe_samples=0, **options))
    assert report.samples == sum("a" in name for name in ids(encoded())) < 10
