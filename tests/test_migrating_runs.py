"""What every option of the reference's scripts does to a run of kcache: seen in what the run leaves, or refused."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import done, kcache, refused
from reference_options import known_options
from safetensors.torch import load_file
from support import metrics

from kcache.training.config import PriorConfig
from kcache.training.optimizers import make_optimizer, optimizer_name

TRIED: set[str] = set()
"""The options that a test of this file tries."""


def tries(*options: str) -> Callable[[Any], Any]:
    """Marks a test as that of some options."""
    TRIED.update(options)
    return lambda test: test


@dataclass(frozen=True)
class Done:
    """What a run left."""

    out: Path
    said: str

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in metrics(self.out)]

    @property
    def rates(self) -> list[float]:
        return [line["learning_rate"] for line in metrics(self.out)]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        (file,) = [*self.out.glob("prior/*.safetensors"), *self.out.glob("unet/*.safetensors")]
        return load_file(file)

    @property
    def lora(self) -> dict[str, torch.Tensor]:
        return load_file(self.out / "pytorch_lora_weights.safetensors")

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in self.out.glob("checkpoint-*"))

    def record(self, name: str) -> Any:
        return json.loads((self.out / name).read_text())


Run = Callable[..., Done]


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, tiny_prior: Path, tiny_decoder: Path
) -> Callable[..., Done]:
    """``run(stage, *options)``: four updates of two samples from the tiny checkpoints, unless ``options`` differ."""

    def train(stage: str, *options: object, code: int = 0, out: Path | None = None) -> Done:
        out = out or tmp_path_factory.mktemp("runs") / "out"
        usual = {
            "--output_dir": out,
            f"--pretrained_{stage}_model_name_or_path": {"prior": tiny_prior, "decoder": tiny_decoder}[stage],
            "--max_train_steps": 4,
            "--train_batch_size": 2,
            "--learning_rate": 1e-2,
            "--seed": 0,
            "--logging_steps": 1,
            "--probe_samples": 0,
            "--resolution": 32,
        }
        given = {str(option).partition("=")[0] for option in options}
        if "--num_train_epochs" in given:
            del usual["--max_train_steps"]
        fixed = [f"{name}={value}" for name, value in usual.items() if name not in given]
        result = done(kcache("train", stage, whole, *fixed, *options), code)
        return Done(out, result.stdout + result.stderr)

    return train


@pytest.fixture(scope="module")
def base(run: Run) -> Done:
    """The prior's run that others are compared with."""
    return run("prior")


def same(one: Done, other: Done) -> bool:
    """Whether two runs ended with the same weights to the bit."""
    return all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())


def moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The distance between two sets of weights."""
    return float(sum((tensor - other[name]).square().sum() for name, tensor in one.items()) ** 0.5)


# --- the checkpoints and the dataset


@tries("pretrained_prior_model_name_or_path", "pretrained_decoder_model_name_or_path", "output_dir", "resolution")
def test_the_run_begins_from_its_own_checkpoint_alone_and_ends_in_its_folder(
    run: Run, base: Done, tiny_prior: Path, tiny_decoder: Path
) -> None:
    decoder = run("decoder", "--gradient_checkpointing")
    for result, checkpoint in ((base, tiny_prior), (decoder, tiny_decoder)):
        assert result.record("training.json")["trained_from"] == str(checkpoint)
        assert result.weights
    assert "latents-32" in decoder.record("run.json")["caches"][0]["columns"]
    assert "latents at 64 px (it has: 32)" in run("decoder", "--resolution=64", code=2).said
    assert base.record("training.json")["options"]["resolution"] == 32


@tries("cache_dir")
def test_checkpoints_from_the_hub_are_kept_where_it_was_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["cache_dir"]))
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    run("prior", "--pretrained_prior_model_name_or_path=some/prior", f"--cache_dir={tmp_path}", code=1)
    assert asked == [("some/prior", str(tmp_path))]


@tries("dataset_name", "train_data_dir", "dataset_config_name", "image_column", "caption_column")
@pytest.mark.parametrize("lora", [[], ["--lora"]])
def test_what_is_about_the_dataset_is_refused_before_anything_is_read(lora: list[str], tmp_path: Path) -> None:
    for option in ("dataset_name", "train_data_dir", "dataset_config_name", "image_column", "caption_column"):
        said = refused(kcache("train", "prior", *lora, f"--output_dir={tmp_path / 'out'}", f"--{option}=x"), code=2)
        assert said.startswith(f"--{option.replace('_', '-')} is about the dataset")
    assert not list(tmp_path.iterdir())


@tries("max_train_samples", "num_train_epochs", "train_batch_size")
def test_so_many_samples_are_passed_so_often_in_batches_of_so_many(run: Run) -> None:
    some = run("prior", "--max_train_samples=6", "--num_train_epochs=2", "--train_batch_size=4")
    assert len(some.losses) == 3  # 2 * 6 / 4
    assert "(2.0 epochs of 6 samples)" in some.said
    assert some.record("run.json")["caches"][0]["trained_on"] == 6
    more = run("prior", "--max_train_samples=600", "--num_train_epochs=1")
    assert "(1.0 epochs of 10 samples)" in more.said


@tries("dataloader_num_workers", "local_rank", "seed")
def test_what_has_no_use_is_said_and_changes_nothing(run: Run, base: Done) -> None:
    again = run("prior", "--dataloader_num_workers=4", "--local_rank", "-1")
    assert "--dataloader-num-workers is accepted and has no effect" in again.said
    assert "--local-rank is accepted and has no effect" in again.said
    assert same(again, base)
    assert run("prior", "--seed=1").losses != base.losses


# --- the update


@tries("gradient_accumulation_steps", "max_train_steps")
def test_two_batches_of_one_are_an_update_of_two(run: Run, base: Done) -> None:
    two = run("prior", "--train_batch_size=1", "--gradient_accumulation_steps=2")
    assert len(two.losses) == len(base.losses) == 4
    assert two.losses == pytest.approx(base.losses, rel=1e-4)


@tries("learning_rate", "lr_scheduler", "lr_warmup_steps")
def test_the_rate_rises_for_as_many_updates_as_asked_for_whatever_the_accumulation(run: Run, base: Done) -> None:
    options = ["--lr_scheduler=constant_with_warmup", "--lr_warmup_steps=2", "--learning_rate=1e-3"]
    assert run("prior", *options, "--gradient_accumulation_steps=4").rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])
    falling = run("prior", "--lr_scheduler=linear", "--lr_warmup_steps=0", "--learning_rate=1e-3")
    assert falling.rates == pytest.approx([7.5e-4, 5e-4, 2.5e-4, 0])
    assert base.rates == pytest.approx([1e-2] * 4)


@tries("snr_gamma")
def test_min_snr_weighs_the_loss_from_the_first_update_on(run: Run, base: Done) -> None:
    assert run("prior", "--snr_gamma=0.5").losses[0] < base.losses[0]


@tries("adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon")
def test_the_options_of_adam_reach_the_optimizer() -> None:
    given = {"adam_beta1": 0.8, "adam_beta2": 0.98, "adam_weight_decay": 0.1, "adam_epsilon": 1e-6}
    config = PriorConfig(cache="", output_dir="", **given)
    (group,) = make_optimizer(config, [torch.nn.Parameter(torch.ones(2))], torch.device("cpu")).param_groups
    assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.8, 0.98), 0.1, 1e-6)


@tries("use_8bit_adam")
def test_8_bit_adam_is_that_of_bitsandbytes_and_named_where_it_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert optimizer_name(PriorConfig(cache="", output_dir="", use_8bit_adam=True)) == "adamw8bit"
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    assert "pip install 'kcache[bitsandbytes]'" in run("prior", "--use_8bit_adam", code=1).said


@tries("max_grad_norm")
def test_no_update_is_longer_than_the_largest_norm(run: Run, tiny_prior: Path) -> None:
    start = load_file(tiny_prior / "prior" / "diffusion_pytorch_model.safetensors")
    short = run("prior", "--max_grad_norm=1e-3", "--optimizer=sgd", "--learning_rate=1")
    assert 2e-3 < moved(short.weights, start) < 4.01e-3


@tries("use_ema")
def test_the_average_is_the_result_and_the_training_is_the_same(run: Run, base: Done) -> None:
    averaged = run("prior", "--use_ema")
    assert averaged.losses == base.losses
    assert not same(averaged, base)


@tries("rank")
@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_lora_has_the_rank_that_was_asked_for(run: Run, stage: str) -> None:
    tensors = run(stage, "--lora", "--rank=2", "--use_ema", "--max_train_steps=1").lora
    assert {min(tensor.shape) for tensor in tensors.values()} == {2}


# --- speed and memory


@pytest.fixture
def precision_may_change() -> Iterator[None]:
    """accelerate keeps the first precision of a process, where a command has a process of its own."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@tries("mixed_precision")
@pytest.mark.usefixtures("precision_may_change")
def test_half_precision_is_near_and_not_equal(run: Run, base: Done) -> None:
    half = run("prior", "--mixed_precision=bf16")
    assert half.losses == pytest.approx(base.losses, rel=0.05)
    assert half.losses != base.losses
    assert {tensor.dtype for tensor in half.weights.values()} == {torch.float32}


