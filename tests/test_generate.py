"""From a trained OUT to pictures: `kcache generate`, stock diffusers, and every command that is documented."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from commands import done, encode_with, kcache
from PIL import Image

from kcache.cli.main import cli

ROOT = Path(__file__).parent.parent
TINY = ROOT / "kcache" / "data" / "kandinsky-tiny"
QUICK = ("--num-inference-steps=2", "--prior-num-inference-steps=2", "--device=cpu")
SIDE = 64


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A folder with ``my-prior`` and ``my-decoder``, each one large step away from the Kandinsky that is shipped."""
    folder = tmp_path_factory.mktemp("trained")
    prior, decoder = (shutil.copytree(TINY / stage, folder / stage) for stage in ("prior", "decoder"))
    card = decoder / "README.md"  # diffusers finds a decoder's prior by its card, from the current folder
    card.write_text(re.sub(r"(?m)^- kcache/data/kandinsky-tiny/prior$", f"- {prior}", card.read_text("utf-8")), "utf-8")
    done(encode_with(prior, decoder)(pictures, folder / "cache", f"--resolution={SIDE}"))
    for stage, more in (("prior", []), ("decoder", [f"--resolution={SIDE}"])):
        name = f"--pretrained-{stage}-model-name-or-path={folder / stage}"
        options = [name, f"--output-dir={folder / f'my-{stage}'}", "--max-train-steps=1", "--learning-rate=0.01"]
        done(kcache("train", stage, folder / "cache", *options, *more, "--seed=0", "--probe-samples=0"))
    return folder


def generate(trained: Path, output: Path, *words: object) -> "np.ndarray[Any, Any]":
    """`kcache generate` with what was trained; the pixels of the grid."""
    names = ["--prior", trained / "my-prior", "--decoder", trained / "my-decoder", "-o", output]
    result = done(kcache("generate", *words, *names, *QUICK))
    made = pixels(output)
    assert f"to {output} ({made.shape[1]} x {made.shape[0]} pixels)." in result.stdout
    return made


def pixels(path: Path) -> "np.ndarray[Any, Any]":
    """A picture's pixels, height first."""
    with Image.open(path) as picture:
        return np.asarray(picture)


# --- kcache generate


def test_a_picture_is_a_function_of_its_prompt_and_seed(trained: Path, tmp_path: Path) -> None:
    one = generate(trained, tmp_path / "one.png", "a red fox", "--seed=3")
    assert one.shape == (SIDE, SIDE, 3)  # the side that the decoder was trained at
    assert one.std() > 0
    assert np.array_equal(generate(trained, tmp_path / "again.png", "a red fox", "--seed=3"), one)
    assert not np.array_equal(generate(trained, tmp_path / "other.png", "a red fox", "--seed=4"), one)
    assert not np.array_equal(generate(trained, tmp_path / "blue.png", "a blue cup", "--seed=3"), one)


def test_a_grid_has_a_row_for_each_prompt_and_each_cell_is_the_picture_of_its_seed(
    trained: Path, tmp_path: Path
) -> None:
    prompts, step = ("a red fox", "a blue cup"), SIDE + 4
    grid = generate(trained, tmp_path / "grid.png", *prompts, "--num-images-per-prompt=3", "--seed=5")
    assert grid.shape == (2 * step - 4, 3 * step - 4, 3)
    alone = generate(trained, tmp_path / "alone.png", prompts[1], "--seed=7")
    assert np.array_equal(grid[step : step + SIDE, 2 * step : 2 * step + SIDE], alone)


def test_single_pictures_of_many_prompts_stand_four_in_a_row(trained: Path, tmp_path: Path) -> None:
    grid = generate(trained, tmp_path / "new" / "folder" / "grid.jpg", *"abcde", "--resolution=32")
    assert grid.shape == (2 * 36 - 4, 4 * 36 - 4, 3)


def test_a_picture_shows_that_both_stages_were_trained(trained: Path, tmp_path: Path) -> None:
    after = generate(trained, tmp_path / "after.png", "a red fox")
    for stage in ("prior", "decoder"):
        names = {"--prior": trained / "my-prior", "--decoder": trained / "my-decoder", f"--{stage}": trained / stage}
        line = [word for pair in names.items() for word in pair]
        done(kcache("generate", "a red fox", *line, f"--resolution={SIDE}", "-o", tmp_path / "a.png", *QUICK))
        assert not np.array_equal(pixels(tmp_path / "a.png"), after), stage


