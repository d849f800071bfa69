"""examples/kandinsky-tiny: which captions are held out, what the scores mean, and what `make learn` does again."""

import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
from PIL import Image
from tiny import DATA

from kcache.cli.main import cli

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "kandinsky-tiny"
MODULES = ("emoji", "score", "learn", "same_curve", "architecture", "train_clip", "train_movq", "batches", "schedule")
BASES = [f"base {number:03d}" for number in range(150)]


@pytest.fixture(scope="module")
def example() -> Iterator[dict[str, ModuleType]]:
    """The example's modules, imported as its scripts import each other."""
    import importlib

    sys.path.insert(0, str(EXAMPLE))
    yield {name: importlib.import_module(name) for name in ("emoji", "score", "learn", "same_curve")}
    sys.path.remove(str(EXAMPLE))
    for name in MODULES:
        sys.modules.pop(name, None)


def toned(example: dict[str, ModuleType]) -> list[str]:
    """Every base in every tone, and some captions that have none."""
    tones = example["emoji"].TONES
    return [f"{base}: {tone} skin tone" for base in BASES for tone in tones] + ["flag Chad", "kiss: woman, man"]


def test_what_is_held_out_was_seen_in_parts_and_not_together(example: dict[str, ModuleType]) -> None:
    texts = toned(example)
    held_out = example["emoji"].held_out_texts(texts)
    assert len(held_out) == 100
    assert held_out < set(texts)
    seen = {text for text in texts if text not in held_out}
    for text in held_out:
        base, tone = text.split(": ")
        assert sum(other.startswith(f"{base}: ") for other in seen) == 4
        assert any(other.endswith(f": {tone}") for other in seen)
    assert {text.split(": ")[1] for text in held_out} == {f"{tone} skin tone" for tone in example["emoji"].TONES}


def test_the_tones_of_a_caption(example: dict[str, ModuleType]) -> None:
    in_all_tones = example["emoji"].in_all_tones
    assert in_all_tones("ninja: dark skin tone")[::4] == ["ninja: light skin tone", "ninja: dark skin tone"]
    assert in_all_tones("kiss: woman, man") == in_all_tones("ninja") == []


def test_recalls_and_agreement_of_values_made_by_hand(example: dict[str, ModuleType]) -> None:
    score, answers = example["score"], torch.eye(4)
    queries = torch.tensor([[2.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 2, 3]])  # the third finds the fourth
    assert score.recall(queries, answers, 1) == 0.75
    assert score.recall(queries, answers, 2) == 1
    own, others = score.agreements(answers * 3, answers)
    assert (own, others) == (1, 0)


def test_the_tone_alone_is_told_apart_whatever_the_base(example: dict[str, ModuleType]) -> None:
    score, tones = example["score"], example["emoji"].TONES

    class Models:
        def text_embeds(self, texts: list[str]) -> torch.Tensor:
            """A direction for each tone."""
            return torch.eye(5)[[tones.index(text.split(": ")[1].removesuffix(" skin tone")) for text in texts]]

    texts = ["ninja: dark skin tone", "flag Chad", "baby: light skin tone"]
    seen = torch.stack([torch.eye(5)[4], torch.ones(5), torch.eye(5)[4]])  # a dark baby
    assert score.tone_recall(Models(), texts, seen) == 0.5


def test_a_score_below_its_floor_is_told(example: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    score = example["score"]
    assert score.below({"recall": 0.9}, {"recall": 0.9}) == 0
    assert score.below({"recall": 0.894}, {"recall": 0.9}) == 1
    assert capsys.readouterr().out == "recall is 0.894, below its floor of 0.9\n"


@pytest.mark.slow
def test_pictures_of_the_weights_that_ship_are_recognised(example: dict[str, ModuleType]) -> None:
    """By CLIP, which names each picture generated from a caption out of every fourth caption that ships."""
    score = example["score"]
    chosen = example["emoji"].read_emoji(DATA / "pictures")[::4]
    result, made = score.score(score.load(score.TINY / "prior", score.TINY / "decoder"), chosen, guidance=1.0, seed=0)
    assert result.prior_recall_1 >= 0.95
    assert result.generated_recall_1 >= 0.8  # chance is one in 24
    assert result.agreement > 0.5 > result.agreement_shuffled + 0.3
    assert isinstance(score.sheet({"shown": chosen}, {"shown": made}), Image.Image)


def parsed(command: str) -> dict[str, Any]:
    """What kcache's command line makes of a command, with nothing run."""
    found, words = cli, shlex.split(command)
    context = click.Context(cli, **cli.context_settings)  # a command keeps what it once found of its parent's settings
    while isinstance(found, click.Group):
        name, found, words = found.resolve_command(context, words)
        assert found is not None
    return found.make_context(name, words, parent=context).params


def test_make_learn_types_commands_that_there_are(example: dict[str, ModuleType], tmp_path: Path) -> None:
    learn, folder, start = example["learn"], tmp_path / "a folder", tmp_path / "a folder" / "start"
    (start / "decoder" / "unet").mkdir(parents=True)
    (folder / "decoder-1" / "unet").mkdir(parents=True)
    (folder / "cache").mkdir()
    (folder / "decoder-1" / "unet" / "weights").write_text("of the first training")
    stages = list(learn.stages(tmp_path, folder, start, 2))
    options = [parsed(stage.command) for stage in stages]
    assert [one["output_dir"] for one in options[1:]] == [str(folder / n) for n in ("prior", "decoder-1", "decoder")]
    assert [one["train_batch_size"] for one in options[1:]] == [32, 16, 16]
    assert {one["sample_ids"] for one in options[1:]} == {str(folder / "seen.txt")}
    assert (folder / "start-2" / "unet" / "weights").read_text() == "of the first training"


def test_what_make_learn_has_trained_it_does_not_train_again(
    example: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learn, asked = example["learn"], []
    monkeypatch.setattr(learn.subprocess, "run", lambda words, **_: asked.append(words) or ended(3))
    stage = learn.Stage("train prior cache", tmp_path / "prior" / "prior")
    assert stage.run() == 3
    assert asked[0][-2:] == ["--resume-from-checkpoint", "latest"]
    stage.result.mkdir(parents=True)
    assert stage.run() == 0
    assert len(asked) == 1
    assert f"{stage.result} is there" in capsys.readouterr().out
    assert replace(stage, resumes=False).run() == 3  # encoding finds out by itself what is missing
    assert replace(stage, resumes=False, processes=2).run() == 3
    assert asked[2][1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *asked[1][1:]]


def ended(code: int) -> Any:
    """A process that has ended."""
    import subprocess

    return subprocess.CompletedProcess([], code)


def test_curves_that_are_the_same_lie_on_each_other(example: dict[str, ModuleType]) -> None:
    same_curve = example["same_curve"]
    losses = [1 / (1 + update) for update in range(60)]
    assert same_curve.gap(losses, losses) == 0
    assert same_curve.gap([2 * loss for loss in losses], losses) == pytest.approx(1)
    drawn = same_curve.picture({"prior": dict.fromkeys(same_curve.SIDES, losses)})
    assert drawn.count("<polyline") == 3
    assert "live encoders" in drawn
