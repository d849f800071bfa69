"""A cache or a checkpoint that is damaged, foreign or lacks something is named, with what to do."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Encode, done, encode_with, kcache, refused, stamps, tree
from folders import Damage, Train, broken, lacks, write
from support import ids

from kcache.shards import Cache
from kcache.shards.records import dump_record, load_record

# --- caches that are none, or of another kind


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    write(folder / "chapter-1.tex", b"important")
    write(folder / ".tmp-notes", b"also important")
    before = tree(folder), stamps(folder)
    for options in ([], ["--dry-run"]):
        said = refused(encode(pictures, folder, *options))
        assert said == (
            f"{folder} is not empty and not a kcache cache (it has: chapter-1.tex); name another folder for the cache"
        )
    assert (tree(folder), stamps(folder)) == before


@pytest.mark.parametrize("name", ["notes.txt", "notes.txt/cache"])
def test_a_cache_that_would_be_a_file_or_lie_below_one_is_refused(
    encode: Encode, pictures: Path, tmp_path: Path, name: str
) -> None:
    file = write(tmp_path / "notes.txt", b"important")
    assert refused(encode(pictures, tmp_path / name)) == f"{file} is a file; name a folder for the cache"
    assert file.read_bytes() == b"important"


@pytest.mark.parametrize("command", [["info"], ["verify"], ["train", "prior"], ["train", "decoder"]])
def test_a_folder_that_is_no_cache_is_answered_with_how_to_make_one(tmp_path: Path, command: list[str]) -> None:
    output = ["--output-dir", tmp_path / "out"] if command[0] == "train" else []
    said = refused(kcache(*command, tmp_path, *output))
    assert said == f"{tmp_path} is not a kcache cache; make one with 'kcache encode DATASET {tmp_path}'"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["encode", "info", "verify", "train"])
def test_a_cache_of_another_format_version_is_refused_with_both_numbers(
    encode: Encode, train: Train, whole: Path, pictures: Path, tmp_path: Path, command: str
) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    record = load_record(cache / "kcache.json")
    (cache / "kcache.json").write_bytes(dump_record({**record, "format_version": 7}))
    before = tree(cache)
    runs: dict[str, Callable[[], Any]] = {
        "encode": lambda: encode(pictures, cache),
        "train": lambda: train("prior", cache),
    }
    said = refused(runs.get(command, lambda: kcache(command, cache))())
    assert said == (
        f"{cache} has cache format 7 and this kcache reads format 1;"
        " a newer kcache made it: install that, or encode into another folder"
    )
    assert tree(cache) == before


# --- checkpoints that lack something


def only_bin(folder: Path) -> None:
    """Weights as a pickle that would leave a trace if it were loaded."""
    (weights,) = (folder / "text_encoder").glob("*.safetensors")
    weights.unlink()
    trace = folder / "a-pickle-was-loaded"
    code = f"c__builtin__\nopen\n(V{trace}\nVw\ntR."
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(code.encode())


def cut_weights(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors["text_projection.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def rewrite(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lacks("text_encoder"), "has no 'text_encoder' (it has: image_encoder, image_processor, prior, "),
        (lacks("tokenizer"), "has no 'tokenizer' (it has: "),
        (lacks("image_encoder"), "has no 'image_encoder' (it has: "),
        (lacks("image_processor"), "has no 'image_processor' (it has: "),
        (lambda f: (f / "text_encoder" / "config.json").unlink(), "lacks text_encoder/config.json; download it again"),
        (rewrite("text_encoder/config.json", "{"), "text_encoder/config.json is not JSON ("),
        (rewrite("text_encoder/config.json", "[]"), "text_encoder/config.json is not a JSON object"),
        (rewrite("text_encoder/config.json", "{}"), "text_encoder/config.json has no 'projection_dim'; download the"),
        (rewrite("tokenizer/vocab.json", "{"), "tokenizer does not load as CLIPTokenizer ("),
        (
            only_bin,
            "has no safetensors weights (it has: config.json, pytorch_model.bin); kcache loads no pickled weights",
        ),
        (cut_weights, "text_encoder does not load as CLIPTextModelWithProjection ("),
        (drop_tensor, "text_encoder lack 1 tensors of CLIPTextModelWithProjection, such as text_projection.weight"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_and_named(
    pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path, damage: Damage, said: str
) -> None:
    prior = broken(tiny_prior, tmp_path / "broken-prior", damage)
    sentence = refused(encode_with(prior, tiny_decoder)(pictures, tmp_path / "cache"))
    assert said in sentence
    assert "broken-prior" in sentence
    assert not (tmp_path / "cache" / "commits").exists()
    assert not (prior / "a-pickle-was-loaded").exists()


def test_a_decoder_without_movq_is_refused_and_named(
    pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    decoder = broken(tiny_decoder, tmp_path / "broken", lacks("movq"))
    said = refused(encode_with(tiny_prior, decoder)(pictures, tmp_path / "cache"))
    assert said.startswith(f"checkpoint {decoder} has no 'movq' (it has: scheduler, unet); name a folder or hub id in ")
    assert not (tmp_path / "cache").exists()


def test_captions_alone_need_no_decoder(pictures: Path, tiny_prior: Path, tmp_path: Path) -> None:
    done(encode_with(tiny_prior, Path("/no/decoder"))(pictures, tmp_path / "cache", "--columns", "text", "image"))


@pytest.mark.parametrize("name", ["kandinsky-community/kandinsky-2-2-prior", "nobody/no-such-checkpoint"])
def test_a_checkpoint_that_cannot_be_reached_is_one_sentence(
    pictures: Path, tiny_decoder: Path, tmp_path: Path, name: str
) -> None:
    said = refused(encode_with(Path(name), tiny_decoder)(pictures, tmp_path / "cache"))
    assert said.startswith(f"checkpoint {name} is not a folder and could not be had from the hub (")
    assert said.endswith("; check the name and the connection, or give the folder of a downloaded checkpoint")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["cuda:7", "gpu"])
def test_a_device_that_is_not_there_is_named(encode: Encode, pictures: Path, tmp_path: Path, name: str) -> None:
    said = refused(encode(pictures, tmp_path / "cache", "--device", name))
    assert (
        said == f"there is no device '{name}' here; 'kcache doctor' shows those that there are, and cpu is always one"
    )


# --- features that are no numbers


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (float("nan"), "is not a finite number"),
        (float("inf"), "is not a finite number"),
        (1e6, "is too large for float16"),
    ],
)
def test_a_feature_that_does_not_fit_stops_the_encode_with_the_samples_name(
    encode: Encode, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, fault: str
) -> None:
    from kcache.encoding.image_column import ImageColumn

    original, calls = ImageColumn.features, iter(range(10**6))

    def features_with_a_fault(self: Any, inputs: Any, batch_size: int) -> Iterator[Any]:
        for wait in original(self, inputs, batch_size):
            yield with_a_fault(wait) if next(calls) == 6 else wait  # after the null features and five pictures

    def with_a_fault(wait: Any) -> Any:
        found = wait()
        found["image_embeds"][3] = value
        return lambda: found

    monkeypatch.setattr(ImageColumn, "features", features_with_a_fault)
    said = refused(encode(pictures, tmp_path / "cache"))
    sample = ids(Cache(tmp_path / "cache"))[5]
    assert said.startswith(f"field 'image_embeds' of column 'image' {fault} for sample '{sample}'")
    assert list(Cache(tmp_path / "cache").commits("image")) == [0]  # the shard before is kept, this one is not there
    monkeypatch.undo()
    done(encode(pictures, tmp_path / "cache"))
    done(encode(pictures, tmp_path / "undisturbed"))
    assert tree(tmp_path / "cache", without=("index",)) == tree(tmp_path / "undisturbed", without=("index",))


def test_a_checkpoint_that_can_be_no_hub_id_is_not_asked_for(
    pictures: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    said = refused(encode_with(Path("my-checkpoint"), tiny_decoder)(pictures, tmp_path / "cache"))
    assert said.startswith("checkpoint my-checkpoint does not exist; name a folder, or a hub id such as ")


def test_a_shard_that_was_lost_is_no_hit_and_is_encoded_again_by_a_repair(
    encode: Encode, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    (shard,) = (cache / "text").glob("000000*.tar")
    data = shard.read_bytes()
    shard.unlink()
    said = refused(encode(pictures, cache))
    remedy = f"run 'kcache verify {cache} --repair --dataset DATASET'"
    assert said == f"{shard} is missing; copy it again, or have its rows encoded again: {remedy}"
    done(kcache("verify", cache, "--repair", "--dataset", pictures, "--device=cpu", "--batch-size=3"))
    done(encode(pictures, cache))
    assert shard.read_bytes() == data


def test_weights_of_another_variant_are_named_with_the_option_that_takes_them(
    pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    prior = shutil.copytree(tiny_prior, tmp_path / "prior")
    for component in ("text_encoder", "image_encoder"):
        (prior / component / "model.safetensors").rename(prior / component / "model.fp16.safetensors")
    command = encode_with(prior, tiny_decoder)
    assert refused(command(pictures, tmp_path / "cache")).endswith("; choose them with --variant fp16")
    done(command(pictures, tmp_path / "cache", "--columns", "text", "image", "--variant", "fp16"))