@tries("allow_tf32", "gradient_checkpointing")
def test_activations_computed_again_give_the_same_and_tf32_is_switched_on(
    run: Run, base: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.checkpoint import checkpoint

    again: list[Any] = []

    def counted(forward: Any, *args: Any, **kwargs: Any) -> Any:
        again.append(forward)
        return checkpoint(forward, *args, **kwargs)

    monkeypatch.setattr("kcache.training.memory.checkpoint", counted)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        saving = run("prior", "--gradient_checkpointing", "--allow_tf32")
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert len(again) == 4 * 2  # updates times blocks
    assert saving.losses == pytest.approx(base.losses, rel=1e-5)


@tries("enable_xformers_memory_efficient_attention")
@pytest.mark.parametrize(("stage", "said"), [("prior", "is for the decoder"), ("decoder", "needs a CUDA device")])
def test_xformers_is_refused_where_it_is_not_for(
    run: Run, stage: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kcache.training.memory.default_device", lambda: torch.device("cpu"))
    refusal = run(stage, "--enable_xformers_memory_efficient_attention", code=2)
    assert f"--enable-xformers-memory-efficient-attention {said}" in refusal.said
    assert not refusal.out.exists()


# --- validation


@pytest.fixture
def few_denoising_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of nothing, quickly."""
    monkeypatch.setattr("kcache.training.painter.STEPS", 2)


@pytest.mark.usefixtures("few_denoising_steps")
@tries("validation_prompts", "validation_prompt", "num_validation_images", "validation_epochs")
def test_prompts_are_drawn_into_the_output_folder_every_so_many_epochs(run: Run, tiny_decoder: Path) -> None:
    beside = f"--pretrained_decoder_model_name_or_path={tiny_decoder}"
    prompts = ["--validation_prompts", "a fox", "a bus", "--validation_prompt=a ghost"]
    times = ["--num_train_epochs=3", "--validation_epochs=2", "--train_batch_size=5", "--num_validation_images=2"]
    drawn = run("prior", beside, *prompts, *times)
    sheets = sorted(path.name for path in drawn.out.glob("validation/step-*.png"))
    # before the first update, after epochs 1 and 3
    assert sheets == ["step-000000.png", "step-000002.png", "step-000006.png"]
    cells = drawn.record("validation/step-000006.json")["cells"]
    assert [cell["caption"] for cell in cells] == ["a fox", "a fox", "a bus", "a bus", "a ghost", "a ghost"]


@pytest.mark.usefixtures("few_denoising_steps")
@tries("num_validation_images", "validation_epochs")
def test_a_lora_is_drawn_four_times_after_every_epoch_and_a_whole_component_once_after_the_first(
    run: Run, tiny_decoder: Path
) -> None:
    beside = f"--pretrained_decoder_model_name_or_path={tiny_decoder}"
    for lora, pictures, steps in (([], 1, [0, 1, 2]), (["--lora"], 4, [0, 1, 2])):
        drawn = run(
            "prior", beside, *lora, "--validation_prompt=a fox", "--num_train_epochs=2", "--train_batch_size=10"
        )
        sheets = sorted(drawn.out.glob("validation/step-*.json"))
        assert [json.loads(sheet.read_text())["step"] for sheet in sheets] == steps
        assert {len(json.loads(sheet.read_text())["cells"]) for sheet in sheets} == {pictures}


# --- checkpoints, and what is told


@tries("checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint")
def test_the_newest_checkpoints_are_kept_and_gone_on_from(run: Run, base: Done) -> None:
    options = ["--checkpointing_steps=1", "--checkpoints_total_limit=2"]
    cut = run("prior", *options, "--max_train_steps=3")
    assert cut.checkpoints == ["checkpoint-2", "checkpoint-3"]
    run("prior", *options, "--resume_from_checkpoint=latest", out=cut.out)
    assert cut.checkpoints == ["checkpoint-3", "checkpoint-4"]
    assert same(cut, base)
    run("prior", *options, f"--resume_from_checkpoint={cut.out / 'checkpoint-3'}", out=cut.out)
    assert same(cut, base)
    assert len(cut.losses) == 4


@tries("report_to", "logging_dir", "tracker_project_name")
def test_tensorboard_has_its_folder_in_the_output_folder(run: Run) -> None:
    told = run("prior", "--report_to=tensorboard", "--logging_dir=told", "--tracker_project_name=foxes")
    assert list(told.out.glob("told/foxes/events.out.tfevents.*"))
    assert len(told.losses) == 4


@tries("push_to_hub", "hub_model_id", "hub_token")
def test_an_upload_that_cannot_be_is_refused_before_training(run: Run) -> None:
    options = ["--push_to_hub", "--hub_model_id=someone/foxes", "--hub_token=hf_secret"]
    refusal = run("prior", *options, code=1)
    assert "the hub does not take someone/foxes" in refusal.said
    assert "hf_secret" not in refusal.said
    assert not list(refusal.out.glob("checkpoint-*"))


@tries("hub_token")
@pytest.mark.parametrize("tracker", ["wandb", "comet_ml"])
def test_a_tracker_that_keeps_the_command_line_gets_no_token(
    run: Run, tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kcache.training.trackers._is_installed", lambda name: True)
    refusal = run("prior", "--push_to_hub", "--hub_token=hf_secret", f"--report_to={tracker}", code=2)
    assert f"{tracker} would store --hub-token" in refusal.said
    assert "hf_secret" not in refusal.said


def test_every_option_of_the_scripts_is_tried_in_this_file() -> None:
    assert known_options().keys() == TRIED
