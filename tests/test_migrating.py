"""docs/migrating.md against the reference's options, the command line, and what a stranger copies from the page."""

import ast
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import done, kcache, refused
from folders import Train
from reference_options import SCRIPTS, Options, known_options, read_options

from kcache.training.config import DecoderConfig, PriorConfig

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "migrating.md").read_text("utf-8")
CONFIGS = {"prior": PriorConfig, "decoder": DecoderConfig}
REQUIRED = "required"

CHECKOUTS = [read_options(Path(root)) for root in [os.environ.get("KCACHE_DIFFUSERS")] if root]
"""The scripts themselves, where the environment names a checkout of diffusers."""


@dataclass(frozen=True)
class Row:
    """One option, as the page's table has it; a default is a value for P and D, and one for PL and DL."""

    name: str
    scripts: list[str]
    here: str
    default_there: tuple[Any, Any]
    default_here: tuple[Any, Any]


def table() -> dict[str, Row]:
    """All rows of the page by the option's name in Python."""
    rows = {}
    for line in re.findall(r"^\| (`--.*) \|$", PAGE, re.MULTILINE):
        option, scripts, here, there, now, _ = (
            line.split(" | ") if not line.endswith(" |") else [*line.split(" | "), ""]
        )
        name = option.strip("`").removeprefix("--").replace("-", "_")
        assert name not in rows, f"{name} has two rows"
        rows[name] = Row(name, scripts.split(), here, values(there), values(now.rstrip(" |")))
    return rows


def values(cell: str) -> tuple[Any, Any]:
    """The defaults in a cell: one for all, or one for P and D and one for PL and DL."""
    full, _, lora = cell.partition(", LoRA ")
    return value(full), value(lora or full)


def value(words: str) -> Any:
    if words in ("none", "off", REQUIRED):
        return {"none": None, "off": False}.get(words, REQUIRED)
    text = words.replace("`", "")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


ROWS = table()
TRAINED = [name for name, row in ROWS.items() if row.here.startswith("same")]
OF_ENCODE = [name for name, row in ROWS.items() if "kcache encode" in row.here and not row.here.startswith("same")]


# --- the table


@pytest.mark.parametrize("reference", [known_options(), *CHECKOUTS])
def test_the_table_has_every_option_of_the_scripts_and_says_which_have_it(reference: Options) -> None:
    assert {name: row.scripts for name, row in ROWS.items()} == {
        name: [letters for letters in SCRIPTS if letters in scripts] for name, scripts in reference.items()
    }


@pytest.mark.parametrize("reference", [known_options(), *CHECKOUTS])
def test_the_defaults_there_are_those_of_the_scripts(reference: Options) -> None:
    for name, scripts in reference.items():
        for letters, default in scripts.items():
            assert ROWS[name].default_there[letters.endswith("L")] == default, (name, letters)


@pytest.mark.parametrize("name", TRAINED)
def test_the_default_here_is_that_of_the_trainers(name: str) -> None:
    from kcache.training.validation_steps import validation_steps

    for config in CONFIGS.values():
        known = {field.name: field.default for field in fields(config)}
        default = known.get(name, () if name == "validation_prompt" else REQUIRED)
        if name == "output_dir":
            default = REQUIRED
        if name == "validation_epochs":  # None stands for both, and is resolved where it is used
            assert default is None
            default = ROWS[name].default_here[0]
            due = validation_steps(config(cache="", output_dir=""), 1, 1, 12)  # type: ignore[arg-type]
            assert [step for step in range(13) if due(step)] == [0, 1, 1 + default, 1 + 2 * default, 12]
        if name == "num_validation_images":
            assert default is None
            continue
        assert (None if default == () else default) == ROWS[name].default_here[0], name


