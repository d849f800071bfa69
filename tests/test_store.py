"""A cache in an object store: written so that of two writers one wins, read through a local copy that is right."""

import copy
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from commands import done, kcache, refused
from store import BUCKET, Fault, Store
from toy_cache import FIELDS, SAMPLES, assert_rows, column, commit_shard, make_cache, read_all, row, shards

from kcache.shards import Cache, CacheError, ColumnReader, DamageError, Snapshot, UsageError, verify
from kcache.shards.local_cache import MARK, LocalCache, parse_size
from kcache.shards.mirror import Mirror
from kcache.shards.objects import open_objects

ALL = [row("text", n) for n in range(SAMPLES)]


def files(folder: Path) -> dict[str, bytes]:
    """All files of a local cache but what is derived."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith("index/")}


def elsewhere(tmp_path: Path, size: int = 10**9) -> LocalCache:
    """The local cache of another machine."""
    return LocalCache(tmp_path / "elsewhere", size)


def test_a_cache_in_a_store_has_the_bytes_of_one_in_a_folder(store: Store, tmp_path: Path, container: str) -> None:
    local = make_cache(tmp_path / "folder", container)
    remote = make_cache(store.url("cache"), container)
    assert store.objects("cache") == files(local.root)
    assert_rows(read_all(remote, "text"), ALL)
    assert_rows(read_all(Cache(store.url("cache"), elsewhere(tmp_path)), "text"), ALL)


def test_a_cache_in_a_store_is_called_by_its_url(store: Store) -> None:
    cache = make_cache(store.url("a/b/cache"))
    assert cache.name == store.url("a/b/cache")
    with pytest.raises(CacheError, match=f"{store.url('a/b/cache')} has no column 'latents'"):
        cache.column("latents")


def test_what_others_write_is_seen_when_the_cache_is_opened_again(store: Store, tmp_path: Path) -> None:
    cache = Cache.create(store.url("cache"), shard_size=4, container="tar")
    other = Cache.create(store.url("cache"), shard_size=4, container="tar", local=elsewhere(tmp_path))
    cache.extend_plan(["a", "b"])
    assert other.shard_count == 0
    assert other.reopened().shard_count == 1


def test_a_cache_may_be_pickled_and_used_in_a_forked_process(store: Store) -> None:
    cache = make_cache(store.url("cache"))
    assert_rows(read_all(copy.deepcopy(cache), "text"), ALL)  # as pickling does it
    pid = os.fork()
    if pid == 0:
        try:
            assert_rows(read_all(cache, "image"), [row("image", n) for n in range(SAMPLES)])
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -- writing: of two that race one wins, and what fails is tried again or said ----------------------------------------


def objects(store: Store, name: str = "cache") -> Mirror:
    return Mirror(open_objects(store.url(name)), LocalCache.default())


def test_of_many_that_put_one_file_exactly_one_wins_and_all_see_its_bytes(store: Store) -> None:
    mirrors, made = [objects(store) for _ in range(8)], []
    start = threading.Barrier(8)

    def put(number: int) -> None:
        start.wait()
        if mirrors[number].put_if_absent("plan/000000.jsonl", f"of {number}".encode()):
            made.append(number)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = made
    assert store.objects("cache")["plan/000000.jsonl"] == f"of {winner}".encode()
    assert {(mirror.root / "plan/000000.jsonl").read_bytes() for mirror in mirrors} == {f"of {winner}".encode()}


def test_a_conflict_with_a_write_under_way_is_tried_again(store: Store) -> None:
    store.faults.append(Fault("PUT", "plan", times=3, status=409))
    assert objects(store).put_if_absent("plan/000000.jsonl", b"one")
    assert len([asked for asked in store.asked if asked[0] == "PUT"]) == 4


@pytest.mark.parametrize("status", [500, 503])
def test_a_service_that_fails_for_a_while_is_asked_again(store: Store, status: int) -> None:
    store.faults.append(Fault("PUT", "plan", times=2, status=status))
    assert objects(store).put_if_absent("plan/000000.jsonl", b"one")


def test_a_write_whose_answer_was_lost_counts_as_made(store: Store) -> None:
    store.faults.append(Fault("PUT", "plan", status=500, done=True))
    assert objects(store).put_if_absent("plan/000000.jsonl", b"one")
    assert not objects(store).put_if_absent("plan/000000.jsonl", b"two")


def test_an_upload_that_is_cut_off_leaves_nothing_and_is_made_again(store: Store) -> None:
    mirror, data = objects(store), os.urandom(3 * 2**20)
    store.faults += [Fault("PUT", "text/", times=3), Fault("PUT", "text/", status=400)]
    with pytest.raises(CacheError, match="the store answered 400"):
        mirror.put_content("text/000000-0.tar", data)
    assert store.objects("cache") == {}
    mirror.put_content("text/000000-0.tar", data)
    assert store.objects("cache") == {"text/000000-0.tar": data}


def test_a_content_named_file_with_other_bytes_is_replaced(store: Store) -> None:
    store.put("cache/text/000000-0.tar", b"another program's")
    objects(store).put_content("text/000000-0.tar", b"right")
    assert store.objects("cache") == {"text/000000-0.tar": b"right"}


def test_two_that_commit_other_rows_are_told_and_the_first_stays(store: Store, tmp_path: Path) -> None:
    cache = Cache.create(store.url("cache"), shard_size=4, container="tar")
    cache.extend_plan([f"sample {n}" for n in range(4)])
    cache.add_column(column("text"), row("text", 99))
    other = Cache(store.url("cache"), elsewhere(tmp_path))
    commit_shard(cache, "text", 0, range(4))
    with pytest.raises(CacheError, match=r"another process committed other rows as s3://.*commits/text/000000\.000001"):
        commit_shard(other, "text", 0, range(4), aside=frozenset([1]))
    assert_rows(read_all(other.reopened(), "text"), ALL[:4])


def test_a_store_that_ignores_conditions_is_refused(store: Store) -> None:
    store.faults.append(Fault("PUT", "", times=100, ignores="HTTP_IF_NONE_MATCH"))
    with pytest.raises(CacheError, match="ignores conditional writes"):
        make_cache(store.url("cache"))


def test_what_the_service_says_becomes_one_sentence_that_names_the_remedy(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(kcache("info", "s3://nowhere/cache")) == (
        "s3://nowhere/cache: there is no bucket 'nowhere'; make it, or name another"
    )
    assert "is not a kcache cache" in refused(kcache("info", store.url("cache")))
    assert "names no folder in a bucket" in refused(kcache("info", f"s3://{BUCKET}"), 2)
    store.faults.append(Fault("GET", "", times=9, status=403))
    assert "access was denied (AccessDenied); see that AWS_PROFILE" in refused(kcache("info", store.url("cache")))
    monkeypatch.setattr("kcache.shards.s3._ATTEMPTS", 3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    said = refused(kcache("info", store.url("cache")))
    assert "cannot be reached" in said
    assert said.endswith("are right, and run the same command again")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    assert "AWS_ENDPOINT_URL (with https:// or http://)" in refused(kcache("info", store.url("cache")), 2)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3:/bucket/cache", "write s3://bucket/cache"),
        ("s3://", "names no folder in a bucket"),
        ("s3://bucket//cache", "has a part that is empty, '.' or '..'"),
        ("s3://bucket/../cache", "has a part that is empty, '.' or '..'"),
    ],
)
def test_a_url_that_is_none_is_refused(store: Store, url: str, said: str) -> None:
    assert said in refused(kcache("info", url), 2)


def test_a_service_that_fails_for_long_is_said_to(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.faults.append(Fault("PUT", "plan", times=3, status=503))
    with caplog.at_level("INFO", "kcache"):
        assert objects(store).put_if_absent("plan/000000.jsonl", b"one")
    assert "the store does not answer as it should (attempt 2 of 10)" in caplog.text


def test_a_folder_of_other_things_is_refused(store: Store) -> None:
    store.put("photos/a.png", b"a picture")
    with pytest.raises(CacheError, match=r"s3://bucket/photos is not empty and not a kcache cache \(it has: a\.png\)"):
        make_cache(store.url("photos"))


# -- reading: what is at hand is what was committed -------------------------------------------------------------------


def test_a_download_that_is_cut_goes_on_from_where_it_was(store: Store, tmp_path: Path) -> None:
    cache = make_cache(store.url("cache"))
    file = cache.commit("text", 0, 1).file
    store.faults += [Fault("GET", file, cut=100), Fault("GET", file, cut=50)]
    assert_rows(read_all(Cache(store.url("cache"), elsewhere(tmp_path)), "text"), ALL)
    assert [asked[2] for asked in store.gets(file)] == ["", "bytes=100-", "bytes=150-"]


def test_a_download_that_never_ends_is_given_up_with_a_sentence(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = make_cache(store.url("cache"))
    monkeypatch.setattr("kcache.shards.mirror._ATTEMPTS", 2)
    store.faults.append(Fault("GET", cache.commit("text", 0, 1).file, times=9, cut=1))
    with pytest.raises(CacheError, match=r"broke off after 2 of [0-9,]+ bytes, 2 times"):
        read_all(Cache(store.url("cache"), elsewhere(tmp_path)), "text")


@pytest.mark.parametrize("what", ["flipped", "cut", "longer", "missing"])
def test_an_object_that_is_not_what_was_committed_is_noticed_by_reading_and_by_verify(
    store: Store, tmp_path: Path, what: str
) -> None:
    cache = make_cache(store.url("cache"))
    commit, samples = cache.commit("text", 1, 1), cache.commit("samples", 1, 1)
    for file in (*commit.files, samples.file, "commits/text/000001.000001.json", "plan/000001.jsonl"):
        whole = store.get(f"cache/{file}")
        damage(store, f"cache/{file}", whole, what)
        fresh = LocalCache(tmp_path / file.replace("/", "-"))
        found = verify(Cache(store.url("cache"), fresh), deep=True)
        if (file.startswith("commits"), what) == (True, "missing"):
            assert found.missing_shards["text"] == 1  # a commit that is not there was never made
        else:
            assert any(file in fault.path or file in fault.problem for fault in found.faults), (file, found.faults)
        with pytest.raises(CacheError):
            read_everything(Cache(store.url("cache"), fresh))
        store.put(f"cache/{file}", whole)


def damage(store: Store, key: str, data: bytes, what: str) -> None:
    middle = len(data) // 2
    if what == "missing":
        store.remove(key)
    else:
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        store.put(key, {"flipped": flipped, "cut": data[:middle], "longer": data + b"x"}[what])


def read_everything(cache: Cache) -> None:
    read_all(cache, "text")
    for shard, _ in shards():
        cache.samples(shard)
        cache.planned_ids(shard)


def test_the_command_verifies_the_store_and_not_the_copy(store: Store) -> None:
    cache = make_cache(store.url("cache"))
    read_all(cache, "text")
    done(kcache("verify", store.url("cache"), "--deep"))
    file = cache.commit("text", 1, 1).file
    store.put(f"cache/{file}", store.get(f"cache/{file}")[:-1] + b"!")
    result = done(kcache("verify", store.url("cache"), "--deep"), 1)
    assert f"{file}: does not match its sha256" in result.stdout
    assert f"copy it with 'aws s3 sync {store.url('cache')} COPY', run 'kcache verify --repair" in result.stdout


def test_names_in_a_store_that_no_cache_has_are_never_made_into_files(store: Store, tmp_path: Path) -> None:
    make_cache(store.url("cache"))
    for name in ("plan/../../../outside.jsonl", "commits/text/../../../../outside.json", "plan/a/b.jsonl", "plan/CON"):
        store.put(f"cache/{name}", b"strange")
    assert_rows(read_all(Cache(store.url("cache"), elsewhere(tmp_path)), "text"), ALL)
    assert not list(tmp_path.rglob("outside*"))
    (folder,) = (mark.parent for mark in (tmp_path / "elsewhere").glob(f"*/{MARK}"))
    assert {path.name for path in (folder / "plan").iterdir()} == {f"{n:06d}.jsonl" for n in range(3)}


def test_a_record_that_is_too_large_is_refused_before_it_is_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache(store.url("cache"))
    monkeypatch.setattr("kcache.shards.mirror.MAX_BYTES", 1000)
    store.put("cache/plan/000003.jsonl", b"x" * 1001)
    with pytest.raises(DamageError, match=r"plan/000003\.jsonl has 1,001 bytes, more than any record"):
        Cache(store.url("cache"), elsewhere(tmp_path))


def test_a_cache_that_was_made_anew_at_the_same_place_drops_the_copy_of_the_old_one(store: Store) -> None:
    make_cache(store.url("cache"))
    for name in store.objects("cache"):
        store.remove(f"cache/{name}")
    with pytest.raises(CacheError, match="is not a kcache cache"):
        Cache(store.url("cache"))
    cache = Cache.create(store.url("cache"), shard_size=2, container="h5")
    assert (cache.shard_count, cache.column_names(), cache.shard_size) == (0, [], 2)


def test_a_damaged_copy_of_what_a_commit_names_is_fetched_again(store: Store) -> None:
    cache = make_cache(store.url("cache"))
    for file in (cache.commit("text", 0, 1).files[1], cache.commit("samples", 0, 1).file):
        path = cache.root / file
        path.write_bytes(bytes(len(path.read_bytes())))
    assert_rows(read_all(Cache(store.url("cache")), "text"), ALL)
    assert cache.samples(0)


def test_the_local_cache_may_be_deleted_while_it_is_read_and_stays_bounded(store: Store, tmp_path: Path) -> None:
    cache = make_cache(store.url("cache"))
    local = elsewhere(tmp_path, max(shard_bytes(cache, "text")))
    reader = ColumnReader(Snapshot(Cache(store.url("cache"), local), ["text"]), "text")
    for position in range(SAMPLES):
        if position == 5:
            shutil.rmtree(local.folder)
        reader.read(position, "text_embeds")
    reader.close()
    assert 0 < local.used() <= local.size


def test_a_copy_may_be_deleted_or_damaged_and_a_sentence_says_so(store: Store) -> None:
    cache = make_cache(store.url("cache"))
    plan = cache.root / "plan/000000.jsonl"
    plan.write_bytes(plan.read_bytes().replace(b"sample", b"simple"))
    said = refused(kcache("info", store.url("cache")))
    assert f"that is a copy of {store.url('cache')}: if only the copy is at fault, remove it" in said
    plan.unlink()
    done(kcache("info", store.url("cache")))


# -- the local cache: bounded, and shared -----------------------------------------------------------------------------


def shard_bytes(cache: Cache, name: str) -> list[int]:
    return [cache.commit(name, shard, 1).bytes for shard, _ in shards()]


def test_shards_beyond_the_size_make_way_for_those_used_last(store: Store, tmp_path: Path) -> None:
    cache = make_cache(store.url("cache"))
    local = elsewhere(tmp_path, sum(sorted(shard_bytes(cache, "text"))[-2:]))
    opened = Cache(store.url("cache"), local)
    references = [opened.commit("text", shard, 1).reference for shard, _ in shards()]
    here = [opened.root / str(reference["file"]) for reference in references]
    opened.storage.bring(references[:2])
    opened.storage.bring(references[:1])  # used again, so that the second is the one unused longest
    os.utime(here[1], ns=(0, 0))
    opened.storage.bring(references[2:])
    assert [path.exists() for path in here] == [True, False, True]
    assert local.used() <= local.size
    assert_rows(read_all(opened, "text"), ALL)
    assert local.used() <= local.size


def test_a_shard_that_is_larger_than_the_local_cache_is_refused(store: Store, tmp_path: Path) -> None:
    make_cache(store.url("cache"))
    with pytest.raises(CacheError, match=r"a shard has [0-9,]+ bytes, and the local cache .* give a larger"):
        read_all(Cache(store.url("cache"), elsewhere(tmp_path, 100)), "text")


def test_processes_that_want_one_shard_at_once_fetch_it_once(store: Store, tmp_path: Path) -> None:
    cache = make_cache(store.url("cache"))
    reference = cache.commit("text", 0, 1).reference
    caches = [Cache(store.url("cache"), elsewhere(tmp_path)) for _ in range(8)]
    store.asked.clear()
    threads = [threading.Thread(target=one.storage.bring, args=([reference],)) for one in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.gets("text/")) == 1


def test_what_a_killed_process_had_begun_to_fetch_makes_way(store: Store, tmp_path: Path) -> None:
    cache = make_cache(store.url("cache"))
    local = elsewhere(tmp_path, max(shard_bytes(cache, "text")))
    opened = Cache(store.url("cache"), local)
    pid = os.fork()
    if pid == 0:
        with local.room(opened.root / "text/000009-0.tar", local.size):
            os._exit(0)
    os.waitpid(pid, 0)
    assert local.used() == local.size
    assert_rows(read_all(opened, "text"), ALL)
    assert local.used() <= local.size


def test_a_user_s_files_in_the_folder_are_left_alone(store: Store, tmp_path: Path) -> None:
    cache = make_cache(store.url("cache"))
    mine = [tmp_path / "elsewhere" / name for name in ("photos/text/a.tar", "text/b.tar", "c.h5")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    read_all(Cache(store.url("cache"), elsewhere(tmp_path, max(shard_bytes(cache, "text")))), "text")
    assert all(path.read_bytes() == b"mine" for path in mine)


def test_a_reader_closes_what_made_way_so_that_its_room_is_free(store: Store, tmp_path: Path) -> None:
    cache = make_cache(store.url("cache"))
    opened = Cache(store.url("cache"), elsewhere(tmp_path, max(shard_bytes(cache, "text"))))
    reader = ColumnReader(Snapshot(opened, ["text"]), "text")
    for position in range(SAMPLES):
        reader.read(position, "text_embeds")
    held = [path for path in open_files() if "elsewhere" in path]
    reader.close()
    assert len(held) == 1
    assert not held[0].endswith("(deleted)")


def open_files() -> list[str]:
    """The files that this process holds open, as Linux names them."""
    links = [Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if link.is_symlink()]


@pytest.mark.parametrize(
    ("text", "nbytes"), [("50GB", 50 * 10**9), ("512 MiB", 2**29), ("1.5kb", 1500), ("1000000", 10**6)]
)
def test_sizes_are_read_as_people_write_them(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "many", "0", "5 potatoes", "-1GB", "0GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no size; give one such as 50GB"):
        parse_size(text)


# -- other stores, and other commands ---------------------------------------------------------------------------------


def test_any_store_that_fsspec_opens_can_be_read_and_not_written(tmp_path: Path, store: Store) -> None:
    import fsspec

    folder = make_cache(tmp_path / "folder")
    memory = fsspec.filesystem("memory")
    memory.put(str(folder.root), "/shared/cache", recursive=True)
    cache = Cache("memory://shared/cache")
    assert_rows(read_all(cache, "text"), ALL)
    assert not verify(cache, deep=True).faults
    said = refused(kcache("encode", tmp_path, "memory://shared/other"), 2)
    assert said.startswith("memory://shared/other can only be read: kcache writes to local folders and to s3://")
    memory.rm("/shared", recursive=True)


def test_a_url_of_an_unknown_or_missing_kind_is_refused_with_what_to_do() -> None:
    assert "cannot be opened" in refused(kcache("info", "nosuch://bucket/cache"), 2)


def test_commands_that_need_a_folder_say_so(store: Store, tmp_path: Path) -> None:
    make_cache(store.url("cache"))
    for command in (["gc"], ["verify", "--repair"]):
        said = refused(kcache(command[0], store.url("cache"), *command[1:]), 2)
        assert f"works in local folders and {store.url('cache')} is in a store: copy it with 'aws s3 sync" in said
    make_cache(tmp_path / "folder")
    assert "name a local folder for the new cache" in refused(
        kcache("convert", tmp_path / "folder", store.url("other"), "--format", "h5"), 2
    )


def test_a_cache_in_a_store_is_converted_compared_exported_and_shown(store: Store, tmp_path: Path) -> None:
    make_cache(store.url("cache"))
    done(kcache("convert", store.url("cache"), tmp_path / "copy", "--format", "h5"))
    done(kcache("diff", store.url("cache"), tmp_path / "copy", "--deep"))
    done(kcache("export", store.url("cache"), tmp_path / "tars", "--format", "webdataset"))
    shown = json.loads(done(kcache("info", store.url("cache"), "--json")).stdout)
    assert shown["path"] == store.url("cache")
    assert shown["samples"] == SAMPLES
    assert {c["name"] for c in shown["columns"]} == set(FIELDS)


def test_what_is_lost_in_a_store_is_told_with_a_remedy_that_works_there(store: Store, tmp_path: Path) -> None:
    cache = make_cache(store.url("cache"))
    store.remove("cache/commits/samples/000001.000001.json")
    shutil.rmtree(cache.root)  # as on another machine
    said = refused(kcache("convert", store.url("cache"), tmp_path / "copy", "--format", "h5"))
    assert "commits/samples/000001.000001.json is missing" in said
    assert (
        f"to bring it back, copy it with 'aws s3 sync {store.url('cache')} COPY', run 'kcache verify --repair" in said
    )
