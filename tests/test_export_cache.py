"""A cache exported for other programs: stock webdataset finds all columns of a sample together."""

import gc
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from commands import done, kcache, refused, tree
from toy_cache import FIELDS, SAMPLES, commit_shard, make_cache, read_all, row

from kcache.shards import Cache, CacheError, durable, layout, read_null
from kcache.shards.joined import export_joined


def read(folder: Path) -> list[dict[str, Any]]:
    """All samples as webdataset decodes them."""
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    gc.collect()  # webdataset leaves its last file open: let that be this test's business and not the next one's
    return samples


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_all_columns_of_a_sample_together(cache: Cache, tmp_path: Path) -> None:
    assert export_joined(cache, tmp_path / "tars", shard_size=3).tars == 4
    samples = read(tmp_path / "tars")
    assert [sample["__key__"] for sample in samples] == [f"{n:09d}" for n in range(SAMPLES)]
    for name, fields in FIELDS.items():
        for n, sample in enumerate(samples):
            for field in fields:
                array, expected = sample[f"{name}.{field.name}.npy"], row(name, n)[field.name]
                assert (array.dtype, array.shape, array.tobytes()) == (
                    expected.dtype,
                    expected.shape,
                    expected.tobytes(),
                )
    assert samples[3]["txt"] == "a"
    assert samples[3]["json"] == {
        "key": "000000003",
        "id": "sample 3",
        "caption": "a",
        "captions": ["a"],
        "width": 1,
        "height": 1,
        "sha256": "0",
    }


def test_equal_caches_make_equal_bytes_whatever_their_shards(tmp_path: Path) -> None:
    for container in ("tar", "h5"):
        export_joined(make_cache(tmp_path / container, container), tmp_path / f"from-{container}")
    one, other = (tree(tmp_path / f"from-{container}", without=("kcache-export",)) for container in ("tar", "h5"))
    assert one == other
    assert [name for name in one if name.endswith(".tar")] == ["00000.tar", "00001.tar", "00002.tar"]


def test_null_features_lie_beside_the_tars(cache: Cache, tmp_path: Path) -> None:
    import numpy as np

    export_joined(cache, tmp_path / "tars")
    for name, fields in FIELDS.items():
        null = read_null(cache, cache.column(name))
        for field in fields:
            array = np.load(tmp_path / "tars" / "null" / f"{name}.{field.name}.npy", allow_pickle=False)
            assert array.tobytes() == null[field.name].tobytes()


def test_samples_without_features_are_left_out_and_counted(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", aside=frozenset({1, 6}))
    said = done(kcache("export", cache.root, tmp_path / "tars", "--format", "webdataset")).stdout
    assert said.startswith(f"Wrote 2 tars of 2 to {tmp_path / 'tars'} (8 samples, ")
    assert said.endswith("; 2 samples without features left out.\n")
    with tarfile.open(tmp_path / "tars" / "00000.tar") as tar:
        names = [name for name in tar.getnames() if name.endswith(".json")]
        described = [json.loads(tar.extractfile(name).read()) for name in names]  # type: ignore[union-attr]
    assert [sample["id"] for sample in described] == [f"sample {n}" for n in (0, 2, 3, 4)]


def test_only_some_columns_are_exported(cache: Cache, tmp_path: Path) -> None:
    done(kcache("export", cache.root, tmp_path / "tars", "--format=webdataset", "--columns", "image"))
    with tarfile.open(tmp_path / "tars" / "00000.tar") as tar:
        assert tar.getnames()[:3] == ["000000000.json", "000000000.txt", "000000000.image.image_embeds.npy"]
        assert len(tar.getnames()) == 12


def test_killed_before_any_step_it_goes_on_to_the_same_bytes(
    tar_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all(tar_cache, "text"), read_all(tar_cache, "image")
    steps: list[str] = []
    monkeypatch.setattr(durable, "failpoint", steps.append)
    export_joined(tar_cache, tmp_path / "undisturbed")
    expected = tree(tmp_path / "undisturbed")
    for step in range(0, len(steps), 5):
        left = iter(range(step))

        def die(name: str, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        to = tmp_path / f"killed-{step}"
        monkeypatch.setattr(durable, "failpoint", die)
        with pytest.raises(KeyboardInterrupt):
            export_joined(tar_cache, to)
        monkeypatch.setattr(durable, "failpoint", lambda name: None)
        export_joined(tar_cache, to)
        assert {name: data for name, data in tree(to).items() if durable.TEMPORARY not in name} == expected


def test_another_state_is_never_mixed_in(cache: Cache, tmp_path: Path) -> None:
    export_joined(cache, tmp_path / "tars")
    with pytest.raises(CacheError, match="holds an export of another state of a cache, or with other columns"):
        export_joined(cache, tmp_path / "tars", ["image"])
    cache.extend_plan(["one more"])
    cache.commit_samples(3, [{"id": "one more", "captions": ["a"], "sha256": "0"}], ["key 10"])
    commit_shard(cache, "image", 3, range(10, 11))
    with pytest.raises(CacheError, match=r"1 of 4 shards lack image or text; finish with 'kcache encode DATASET"):
        export_joined(cache, tmp_path / "tars")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(CacheError, match=r"is not empty \(it has: mine.txt\); name another folder"):
        export_joined(make_cache(tmp_path / "other"), tmp_path / "full")


def test_options_for_what_was_trained_are_refused_for_a_cache_and_the_other_way_round(
    tar_cache: Cache, tmp_path: Path
) -> None:
    root = tar_cache.root
    assert refused(kcache("export", root, tmp_path / "to", "--fuse"), code=2) == (
        f"{root} is a cache, and --fuse is for what was trained; see --help"
    )
    assert refused(kcache("export", root, tmp_path / "to"), code=2).endswith(
        f"as in 'kcache export {root} TO --format webdataset'"
    )
    assert refused(kcache("export", tmp_path, "--format=webdataset"), code=2) == (
        f"--format is for a cache, and {tmp_path} is none (it has no kcache.json)"
    )
    assert layout.ROOT_RECORD == "kcache.json"