@pytest.mark.parametrize("name", OF_ENCODE)
def test_what_went_to_encoding_has_the_default_that_the_encode_shows(name: str) -> None:
    shown = " ".join(done(kcache("encode", "--help")).stdout.split())
    if "first argument" in ROWS[name].here:
        assert ROWS[name].default_here == (REQUIRED, REQUIRED)
        assert "encode [OPTIONS] DATASET CACHE" in shown
        return
    option = f"--{name.replace('_', '-')} NAME "
    assert option in shown
    said = re.match(r"[^\[]*\[default: ([^\]]*)\]", shown.split(option)[1].split(" --")[0])
    assert (said[1] if said else None) == ROWS[name].default_here[0]


@pytest.mark.parametrize("stage", CONFIGS)
def test_the_numbers_that_help_gives_as_defaults_are_the_defaults(stage: str) -> None:
    shown = " ".join(done(kcache("train", stage, "--help")).stdout.split())
    defaults = {field.name: field.default for field in fields(CONFIGS[stage])}
    numbers = 0
    for chunk in shown.split(" --")[1:]:
        name, said = chunk.split()[0].replace("-", "_"), re.search(r"\[default: ([0-9.e-]+)\]", chunk)
        if said:
            numbers += 1
            assert float(said[1]) == (1.0 if defaults[name] == () else defaults[name]), name
    assert numbers > 20


# --- the command line


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``configured(stage, *args)``: the configuration that a command line of a trainer stands for."""

    def run(stage: str, *args: object) -> Any:
        seen: list[Any] = []
        monkeypatch.setattr("kcache.training.train.train", seen.append)
        monkeypatch.setattr(f"kcache.cli.train_{stage}.print_report", lambda report: 0)
        done(kcache("train", stage, *args))
        return seen[0]

    return run


EXAMPLES: dict[str, Any] = {
    "lr_scheduler": "cosine_with_restarts",
    "mixed_precision": "bf16",
    "seed": 7,
    "resolution": 64,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "report_to": "wandb",
    "validation_prompts": "a fox",
    "validation_prompt": "a fox",
}
"""A value for the options that would not take a 3."""


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("stage", CONFIGS)
def test_every_option_is_taken_in_both_spellings(stage: str, name: str, configured: Callable[..., Any]) -> None:
    default, example = ROWS[name].default_here[0], EXAMPLES.get(name, 3)
    for option in (f"--{name}", f"--{name.replace('_', '-')}"):
        words = [option] if default is False else [option, str(example)]
        for line in (words, ["=".join(words)]):
            config = configured(stage, "cache", *([] if name == "output_dir" else ["--output_dir=out"]), *line)
            field = "validation_prompts" if name == "validation_prompt" else name
            wanted = True if default is False else (example,) if field == "validation_prompts" else example
            kept = getattr(config, field)
            assert kept == (type(kept)(wanted) if isinstance(kept, str | float) else wanted)


def test_prompts_come_in_one_go_repeated_or_as_the_lora_scripts_have_them(configured: Callable[..., Any]) -> None:
    for line in (
        "--validation_prompts 'a fox' 'a bus' --seed 1",
        "--validation-prompts 'a fox' --seed 1 --validation-prompts 'a bus'",
        "--validation_prompts 'a fox' --validation_prompt 'a bus' --seed 1",
    ):
        config = configured("prior", "cache", "--output_dir=out", *shlex.split(line))
        assert (config.validation_prompts, config.seed) == (("a fox", "a bus"), 1)


@pytest.mark.parametrize("name", OF_ENCODE)
@pytest.mark.parametrize("stage", CONFIGS)
def test_an_option_of_the_dataset_is_answered_with_the_command_that_takes_it(stage: str, name: str) -> None:
    option = f"--{name.replace('_', '-')}"
    encode = (
        "kcache encode {} CACHE"
        if "first argument" in ROWS[name].here
        else f"kcache encode DATASET CACHE {option} {{}}"
    )
    for spelled in (option, f"--{name}"):
        said = refused(kcache("train", stage, "--output_dir=out", spelled, "things"), code=2)
        assert said == (
            f"{option} is about the dataset, which training does not read; encode once, and train with CACHE in its"
            f" place: {encode.format('things')}"
        )


def test_all_options_of_the_dataset_are_answered_at_once() -> None:
    line = "--dataset_name=user/things --caption_column=title --resolution=768 --train_batch_size=1 --output_dir=out"
    said = refused(kcache("train", "decoder", *line.split()), code=2)
    assert said.startswith("--dataset-name and --caption-column are about the dataset")
    assert said.endswith("in their place: kcache encode user/things CACHE --caption-column title --resolution 768")
    said = refused(kcache("train", "prior", *line.split()), code=2)
    assert said.endswith("in their place: kcache encode user/things CACHE --caption-column title")


def test_help_comes_before_any_refusal() -> None:
    assert "The run:" in done(kcache("train", "prior", "--dataset_name", "x", "--help")).stdout


@pytest.mark.parametrize("option", ["--dataset_name", "--train_data_dir"])
def test_the_encode_says_where_its_dataset_goes(option: str) -> None:
    said = refused(kcache("encode", option, "user/things", "cache"), code=2)
    assert said == f"{option.replace('_', '-')} is the first argument here: kcache encode user/things CACHE"


@pytest.mark.parametrize("stage", CONFIGS)
def test_help_shows_the_run_first_and_help_itself_last(stage: str) -> None:
    shown = done(kcache("train", stage, "--help")).stdout
    titles = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert titles == [
        "The run",
        "Which samples, and how each is read",
        "The update",
        "LoRA",
        "Speed and memory",
        "Validation",
        "Checkpoints",
        "What is told of the run",
        "Other options",
    ]
    assert "RANGE" not in shown
    assert re.search(r"^  -h, --help", shown.split("Other options:")[1], re.MULTILINE)


@pytest.mark.parametrize("command", [["train", "prior"], ["train", "decoder"], ["encode"]])
@pytest.mark.parametrize("width", [80, 100])
def test_help_keeps_to_the_width_of_the_terminal(
    command: list[str], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = done(kcache(*command, "--help")).stdout.splitlines()
    options = shown[next(i for i, line in enumerate(shown) if line.endswith(":") and line[0] != " ") :]
    assert max(map(len, options)) <= width
    assert max(map(len, shown)) <= 100  # of the examples, which are not wrapped


# --- what is copied from the page


def commands() -> list[list[str]]:
    """The lines of kcache in the page's blocks, as a shell reads them."""
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(line) for line in blocks.splitlines() if "kcache" in line]
    return [line[line.index("kcache") + 1 :] for line in lines]


