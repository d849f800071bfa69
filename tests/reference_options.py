"""The options of the reference's four scripts: which script has which, and with which default."""

import ast
from pathlib import Path
from typing import Any

SCRIPTS = {
    "P": "train_text_to_image_prior.py",
    "D": "train_text_to_image_decoder.py",
    "PL": "train_text_to_image_lora_prior.py",
    "DL": "train_text_to_image_lora_decoder.py",
}
"""By the letters that docs/migrating.md has for them."""
FOLDER = Path("examples/kandinsky2_2/text_to_image")

Options = dict[str, dict[str, Any]]
"""For each option, by script, the default; that of a flag is False."""

_PRIOR, _DECODER = "kandinsky-community/kandinsky-2-2-prior", "kandinsky-community/kandinsky-2-2-decoder"
_OUT = "kandi_2_2-model-finetuned"

_OF_ALL = {
    "pretrained_decoder_model_name_or_path": _DECODER,
    "pretrained_prior_model_name_or_path": _PRIOR,
    "dataset_name": None,
    "dataset_config_name": None,
    "train_data_dir": None,
    "image_column": "image",
    "max_train_samples": None,
    "cache_dir": None,
    "seed": None,
    "resolution": 512,
    "train_batch_size": 1,
    "num_train_epochs": 100,
    "max_train_steps": None,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 500,
    "snr_gamma": None,
    "use_8bit_adam": False,
    "allow_tf32": False,
    "dataloader_num_workers": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 0.0,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "push_to_hub": False,
    "hub_token": None,
    "hub_model_id": None,
    "logging_dir": "logs",
    "mixed_precision": None,
    "report_to": "tensorboard",
    "local_rank": -1,
    "checkpointing_steps": 500,
    "checkpoints_total_limit": None,
    "resume_from_checkpoint": None,
}

_OF_SOME: Options = {
    "output_dir": {"P": _OUT, "D": _OUT, "PL": f"{_OUT}-lora", "DL": f"{_OUT}-lora"},
    "validation_epochs": {"P": 5, "D": 5, "PL": 1, "DL": 1},
    "validation_prompts": {"P": None, "D": None},
    "validation_prompt": {"PL": None, "DL": None},
    "num_validation_images": {"PL": 4, "DL": 4},
    "tracker_project_name": dict.fromkeys("PD", "text2image-fine-tune"),
    "use_ema": {"P": False, "D": False},
    "rank": {"PL": 4, "DL": 4},
    "caption_column": {"P": "text", "PL": "text"},
    "gradient_checkpointing": {"D": False, "DL": False},
    "enable_xformers_memory_efficient_attention": {"D": False},
}


def known_options() -> Options:
    """As the scripts were when kcache was compared with them (diffusers 0.40 development)."""
    return {name: dict.fromkeys(SCRIPTS, default) for name, default in _OF_ALL.items()} | _OF_SOME


def read_options(diffusers: Path) -> Options:
    """As a checkout of diffusers has them; the scripts are read and not run."""
    options: Options = {}
    for letters, script in SCRIPTS.items():
        for node in ast.walk(ast.parse((diffusers / FOLDER / script).read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                given = {word.arg: word.value for word in node.keywords}
                name = str(ast.literal_eval(node.args[0])).removeprefix("--")
                is_flag = "action" in given
                options.setdefault(name, {})[letters] = False if is_flag else ast.literal_eval(given["default"])
    return options
