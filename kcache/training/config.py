"""The options of the two trainers, with the reference's defaults."""

from dataclasses import dataclass

from kcache.checkpoints import DECODER, PRIOR

SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "piecewise_constant",
)
CAPTIONS = ("one", "all")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What both trainers take. Batch size is per device; None means decided elsewhere, as its comment says."""

    cache: str
    output_dir: str
    pretrained_prior_model_name_or_path: str = PRIOR
    pretrained_decoder_model_name_or_path: str = DECODER
    revision: str | None = None
    variant: str | None = None
    cache_dir: str | None = None
    seed: int | None = None  # drawn, and kept in the checkpoints

    # Which samples, and how each is read
    where: str | None = None  # all rows
    sample_ids: str | None = None  # a file with one id in each line; all rows
    max_train_samples: int | None = None  # all rows
    mix: tuple[tuple[str, float], ...] = ()
    loss_weight: tuple[float, ...] = ()  # 1 for each cache of `mix`
    conditioning_dropout: float = 0.0
    random_flip: bool = False
    random_crops: bool = False
    partial: bool = False
    ignore_encoder_mismatch: bool = False
    check_crc: bool = True
    local_cache: str | None = None  # for caches in a store: see `LocalCache.default`
    local_cache_size: str | None = None

    # The update
    train_batch_size: int = 1
    num_train_epochs: int = 100
    max_train_steps: int | None = None  # as many as the epochs need
    gradient_accumulation_steps: int = 1
    snr_gamma: float | None = None  # no weighting
    max_grad_norm: float = 1.0  # 0: gradients are not scaled down
    optimizer: str = "adamw"
    optimizer_args: tuple[str, ...] = ()  # NAME=VALUE, of the optimizer's own
    use_8bit_adam: bool = False
    learning_rate: float = 1e-4
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 500
    lr_num_cycles: float | None = None  # 1 restart, or half a cosine
    lr_power: float = 1.0
    lr_step_rules: str | None = None  # such as 1:10,0.1:20,0.01
    use_ema: bool = False
    ema_decay: float = 0.9999

    # LoRA
    lora: bool = False
    rank: int = 4
    lora_alpha: float | None = None  # the rank, which makes the scale 1
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ("attention",)
    use_dora: bool = False

    # Speed and memory
    mixed_precision: str | None = None  # accelerate's configuration
    allow_tf32: bool = False
    gradient_checkpointing: bool = False
    weights_dtype: str = "fp32"  # of a whole component; bf16 is updated with stochastic rounding
    base_dtype: str = "fp32"  # of what a LoRA is trained on
    update_in_backward: bool = False
    offload_optimizer: bool = False
    enable_xformers_memory_efficient_attention: bool = False

    # Validation
    validation_split: float = 0.0
    validation_samples: int = 512
    validation_prompts: tuple[str, ...] = ()
    validation_epochs: int | None = None  # the reference's: 5, and 1 for LoRA
    validation_steps: int | None = None  # by epochs
    num_validation_images: int | None = None  # the reference's: 1 of each prompt, and 4 for LoRA
    validation_guidance_scale: float = 4.0  # the pipelines' own
    early_stopping: int | None = None  # never
    probe_samples: int = 256

    # Checkpoints and what is told of the run
    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = None  # keep all
    resume_from_checkpoint: str | None = None
    accept_new_snapshot: bool = False
    logging_steps: int = 10
    logging_dir: str = "logs"
    report_to: str | None = None  # metrics.jsonl alone
    tracker_project_name: str = "text2image-fine-tune"
    push_to_hub: bool = False
    hub_token: str | None = None  # that of 'hf auth login'
    hub_model_id: str | None = None  # the name of output_dir
    hub_private_repo: bool = False


@dataclass(frozen=True, kw_only=True)
class PriorConfig(TrainConfig):
    """The options of ``kcache train prior``."""

    trim_captions: bool = True
    draws_per_sample: int = 1
    pack_captions: bool = False
    group_by_length: bool = False
    compile: bool = False
    text_column: str = "text"
    captions: str = "one"
    resolution: int = 512  # of validation pictures


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(TrainConfig):
    """The options of ``kcache train decoder``."""

    resolution: int = 512
    buckets: bool = False
    channels_last: bool = False
