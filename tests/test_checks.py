"""Options that contradict one another or ask for nothing are refused before a cache or a model is opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import done, kcache, refused
from reference_options import known_options

from kcache.shards import KcacheError, UsageError
from kcache.training.checks import check_config
from kcache.training.config import DecoderConfig, PriorConfig

Config = Callable[..., PriorConfig | DecoderConfig]


def prior(**options: Any) -> PriorConfig:
    """The options of a run whose cache does not exist: nothing here may look at it."""
    return PriorConfig(cache="nowhere", output_dir="nowhere", **options)


def decoder(**options: Any) -> DecoderConfig:
    return DecoderConfig(cache="nowhere", output_dir="nowhere", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 8}, "--rank 8 has no effect without --lora; add it, or leave --rank out"),
        ({"lora_alpha": 8.0}, "--lora-alpha 8.0 has no effect without --lora; add it, or leave --lora-alpha out"),
        ({"lora_dropout": 0.1}, "--lora-dropout 0.1 has no effect without --lora"),
        ({"lora_targets": ("attention", "ff")}, "--lora-targets attention ff has no effect without --lora"),
        ({"use_dora": True}, "--use-dora has no effect without --lora; add it, or leave --use-dora out"),
        ({"ema_decay": 0.99}, "--ema-decay 0.99 has no effect without --use-ema"),
        ({"loss_weight": (0.5,)}, "--loss-weight 0.5 has no effect without --mix"),
        ({"validation_samples": 8}, "--validation-samples 8 has no effect without --validation-split"),
        ({"early_stopping": 3, "validation_prompts": ("a fox",)}, "--early-stopping 3 has no effect without"),
        ({"validation_epochs": 2}, "--validation-epochs 2 has no effect without --validation-split or --validation-"),
        ({"validation_steps": 2}, "--validation-steps 2 has no effect without --validation-split or --validation-prom"),
        (
            {"validation_guidance_scale": 1.0},
            "--validation-guidance-scale 1.0 has no effect without --validation-split or",
        ),
        ({"num_validation_images": 3}, "--num-validation-images 3 has no effect without --validation-prompts"),
        ({"logging_dir": "told"}, "--logging-dir told has no effect without --report-to"),
        ({"tracker_project_name": "foxes"}, "--tracker-project-name foxes has no effect without --report-to"),
        ({"hub_model_id": "me/foxes"}, "--hub-model-id me/foxes has no effect without --push-to-hub"),
        ({"hub_private_repo": True}, "--hub-private-repo has no effect without --push-to-hub"),
        ({"accept_new_snapshot": True}, "--accept-new-snapshot has no effect without --resume-from-checkpoint"),
    ],
)
@pytest.mark.parametrize("config", [prior, decoder])
def test_an_option_that_has_no_effect_names_the_one_that_it_needs(
    config: Config, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as error:
        check_config(config(**options))
    assert str(error.value).startswith(said)
    assert str(error.value).endswith("out")


def test_a_token_is_not_said_again() -> None:
    with pytest.raises(UsageError) as error:
        check_config(prior(hub_token="hf_secret"))
    assert str(error.value) == "--hub-token has no effect without --push-to-hub; add it, or leave --hub-token out"


@pytest.mark.parametrize(
    "options",
    [
        {"lora": True, "rank": 8, "lora_alpha": 4.0, "lora_dropout": 0.1, "use_dora": True},
        {"use_ema": True, "ema_decay": 0.99},
        {"mix": (("other", 0.3),), "loss_weight": (0.5,)},
        {"validation_split": 0.1, "validation_samples": 8, "early_stopping": 3, "validation_steps": 10},
        {"validation_prompts": ("a fox",), "validation_epochs": 2, "num_validation_images": 3},
        {"report_to": "tensorboard", "logging_dir": "told", "tracker_project_name": "foxes"},
        {"push_to_hub": True, "hub_model_id": "me/foxes", "hub_token": "hf_secret", "hub_private_repo": True},
        {"resume_from_checkpoint": "latest", "accept_new_snapshot": True},
    ],
)
def test_with_what_they_need_the_same_options_pass(options: dict[str, Any]) -> None:
    check_config(prior(**options))
    check_config(decoder(**options))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            prior(validation_prompts=("a fox",), validation_epochs=2, validation_steps=50),
            "--validation-epochs 2 and --validation-steps 50 both say when to validate; give one of them",
        ),
        (
            decoder(buckets=True, random_crops=True),
            "a picture is cut to its bucket or at random; give --buckets or --random-crops, not both",
        ),
        (
            prior(mix=(("one", 0.1), ("two", 0.1)), loss_weight=(1.0,)),
            "1 --loss-weight for 2 --mix; give one for each, in their order",
        ),
        (prior(lr_power=2.0), "--lr-power is for --lr-scheduler polynomial, not constant; leave it out"),
        (prior(optimizer="sgd", adam_beta1=0.5), "--adam-beta1 0.5 is given, and --optimizer sgd has nothing like it"),
        (prior(optimizer="sgd", use_8bit_adam=True), "--use-8bit-adam is --optimizer adamw8bit, and --optimizer sgd"),
        (prior(optimizer_args=("momentum",)), "--optimizer-args takes NAME=VALUE, and 'momentum' is none"),
        (prior(report_to="tensorbord"), "--report-to tensorbord is not known; choose "),
        (prior(where="width >"), "--where"),
        (prior(where="widht > 3"), "--where"),
        (prior(sample_ids="nowhere.txt"), "--sample-ids nowhere.txt cannot be read"),
        (prior(enable_xformers_memory_efficient_attention=True), "--enable-xformers-memory-efficient-attention is for"),
    ],
)
def test_what_contradicts_or_cannot_be_read_is_refused(config: PriorConfig | DecoderConfig, said: str) -> None:
    with pytest.raises(UsageError) as error:
        check_config(config)
    assert str(error.value).startswith(said)


def test_a_token_and_a_tracker_that_would_store_it_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kcache.training.trackers._is_installed", lambda name: True)
    with pytest.raises(UsageError, match="wandb would store --hub-token with the command line"):
        check_config(prior(report_to="wandb", push_to_hub=True, hub_token="hf_secret"))


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kcache.training.trackers._is_installed", lambda name: False)
    with pytest.raises(KcacheError, match=r"pip install kcache\[tensorboard\]"):
        check_config(prior(report_to="tensorboard"))


@pytest.mark.parametrize(("stage", "script"), [("prior", "P"), ("decoder", "D"), ("prior", "PL"), ("decoder", "DL")])
def test_the_defaults_of_a_script_may_all_be_written_out(stage: str, script: str, tmp_path: Path) -> None:
    of_dataset = {"dataset_name", "train_data_dir", "dataset_config_name", "image_column", "caption_column"}
    written = [
        f"--{name}={scripts[script]}"
        for name, scripts in known_options().items()
        if scripts.get(script) not in (None, False) and name not in {*of_dataset, "output_dir"}
    ]
    lora = ["--lora"] if script.endswith("L") else []
    cache = tmp_path / "cache"
    said = refused(kcache("train", stage, cache, *lora, *written, f"--output-dir={tmp_path / 'out'}"))
    assert said.startswith(f"{cache} "), said  # that there is none: what comes after all checks


def test_a_refusal_is_wrong_usage_and_leaves_nothing_behind(whole: Path, tmp_path: Path) -> None:
    result = done(kcache("train", "prior", whole, "--output-dir", tmp_path / "out", "--rank", "8"), code=2)
    assert result.stderr.endswith("Error: --rank 8 has no effect without --lora; add it, or leave --rank out\n")
    assert not list(tmp_path.iterdir())