def test_what_training_says_to_run_next_can_be_run(trained: Path, tmp_path: Path) -> None:
    name = f"--pretrained-prior-model-name-or-path={trained / 'prior'}"
    result = done(
        kcache("train", "prior", trained / "cache", name, "--output-dir", tmp_path / "o", "--max-train-steps=1")
    )
    (line,) = re.findall(r"^Next: (kcache generate .*)$", result.stdout, re.MULTILINE)
    assert f"--prior {tmp_path / 'o'} --decoder my-decoder" in line
    parse(shlex.split(line))


# --- stock diffusers, by the lines that are documented


def python_blocks(text: str) -> list[str]:
    """The ``python`` blocks of a Markdown file, without the indent of a list that they stand in."""
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in blocks]


def run_with(code: str, names: dict[str, Path]) -> dict[str, Any]:
    """Run documented lines with local folders for names on the hub, on small pictures and in few steps."""
    for name, path in names.items():
        assert f'"{name}"' in code, f"{name} is not in\n{code}"
        code = code.replace(f'"{name}"', f'"{path}"')
    code = code.replace("height=512, width=512", f"height={SIDE}, width={SIDE}, num_inference_steps=2")
    code = code.replace('("a red fox").to_tuple()', '("a red fox", num_inference_steps=2).to_tuple()')
    small = f"height={SIDE}, width={SIDE}, num_inference_steps=2, prior_num_inference_steps=2"
    code = code.replace('("a red fox").images', f'("a red fox", {small}).images')
    made: dict[str, Any] = {}
    exec(compile(code, "documented lines", "exec"), made)
    return made


