"""Encoding into an object store and training from one: what is encoded and learned is what a folder would give."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from store import BUCKET, Fault, Store
from support import encode_tiny
from tiny import PIXELS
from torch import Tensor

from kcache.shards import Cache, KcacheError, durable
from kcache.shards.local_cache import LocalCache
from kcache.training.ahead import Ahead
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.mixture import Mixture, open_snapshots
from kcache.training.sources import MicroBatch
from kcache.training.stages import make_stage
from kcache.training.train import train
from kcache.training.windows import shard_bytes

TEXT_ALONE = {"columns": ("text",)}


def upload(store: Store, root: Path, name: str) -> str:
    """A cache in the store, with the bytes of one in a folder."""
    for path in root.rglob("*"):
        if path.is_file() and "index" not in path.relative_to(root).parts:
            store.put(f"{name}/{path.relative_to(root).as_posix()}", path.read_bytes())
    return store.url(name)


def content(root: Path) -> dict[str, bytes]:
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith("index/")}


# -- encoding ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def encode_text(pictures: Path, tiny_prior: Path, tiny_decoder: Path) -> Callable[..., Cache]:
    """``encode_text(place)``: the captions of the ten pictures alone."""
    return lambda root, dataset=pictures, **options: encode_tiny(
        root, dataset, tiny_prior, tiny_decoder, **TEXT_ALONE, **options
    )


def test_an_encode_into_a_store_writes_the_bytes_of_one_into_a_folder(
    store: Store, encoded: Callable[..., Cache], pictures: Path, tiny_prior: Path, tiny_decoder: Path
) -> None:
    encode_tiny(store.url("cache"), pictures, tiny_prior, tiny_decoder)
    assert store.objects("cache") == content(encoded().root)


def test_an_edited_caption_is_encoded_alone_by_a_machine_that_has_seen_nothing_yet(
    store: Store, encode_text: Callable[..., Cache], pictures: Path, tmp_path: Path
) -> None:
    dataset, folder = tmp_path / "pictures", tmp_path / "folder"
    shutil.copytree(pictures, dataset)
    for place in (store.url("cache"), folder):
        encode_text(place, dataset)
    rows = (dataset / "metadata.jsonl").read_text("utf-8")
    (dataset / "metadata.jsonl").write_text(rows.replace("red apple", "green apple"), "utf-8")
    shutil.rmtree(tmp_path / "local")
    store.asked.clear()
    encode_text(store.url("cache"), dataset)
    assert len(store.gets(r"/text/.*\.tar$")) == 1  # the shard whose other rows are copied
    encode_text(folder, dataset)
    assert store.objects("cache") == content(folder)


def test_an_encode_killed_before_any_write_and_run_again_ends_as_if_nothing_had_happened(
    store: Store, encode_text: Callable[..., Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = content(encode_text(tmp_path / "folder").root)
    for killed_at in range(0, len(expected), 9):
        left = [killed_at]

        def step(name: str, left: list[int] = left) -> None:
            if name == "put" and left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= name == "put"

        name = f"cache-{killed_at}"
        monkeypatch.setattr(durable, "failpoint", step)
        with pytest.raises(KeyboardInterrupt):
            encode_text(store.url(name))
        monkeypatch.setattr(durable, "failpoint", lambda name: None)
        assert len(store.objects(name)) == killed_at
        encode_text(store.url(name))
        assert store.objects(name) == expected


def test_writes_whose_answers_are_lost_or_refused_for_a_while_change_no_byte(
    store: Store, encode_text: Callable[..., Cache], tmp_path: Path
) -> None:
    expected = content(encode_text(tmp_path / "folder").root)
    store.faults += [
        Fault("PUT", "commits", times=2, status=500, done=True),
        Fault("PUT", "kcache.json", status=500, done=True),
        Fault("PUT", "plan", times=2, status=409),
        Fault("PUT", r"text/.*\.tar", times=2),
        Fault("PUT", "columns", times=2, status=503),
    ]
    encode_text(store.url("cache"))
    assert not any(fault.times for fault in store.faults)
    assert store.objects("cache") == expected


def test_two_machines_that_encode_at_once_end_as_one_would(
    store: Store, encode_text: Callable[..., Cache], tmp_path: Path
) -> None:
    expected, failed = content(encode_text(tmp_path / "folder").root), []
    start = threading.Barrier(2)

    def encode(machine: str) -> None:
        start.wait()
        try:
            encode_text(store.url("cache"), local_cache=str(tmp_path / machine))
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=encode, args=(machine,)) for machine in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert store.objects("cache") == expected


def test_a_store_that_fails_for_good_ends_the_encode_with_a_sentence_and_it_goes_on_later(
    store: Store, encode_text: Callable[..., Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kcache.shards.s3._ATTEMPTS", 2)
    store.faults.append(Fault("PUT", "commits/text", times=10**6, status=503))
    with pytest.raises(KcacheError, match=r"the store answered 503 .*what was committed is safe: run the same command"):
        encode_text(store.url("cache"))
    store.faults.clear()
    encode_text(store.url("cache"))
    assert store.objects("cache") == content(encode_text(tmp_path / "folder").root)


# -- training ---------------------------------------------------------------------------------------------------------


def trained(config: PriorConfig | DecoderConfig) -> dict[str, Tensor]:
    report = train(config)
    component = "prior" if isinstance(config, PriorConfig) else "unet"
    return load_file(Path(report.output_dir, component, "diffusion_pytorch_model.safetensors"))


@pytest.fixture
def prior_run(tiny_prior: Path, tmp_path: Path) -> Callable[..., PriorConfig]:
    """``prior_run(cache, out, ...)``: the options of a run of twelve updates of three samples."""
    options: dict[str, Any] = {"seed": 3, "train_batch_size": 3, "max_train_steps": 12, "probe_samples": 0}

    def config(cache: Path | str, out: str, **changes: Any) -> PriorConfig:
        return PriorConfig(
            cache=str(cache),
            output_dir=str(tmp_path / out),
            pretrained_prior_model_name_or_path=str(tiny_prior),
            **{**options, **changes},
        )

    return config


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_where_all_shards_fit_a_training_ends_with_the_weights_of_one_from_a_folder(
    store: Store, encoded: Callable[..., Cache], prior_run: Callable[..., PriorConfig]
) -> None:
    url = upload(store, encoded().root, "cache")
    assert_same(trained(prior_run(url, "remote")), trained(prior_run(encoded().root, "local")))


def test_a_decoder_is_trained_from_a_store(
    store: Store, encoded: Callable[..., Cache], tiny_decoder: Path, tmp_path: Path
) -> None:
    weights = []
    for cache in (upload(store, encoded().root, "cache"), str(encoded().root)):
        config = DecoderConfig(
            cache=cache,
            output_dir=str(tmp_path / f"out-{len(weights)}"),
            pretrained_decoder_model_name_or_path=str(tiny_decoder),
            resolution=PIXELS,
            seed=3,
            train_batch_size=2,
            max_train_steps=4,
            probe_samples=0,
        )
        weights.append(trained(config))
    assert_same(*weights)


def two_shards(cache: Cache) -> str:
    """A local cache for two of the three shards of what the prior reads."""
    (snapshot,) = open_snapshots([cache], ("text", "image"), partial=False)
    return str(2 * int(shard_bytes(snapshot).max()))


def test_a_training_within_a_small_local_cache_is_resumed_to_the_bit_and_stays_within_it(
    store: Store,
    encoded: Callable[..., Cache],
    prior_run: Callable[..., PriorConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, size = upload(store, encoded().root, "cache"), two_shards(encoded())
    used, make_room = [], LocalCache._make_room

    def noted(self: LocalCache, nbytes: int) -> None:
        make_room(self, nbytes)
        used.append(self.used() + nbytes)

    monkeypatch.setattr(LocalCache, "_make_room", noted)
    whole = trained(prior_run(url, "whole", local_cache_size=size))
    assert max(used) <= int(size)
    train(prior_run(url, "stopped", local_cache_size=size, max_train_steps=5))
    shutil.rmtree(tmp_path / "local")
    resumed = prior_run(url, "stopped", local_cache_size="1GB", resume_from_checkpoint="latest")
    assert_same(trained(resumed), whole)
    everything = trained(prior_run(url, "everything"))
    assert any(not whole[name].equal(everything[name]) for name in whole)  # the order within windows is another


def test_a_run_that_draws_from_all_shards_keeps_its_order_in_a_local_cache_that_has_become_too_small(
    store: Store, encoded: Callable[..., Cache], prior_run: Callable[..., PriorConfig], caplog: pytest.LogCaptureFixture
) -> None:
    url, size = upload(store, encoded().root, "cache"), two_shards(encoded())
    train(prior_run(encoded().root, "out", max_train_steps=5))
    resumed = prior_run(url, "out", resume_from_checkpoint="latest", local_cache_size=size, accept_new_snapshot=True)
    assert_same(trained(resumed), trained(prior_run(encoded().root, "local")))
    assert "the run draws from all shards at a time, and 1 would fit into the local cache" in caplog.text


def test_a_damaged_shard_in_a_store_ends_a_training_with_a_sentence_that_names_it(
    store: Store, encoded: Callable[..., Cache], prior_run: Callable[..., PriorConfig]
) -> None:
    url = upload(store, encoded().root, "cache")
    file = encoded().commit("text", 1, 1).file
    store.put(f"cache/{file}", store.get(f"cache/{file}")[:-1] + b"!")
    said = f"{url}/{file} does not match its sha256; .* checkpoint-[0-9]+ is kept: go on from it with --resume-from"
    with pytest.raises(KcacheError, match=f"{url}/{file} does not match its sha256"):
        train(prior_run(url, "out"))
    with pytest.raises(KcacheError, match=said):
        train(prior_run(url, "kept", checkpointing_steps=1, train_batch_size=1, seed=first_elsewhere(encoded(), 1)))


def test_a_local_cache_for_a_folder_is_refused(
    encoded: Callable[..., Cache], prior_run: Callable[..., PriorConfig]
) -> None:
    with pytest.raises(KcacheError, match=r"--local-cache-size has no effect: .* is a local folder"):
        train(prior_run(encoded().root, "out", local_cache_size="1GB"))


def test_shards_are_fetched_ahead_in_the_order_of_their_use_as_far_as_there_is_room(
    store: Store, encoded: Callable[..., Cache], prior_run: Callable[..., PriorConfig], tmp_path: Path
) -> None:
    url = upload(store, encoded().root, "cache")
    local = LocalCache(tmp_path / "ahead", int(two_shards(encoded())))
    config = prior_run(url, "out")
    caches = [Cache(url, local)]
    stage = make_stage(config, *caches)
    mixture = Mixture(config, open_snapshots(caches, stage.columns, partial=False), 3, [1])
    source = stage.make_source(mixture.samples, 3)
    order = mixture.order(source, 2, 3)
    shards = mixture.samples.snapshots[0].rows[:, 0]
    uses = [int(shard) for step in range(5) for shard in shards[order.batch(step)]]
    turns = list(dict.fromkeys(uses))
    store.asked.clear()

    def fetched() -> list[int]:
        return list(dict.fromkeys(int(asked[1].split("/text/")[1][:6]) for asked in store.gets(r"/text/.*\.tar$")))

    with Ahead(mixture.samples, source, order, range(5), local, wanted=True) as ahead:
        assert eventually(lambda: sorted(fetched()) == sorted(turns[:2]))
        last = max(step for step in range(5) if turns[0] in shards[order.batch(step)])
        batches = [MicroBatch(step, range(2), order.batch(step).tolist()) for step in range(last + 2)]
        for _ in ahead.following(iter(batches[:-1])):
            pass
        assert fetched() == fetched()[:2]  # the last batch that reads the first shard is being read
        for _ in ahead.following(iter(batches[-1:])):
            pass
        assert eventually(lambda: set(fetched()) == set(turns))


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something holds within half a minute."""
    waiting = threading.Event()
    return any(holds() or waiting.wait(0.05) for _ in range(600))


def test_the_windows_of_several_caches_share_the_room(
    store: Store, encoded: Callable[..., Cache], tmp_path: Path
) -> None:
    from kcache.training.windows import window_sizes

    local = LocalCache(tmp_path / "ahead", int(two_shards(encoded())))
    caches = [Cache(upload(store, encoded().root, name), local) for name in ("one", "other")]
    snapshots = open_snapshots([*caches, encoded()], ("text", "image"), partial=False)
    assert window_sizes(snapshots, local) == [1, 1, None]
    total = int(np.sum([shard_bytes(snapshot).sum() for snapshot in snapshots[:2]]))
    assert window_sizes(snapshots, LocalCache(tmp_path / "ahead", total)) == [None, None, None]
    assert BUCKET in caches[0].name


def first_elsewhere(cache: Cache, shard: int) -> int:
    """A seed whose first two samples are of other shards."""
    from kcache.shards import Snapshot, permutation

    shards = Snapshot(cache, ["text", "image"]).rows[:, 0]
    return next(seed for seed in range(100) if shard not in shards[permutation(seed, 0, len(shards))[:2]])
