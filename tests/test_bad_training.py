"""What cannot be asked for, trained from or generated with is refused with a sentence, and nothing is written."""

import os
import re
import shutil
from pathlib import Path

import pytest
from commands import Encode, done, kcache, refused, tree
from folders import Train, broken, lacks, write
from tiny import DATA

from kcache.shards import Cache, Snapshot

# --- options


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--resolutoin", "32"], "No such option '--resolutoin'. Did you mean '--resolution'?"),
        (["--shard-sise", "32"], "No such option '--shard-sise'. Did you mean '--shard-size'?"),
        (["--format", "hdf5"], "Invalid value for '--format': 'hdf5' is not one of 'tar', 'h5'. Did you mean 'h5'?"),
        (["--resolution", "4"], "Invalid value for '--resolution': 4 is not in the range"),
        (["--shard-size", "0"], "Invalid value for '--shard-size': 0 is not in the range"),
        (["--encode-dtype", "fp64"], "Invalid value for '--encode-dtype': 'fp64' is not one of "),
    ],
)
def test_a_wrong_option_of_encode_is_answered_with_the_one_meant(option: list[str], said: str, tmp_path: Path) -> None:
    assert said in done(kcache("encode", tmp_path, tmp_path / "cache", *option), code=2).stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("command", "option", "meant"),
    [
        (["train", "prior", "c"], "--learning-rat", "--learning-rate"),
        (["train", "decoder", "c"], "--max_train_step", "--max-train-steps"),
        (["generate", "a fox"], "--num-images-per-promt", "--num-images-per-prompt"),
        (["info", "c"], "--jsn", "--json"),
        (["verify", "c"], "--deap", "--deep"),
        (["demo"], "--prior-step", "--prior-steps"),
    ],
)
def test_a_misspelt_option_of_any_command_is_answered_with_the_one_meant(
    command: list[str], option: str, meant: str
) -> None:
    said = done(kcache(*command, option), code=2).stderr
    assert "No such option" in said
    assert meant in said.split("Did you mean")[1]


# --- training from what does not fit