@pytest.mark.parametrize(
    ("stage", "other"),
    [("prior", "kandinsky-community/kandinsky-2-2-decoder"), ("decoder", "kandinsky-community/kandinsky-2-2-prior")],
)
def test_the_lines_in_the_readme_of_a_result_make_a_picture(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, other: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks((trained / f"my-{stage}" / "README.md").read_text("utf-8"))
    made = run_with(block, {other: trained / other.rpartition("-")[2]})
    assert pixels(tmp_path / "fox.png").shape == (SIDE, SIDE, 3)
    component, part = {"prior": ("prior", "prior"), "decoder": ("decoder", "unet")}[stage]
    assert getattr(made[component], part) is made["trained"]


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_the_lines_for_one_pipeline_in_the_readme_of_a_result_make_a_picture(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks((trained / f"my-{stage}" / "README.md").read_text("utf-8"))
    loads = next(line for line in block.splitlines() if line.startswith("trained = "))
    imports = block.splitlines()[0]
    commented = "\n".join(re.findall(r"^#   (.*)$", block, re.MULTILINE)).replace(
        "AutoPipelineForText2Image.", "image = AutoPipelineForText2Image."
    )
    hub = {"kandinsky-community/kandinsky-2-2-decoder": trained / "decoder"} if stage == "prior" else {}
    made = run_with(f"{imports}\n{loads}\n{commented}", hub)
    assert made["image"].size == (SIDE, SIDE)


def test_the_lines_in_the_readme_of_kcache_make_a_picture(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in python_blocks((ROOT / "README.md").read_text("utf-8")) if "my-prior" in block)
    local = {"my-prior": trained / "my-prior", "my-decoder": trained / "my-decoder"}
    made = run_with(block, {**local, "kandinsky-community/kandinsky-2-2-decoder": trained / "decoder"})
    assert pixels(tmp_path / "fox.png").shape == (SIDE, SIDE, 3)
    assert type(made["pipeline"]).__name__ == "KandinskyV22CombinedPipeline"


def test_both_results_load_into_one_stock_pipeline_and_make_the_picture_that_generate_makes(
    trained: Path, tmp_path: Path
) -> None:
    import torch
    from diffusers import (
        KandinskyV22CombinedPipeline,
        KandinskyV22Pipeline,
        KandinskyV22PriorPipeline,
        PriorTransformer,
        UNet2DConditionModel,
    )

    unet = UNet2DConditionModel.from_pretrained(str(trained / "my-decoder"), subfolder="unet")
    decoder = KandinskyV22Pipeline.from_pretrained(str(trained / "decoder"), unet=unet)
    trained_prior = PriorTransformer.from_pretrained(str(trained / "my-prior"), subfolder="prior")
    prior = KandinskyV22PriorPipeline.from_pretrained(str(trained / "prior"), prior=trained_prior)
    parts = {f"prior_{name}": part for name, part in prior.components.items()}
    pipeline = KandinskyV22CombinedPipeline(**decoder.components, **parts)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        "a red fox",
        height=SIDE,
        width=SIDE,
        num_inference_steps=2,
        prior_num_inference_steps=2,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]
    made = generate(trained, tmp_path / "made.png", "a red fox", "--seed=3")
    assert np.abs(np.asarray(picture).astype(int) - made.astype(int)).max() <= 1


def test_a_result_is_in_the_layout_of_the_hub_and_holds_no_pickle(trained: Path) -> None:
    for stage, component in (("prior", "prior"), ("decoder", "unet")):
        names = {path.name for path in (trained / f"my-{stage}" / component).iterdir()}
        assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
        left = {path.name for path in (trained / f"my-{stage}").iterdir()}
        assert left == {component, "training.json", "run.json", "README.md", "metrics.jsonl", "checkpoint-1"}


# --- every documented command


def documented() -> Iterator[tuple[str, list[str]]]:
    """Where each command line stands, and its words: of the documents, and of every command's own help.

    Those with a shell's variables are left out: what bash makes of them is run by tests/test_guides.py.
    """
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *TINY.glob("*/*.md")]):
        for block in re.findall(r"^ *```\w*\n(.*?)^ *```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            yield from ((path.name, words) for words in command_lines(block) if "$" not in "".join(words))
    for name, command in commands(cli, ()):
        yield from ((f"{' '.join(name)} --help", words) for words in command_lines(command.help or ""))


def command_lines(text: str) -> Iterator[list[str]]:
    """The words after ``kcache`` of each line that runs it, without what a shell or a reader takes from it."""
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        match = re.match(r"(?:\$ )?(?:.*-m )?kcache (.*)", line.strip())
        if match:
            yield shlex.split(re.split(r" {3,}| \| ", match[1])[0], comments=True)


def commands(group: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group, with the words that lead to it."""
    yield path, group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from commands(command, (*path, name))


def parse(words: list[str]) -> None:
    """Parse a command line as click would, without running it; click's error where it is wrong."""
    words = words[1:] if words[0] == "kcache" else words
    command, context = (
        cli,
        click.Context(cli, info_name="kcache", token_normalize_func=lambda word: word.replace("_", "-")),
    )
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, parent=context, info_name=name)
    shortened = "..." in words  # what is left out may be an argument
    command.make_context(
        context.info_name, [w for w in words if w != "..."], parent=context.parent, resilient_parsing=shortened
    )


def test_every_documented_command_line_is_one_that_kcache_takes() -> None:
    lines = list(documented())
    assert {words[0] for _, words in lines} >= {"encode", "train", "generate", "info", "verify", "demo", "doctor"}
    assert {place for place, _ in lines} >= {"README.md", "encode --help", "train prior --help", "generate --help"}
    for place, words in lines:
        try:
            parse(words)
        except click.UsageError as error:
            pytest.fail(f"{place}: kcache {shlex.join(words)}: {error.format_message()}")


def test_every_option_that_the_readme_names_exists() -> None:
    known = {option for _, command in commands(cli, ()) for param in command.params for option in param.opts}
    text = (ROOT / "README.md").read_text("utf-8")
    spans = [span for span in re.findall(r"`([^`\n]+)`", text) if not span.startswith(("torchrun", "python "))]
    named = {word.split("=")[0].replace("_", "-") for span in spans for word in span.split() if word.startswith("--")}
    assert named
    assert named - known - {"--help", "--version"} == set()


def test_a_line_that_kcache_does_not_take_would_be_found() -> None:
    for line in ("encode data", "encode data cache --resolutio 5", "trian prior c", "train prior c", "info c --deep"):
        with pytest.raises(click.UsageError):
            parse(line.split())
