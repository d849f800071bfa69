"""The options of the two trainers, with the reference's defaults."""

from dataclasses import dataclass

from kcache.checkpoints import DECODER, PRIOR

SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What both trainers take. Batch size is per device; None means decided elsewhere, as its comment says."""

    cache: str
    output_dir: str
    revision: str | None = None
    variant: str | None = None
    cache_dir: str | None = None
    seed: int | None = None  # drawn, and kept in the checkpoints
    train_batch_size: int = 1
    num_train_epochs: int = 100
    max_train_steps: int | None = None  # as many as the epochs need
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 500
    snr_gamma: float | None = None  # no weighting
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    mixed_precision: str | None = None  # accelerate's configuration
    allow_tf32: bool = False
    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = None  # keep all
    resume_from_checkpoint: str | None = None
    accept_new_snapshot: bool = False
    logging_steps: int = 10
    probe_samples: int = 256
    check_crc: bool = True
    partial: bool = False
    ignore_encoder_mismatch: bool = False
    random_flip: bool = False
    random_crops: bool = False


@dataclass(frozen=True, kw_only=True)
class PriorConfig(TrainConfig):
    """The options of ``kcache train prior``."""

    pretrained_prior_model_name_or_path: str = PRIOR
    trim_captions: bool = True
    text_column: str = "text"


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(TrainConfig):
    """The options of ``kcache train decoder``."""

    pretrained_decoder_model_name_or_path: str = DECODER
    resolution: int = 512
    buckets: bool = False
    gradient_checkpointing: bool = False