@pytest.mark.usefixtures("nothing_trained")
def test_training_on_columns_that_are_missing_names_those_that_are_there(
    encode: Encode, train: Train, pictures: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    done(encode(pictures, cache, "--columns", "text"))
    assert refused(train("prior", cache)) == (
        f"{cache} has no column 'image' (it has: text); add it with 'kcache encode'"
    )
    said = refused(train("decoder", cache), code=2)
    assert said.startswith(f"{cache} has no latents at 32 px (it has: none); run 'kcache encode DATASET {cache}'")


@pytest.mark.usefixtures("nothing_trained")
def test_training_at_a_resolution_that_is_missing_names_those_that_are_there(train: Train, whole: Path) -> None:
    assert refused(train("decoder", whole, "--resolution", "512"), code=2) == (
        f"{whole} has no latents at 512 px (it has: 32); use --resolution 32,"
        f" or add them with 'kcache encode DATASET {whole} --resolution 512'"
    )


@pytest.mark.usefixtures("nothing_trained")
def test_training_on_a_cache_whose_samples_were_all_set_aside_is_refused(
    encode: Encode, train: Train, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    write(tmp_path / "dataset" / "a.png", b"junk")
    write(tmp_path / "dataset" / "a.txt", b"a caption")
    done(encode(tmp_path / "dataset", cache), code=3)
    assert len(Snapshot(Cache(cache), ["text", "image"])) == 0
    for stage, columns in (("prior", "text and image"), ("decoder", "latents-32 and image")):
        assert refused(train(stage, cache)).startswith(f"{cache} has no sample with {columns}; 'kcache info {cache}")


@pytest.mark.usefixtures("nothing_trained")
def test_training_on_an_unfinished_encode_is_refused(train: Train, whole: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    (cache / "commits" / "image" / "000001.000001.json").unlink()
    said = refused(train("prior", cache))
    assert said == f"{cache}: 1 of 3 shards lack text or image; finish with 'kcache encode DATASET {cache}'"


def test_training_on_an_unfinished_encode_is_possible_when_asked_for(train: Train, whole: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    (cache / "commits" / "image" / "000001.000001.json").unlink()
    result = done(train("prior", cache, "--partial"))
    assert "Warning: 1 shards are not encoded yet and are left out" in result.stderr
    assert "epochs of 6 samples" in result.stdout


@pytest.mark.usefixtures("nothing_trained")
def test_a_checkpoint_of_other_dimensions_is_refused_whatever_is_ignored(train: Train, whole: Path) -> None:
    shipped = DATA / "kandinsky-tiny"
    for options in ([], ["--ignore-encoder-mismatch"]):
        said = refused(train("prior", whole, *options, checkpoint=shipped / "prior"))
        assert said == (
            f"column 'text' of {whole} has hidden_states of 16 and {shipped / 'prior'} takes 64 (embedding_dim);"
            " encode with the encoders that belong to that checkpoint"
        )
    said = refused(train("decoder", whole, checkpoint=shipped / "decoder"))
    assert f"has image_embeds of 16 and {shipped / 'decoder'} takes 64 (encoder_hid_dim)" in said


@pytest.mark.parametrize(
    ("stage", "component", "column"), [("prior", "text_encoder", "text"), ("decoder", "movq", "latents-32")]
)
def test_a_checkpoint_with_other_encoders_is_refused_unless_told_otherwise(
    train: Train,
    whole: Path,
    tiny_prior: Path,
    tiny_decoder: Path,
    tmp_path: Path,
    stage: str,
    component: str,
    column: str,
) -> None:
    own = {"prior": tiny_prior, "decoder": tiny_decoder}[stage]
    other = broken(own, tmp_path / "other", lambda folder: shift_weights(folder / component))
    assert refused(train(stage, whole, checkpoint=other)) == (
        f"column '{column}' of {whole} was encoded with another {component} (from {own}) than that of {other};"
        " encode with that checkpoint, or, if you know that they agree, add --ignore-encoder-mismatch"
    )
    assert not (tmp_path / "out").exists()
    assert "Trained for 1 updates" in done(train(stage, whole, "--ignore-encoder-mismatch", checkpoint=other)).stdout


def shift_weights(folder: Path) -> None:
    """Other weights of the same shapes."""
    from safetensors.torch import load_file, save_file

    (path,) = folder.glob("*.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.mark.usefixtures("nothing_trained")
@pytest.mark.parametrize(("stage", "component"), [("prior", "prior"), ("decoder", "unet"), ("decoder", "scheduler")])
def test_training_from_a_checkpoint_without_the_component_is_refused(
    train: Train, whole: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path, stage: str, component: str
) -> None:
    own = {"prior": tiny_prior, "decoder": tiny_decoder}[stage]
    checkpoint = broken(own, tmp_path / "broken", lacks(component))
    said = refused(train(stage, whole, checkpoint=checkpoint))
    assert said.startswith(f"checkpoint {checkpoint} has no '{component}' (it has: ")


@pytest.mark.usefixtures("nothing_trained")
def test_training_on_a_cut_shard_names_the_file_and_both_sizes(train: Train, whole: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    (shard,) = (cache / "image").glob("000001*.tar")
    nbytes = shard.stat().st_size
    os.truncate(shard, nbytes - 5)
    assert refused(train("prior", cache)) == (
        f"{shard} has {nbytes - 5:,} bytes, its commit says {nbytes:,}; run 'kcache verify {cache}'"
    )


def test_an_output_folder_with_a_run_in_it_is_refused_and_left_as_it_is(
    train: Train, whole: Path, tmp_path: Path
) -> None:
    done(train("prior", whole))
    before = tree(tmp_path / "out")
    assert refused(train("prior", whole)) == (
        f"{tmp_path / 'out'} already holds a run (checkpoint-1, prior); go on with --resume-from-checkpoint latest,"
        " or name another --output-dir"
    )
    assert tree(tmp_path / "out") == before


def test_an_output_folder_that_is_a_file_is_refused(train: Train, whole: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", b"important")
    assert refused(train("prior", whole)) == f"{tmp_path / 'out'} is a file; name a folder with --output-dir"
    assert (tmp_path / "out").read_bytes() == b"important"


# --- pictures from what was not trained


def test_an_out_without_the_component_is_refused_and_named(train: Train, whole: Path, tmp_path: Path) -> None:
    out, pipeline = tmp_path / "out", DATA / "kandinsky-tiny" / "prior"
    done(train("prior", whole))
    said = refused(kcache("generate", "a fox", "--prior", pipeline, "--decoder", out, "-o", tmp_path / "a.png"))
    assert said == f"{out} is a prior; give it as --prior, and a decoder here"
    shutil.rmtree(out / "prior")
    said = refused(kcache("generate", "a fox", "--prior", out, "-o", tmp_path / "a.png"))
    assert said == f"{out} holds no trained 'prior'; train one with 'kcache train', or name a pipeline"
    assert not (tmp_path / "a.png").exists()


def test_an_out_whose_weights_are_cut_is_refused_and_named(train: Train, whole: Path, tmp_path: Path) -> None:
    done(train("prior", whole))
    (weights,) = (tmp_path / "out" / "prior").glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size - 4)
    said = refused(kcache("generate", "a fox", "--prior", tmp_path / "out", "-o", tmp_path / "a.png"))
    assert said.startswith(f"{tmp_path / 'out' / 'prior'} does not load as PriorTransformer (")


@pytest.mark.parametrize("name", ["grid.xyz", "grid"])
def test_an_output_that_is_no_picture_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    said = refused(kcache("generate", "a fox", "-o", tmp_path / name, "--device", "cpu"))
    assert said.startswith(f"'{name}' does not end as a picture does; choose another with -o, such as grid.png")


def test_a_cache_is_no_output_folder(whole: Path, tiny_prior: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    before = tree(cache, without=("index/",))
    command = ["train", "prior", str(cache), "--output-dir", str(cache), "--max-train-steps", "1"]
    said = refused(kcache(*command, "--pretrained-prior-model-name-or-path", str(tiny_prior)), code=2)
    assert said == f"{cache} is a cache; name another folder with --output-dir"
    assert tree(cache, without=("index/",)) == before


def test_two_runs_in_one_output_folder_are_refused(train: Train, whole: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        said = refused(train("prior", whole))
    assert said == f"another run is writing to {tmp_path / 'out'}; name another --output-dir"


def test_a_loss_that_is_no_number_ends_the_run_and_saves_nothing(train: Train, whole: Path, tmp_path: Path) -> None:
    said = refused(train("prior", whole, "--learning-rate", "1e30", "--max-train-steps", "4", "--logging-steps", "1"))
    assert re.match(
        r"the loss or its gradient is not finite at update \d \(learning rate 1.00e\+30; samples [^;]+\); no checkpoint"
        r" was written yet: begin anew with a lower --learning-rate",
        said,
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.jsonl", "run.json"]


def test_a_result_without_a_checkpoint_is_never_trained_over(train: Train, whole: Path, tmp_path: Path) -> None:
    done(train("prior", whole))
    shutil.rmtree(tmp_path / "out" / "checkpoint-1")
    before = tree(tmp_path / "out")
    said = refused(train("prior", whole, "--resume-from-checkpoint", "latest"))
    assert said.startswith(f"{tmp_path / 'out'} holds a result (prior) and no checkpoint to go on from;")
    assert tree(tmp_path / "out") == before


def test_no_checkpoint_holds_a_weight_that_is_no_number(train: Train, whole: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    each_step = ["--learning-rate", "1e30", "--max-train-steps", "6", "--checkpointing-steps", "1"]
    said = refused(train("prior", whole, *each_step, "--logging-steps", "50"))
    assert said.startswith("a weight is no longer a finite number at update ")
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        weights = load_file(checkpoint / "prior" / "diffusion_pytorch_model.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert not (tmp_path / "out" / "prior").exists()
