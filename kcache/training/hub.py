"""``--push-to-hub``: a repository made before training begins, and the result uploaded to it in one commit."""

import json
import shlex
from pathlib import Path
from typing import Any

from kcache.checkpoints import training_record
from kcache.progress import logger
from kcache.shards import KcacheError, UsageError

from .card import PICTURE, public_name, write_card
from .config import TrainConfig

_RESULTS = ("prior", "unet", "pytorch_lora_weights.safetensors")
"""What a run may have made: a component's folder, or a LoRA."""

_HERE = ("output_dir", "resume_from_checkpoint", "sample_ids", "cache_dir", "logging_dir")
"""Options that name places on this machine and mean nothing elsewhere."""

_NAMES = ("cache", "mix", "pretrained_prior_model_name_or_path", "pretrained_decoder_model_name_or_path")
"""Options that may be a folder of this machine, and whose last name says something elsewhere too."""


def prepare(config: TrainConfig) -> str | None:
    """Make the repository and see that it may be written to; returns ``owner/name``, or None without ``--push-to-hub``.

    KcacheError before any training where there is no login, no right or no network. For the main process only.
    """
    if not config.push_to_hub:
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    wanted = config.hub_model_id or Path(config.output_dir).resolve().name
    api = HfApi(token=config.hub_token)
    try:
        # The hub's own default where it was not asked for: an organization may make its repositories private.
        private = True if config.hub_private_repo else None
        repo_id = str(api.create_repo(wanted, private=private, exist_ok=True).repo_id)
        api.auth_check(repo_id, write=True)
    except HFValidationError as error:
        raise UsageError(f"'{wanted}' cannot be a name on the hub ({_cause(error)}); give --hub-model-id") from None
    except Exception as error:  # a different class for each way of not being reachable
        raise KcacheError(f"the hub does not take {wanted} ({_cause(error)}); {_remedy(error)}") from error
    logger.info("the result will be uploaded to %s", repo_id)
    return repo_id


def upload(config: TrainConfig, repo_id: str, output_dir: Path) -> None:
    """Write the card for ``repo_id`` and upload the result: component or LoRA, card, picture and options.

    Checkpoints, logs and caches stay here, and so does every path of this machine. KcacheError where it fails; all of
    it is in ``output_dir`` then.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    write_card(output_dir, repo_id)
    files = _files(output_dir)
    operations = [CommitOperationAdd(path.relative_to(output_dir).as_posix(), str(path)) for path in files]
    record = json.dumps(public_record(training_record(output_dir)), indent=1) + "\n"
    operations.append(CommitOperationAdd("training.json", record.encode()))
    try:
        done = HfApi(token=config.hub_token).create_commit(
            repo_id, operations, commit_message="A result of kcache train", repo_type="model"
        )
    except Exception as error:  # a different class for each way of failing
        raise KcacheError(
            f"the result was not uploaded ({_causes(error)}); it is whole in {output_dir}, and"
            f" '{_upload_command(repo_id, output_dir, files)}' uploads it"
        ) from error
    logger.info("uploaded to %s", done.repo_url)


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """``training.json`` without the folders of this machine."""
    options = {
        name: _public(value) if name in _NAMES else value
        for name, value in record["options"].items()
        if name not in _HERE and not name.startswith("hub_")
    }
    return record | {"trained_from": public_name(record["trained_from"]), "options": options}


def _public(value: Any) -> Any:
    """A name as others may see it, also inside the pairs of ``--mix``."""
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    return public_name(value) if isinstance(value, str) else value


def _files(output_dir: Path) -> list[Path]:
    found = [output_dir / "README.md", output_dir / PICTURE, *(output_dir / name for name in _RESULTS)]
    inside = [sorted(path.rglob("*")) if path.is_dir() else [path] for path in found]
    return [path for paths in inside for path in paths if path.is_file()]


def _upload_command(repo_id: str, output_dir: Path, files: list[Path]) -> str:
    words = ["hf", "upload", repo_id, str(output_dir), "."]
    for path in files:
        words += ["--include", path.relative_to(output_dir).as_posix()]
    return shlex.join(words)


_REFUSALS = {401: "it knows no such login", 403: "this login may not write there", 404: "it has no such place"}


def _cause(error: BaseException) -> str:
    """Why, in few words: the first line of what the hub's library says; what is below is for its developers."""
    text = str(error).strip() or type(error).__name__
    return _REFUSALS.get(_status(error)) or text.split("\n")[0].rstrip(".: ")


def _status(error: BaseException) -> int:
    """The status of the hub's answer; 0 where there was none."""
    response = getattr(error, "response", None)
    return 0 if response is None else int(response.status_code)


def _causes(error: BaseException) -> str:
    """Which file it was, and why."""
    said = _cause(error)
    return f"{said}: {_causes(error.__cause__)}" if isinstance(error, RuntimeError) and error.__cause__ else said


def _remedy(error: Exception) -> str:
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalTokenNotFoundError) or _status(error) == 401:
        return "run 'hf auth login', or set HF_TOKEN, with a token that may write"
    if _status(error) in (403, 404):
        return "give a token that may write there (--hub-token, or 'hf auth login'), or another --hub-model-id"
    if isinstance(error, OfflineModeIsEnabled):
        return "unset HF_HUB_OFFLINE, or leave --push-to-hub out and run 'hf upload' later"
    return "look at the connection, or leave --push-to-hub out and run 'hf upload' later"