def test_the_page_has_the_command_for_each_script_and_it_is_one(configured: Callable[..., Any]) -> None:
    encode, *trains = commands()
    assert encode == ["encode", "lambdalabs/naruto-blip-captions", "naruto", "--resolution", "768"]
    made = [configured(stage, *line) for _, stage, *line in trains]
    assert [(type(config), config.lora) for config in made] == [
        (PriorConfig, False),
        (DecoderConfig, False),
        (PriorConfig, True),
        (DecoderConfig, True),
    ]
    for script in SCRIPTS.values():
        assert f"{script} \\\n" in PAGE


def test_the_lines_that_rename_an_old_lora_make_a_checkpoint_with_it(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel
    from safetensors.torch import save_file

    unet = UNet2DConditionModel.from_pretrained(str(tiny_decoder), subfolder="unet")
    movq = VQModel.from_pretrained(str(tiny_decoder), subfolder="movq")
    scheduler = DDPMScheduler.from_pretrained(str(tiny_decoder), subfolder="scheduler")
    base = tmp_path / "base"
    KandinskyV22Pipeline(unet=unet, movq=movq, scheduler=scheduler).save_pretrained(str(base))
    old = old_lora(unet)
    (tmp_path / "their-lora").mkdir()
    save_file(old, tmp_path / "their-lora" / "pytorch_lora_weights.safetensors")
    (lines,) = re.findall(r"^ *```python\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(
        re.sub("^  ", "", lines, flags=re.MULTILINE).replace(
            '"kandinsky-community/kandinsky-2-2-decoder"', repr(str(base))
        )
    )
    merged = UNet2DConditionModel.from_pretrained("merged", subfolder="unet").state_dict()
    before = unet.state_dict()
    for name in (name for name in old if ".down." in name):
        layer = name.replace(".processor.", ".").split("_lora.")[0].replace(".to_out", ".to_out.0") + ".weight"
        learned = old[name.replace(".down.", ".up.")] @ old[name]
        torch.testing.assert_close(merged[layer], before[layer] + learned)
    changed = sum(not torch.equal(merged[name], before[name]) for name in before)
    assert changed == len(old) // 2


def old_lora(unet: Any) -> dict[str, torch.Tensor]:
    """A LoRA under the names that attention processors gave it, of every projection that the scripts adapt."""
    generator, layers, old = torch.Generator().manual_seed(3), dict(unet.named_modules()), {}
    for processor in unet.attn_processors:
        for projection in ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_out"):
            layer = f"{processor.removesuffix('.processor')}.{projection}{'.0' if projection == 'to_out' else ''}"
            if layer in layers:
                narrow, wide = layers[layer].in_features, layers[layer].out_features
                name = f"{processor}.{projection}_lora"
                old[f"{name}.down.weight"] = torch.randn(4, narrow, generator=generator) / 10
                old[f"{name}.up.weight"] = torch.randn(wide, 4, generator=generator) / 10
    return old


# --- what the scripts have left


def test_a_folder_as_the_scripts_save_it_is_a_checkpoint_to_begin_from(
    train: Train, whole: Path, tiny_prior: Path, tmp_path: Path
) -> None:
    theirs = saved_by_the_script(tiny_prior, tmp_path / "kandi_2_2-model-finetuned")
    said = refused(train("prior", whole, checkpoint=theirs))
    assert "was encoded with another text_encoder" in said
    assert said.endswith("add --ignore-encoder-mismatch")
    done(train("prior", whole, "--ignore-encoder-mismatch", checkpoint=theirs))


def test_a_checkpoint_of_the_scripts_cannot_be_resumed(
    train: Train, whole: Path, tiny_prior: Path, tmp_path: Path
) -> None:
    from diffusers import PriorTransformer

    theirs = tmp_path / "theirs" / "checkpoint-500"
    PriorTransformer.from_pretrained(str(tiny_prior), subfolder="prior").save_pretrained(str(theirs / "prior"))
    (theirs / "optimizer.bin").write_bytes(b"a pickle")
    said = refused(train("prior", whole, "--resume-from-checkpoint", theirs))
    assert said.startswith(f"{theirs} is not a kcache checkpoint")


def saved_by_the_script(checkpoint: Path, folder: Path) -> Path:
    """The pipeline of the prior as the script saves it: with encoders in 16 bits."""
    from diffusers import KandinskyV22PriorPipeline, PriorTransformer, UnCLIPScheduler
    from transformers import (
        CLIPImageProcessor,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionModelWithProjection,
    )

    parts = {
        "prior": PriorTransformer,
        "image_encoder": CLIPVisionModelWithProjection,
        "text_encoder": CLIPTextModelWithProjection,
        "tokenizer": CLIPTokenizer,
        "scheduler": UnCLIPScheduler,
        "image_processor": CLIPImageProcessor,
    }
    loaded: dict[str, Any] = {
        name: part.from_pretrained(str(checkpoint), subfolder=name) for name, part in parts.items()
    }
    for name in ("image_encoder", "text_encoder"):
        loaded[name] = loaded[name].half()
    KandinskyV22PriorPipeline(**loaded).save_pretrained(str(folder))
    return folder
