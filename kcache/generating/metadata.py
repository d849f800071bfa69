"""How a picture was made, in the metadata of its PNG: written with it, and read by `kcache info PICTURE`."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from kcache import __version__
from kcache.checkpoints import Checkpoint, training_record
from kcache.fingerprints import file_sha256, weights_sha256
from kcache.lora_file import LORA_FILE
from kcache.results import KINDS, lora_base
from kcache.shards.errors import KcacheError

from .config import GenerateConfig
from .mixing import Mix
from .wanted import Wanted

KEY = "kcache"
"""The keyword of the PNG's text chunk that holds the record as JSON."""

LARGEST = 2**31
"""Pixels of the largest picture whose record is read: grids are larger than what Pillow takes for an attack."""

_NOT_OF_A_PICTURE = ("prompts", "prompts_file", "mix", "num_images_per_prompt", "output", "captions", "metadata")
_HOW_IT_RAN = ("batch_size", "offload")
"""Options that are not in the record of a picture, since it does not depend on them."""


def run_record(config: GenerateConfig, side: int) -> dict[str, Any]:
    """What all pictures of a run share: kcache's version, the options, and what the checkpoints are."""
    options = asdict(replace(config, resolution=side))
    kept = {name: value for name, value in options.items() if name not in (*_NOT_OF_A_PICTURE, *_HOW_IT_RAN)}
    return {
        "kcache": __version__,
        **{name: value for name, value in kept.items() if value is not None},
        "prior": checkpoint_record(config.prior, "prior", config.prior_lora_scale),
        "decoder": checkpoint_record(config.decoder, "decoder", config.decoder_lora_scale),
    }


def picture_record(run: dict[str, Any], one: Wanted, config: GenerateConfig) -> dict[str, Any]:
    """The record of one picture, with the command that makes it again."""
    again = replace(
        config,
        prompts=() if isinstance(one.subject, Mix) else (one.subject,),
        prompts_file=None,
        mix=one.subject.options if isinstance(one.subject, Mix) else (),
        negative_prompt=one.negative_prompt,
        seed=one.seed,
        num_images_per_prompt=1,
    )
    return {**run, **_own(one), "command": command(again, run["resolution"])}


def grid_record(run: dict[str, Any], wanted: Sequence[Wanted], config: GenerateConfig) -> dict[str, Any]:
    """The record of a grid: what its pictures share, what each has of its own, and the command that makes all again."""
    return {**run, "pictures": [_own(one) for one in wanted], "command": command(config, run["resolution"])}


def checkpoint_record(name: str, stage: str, lora_scale: float | None) -> dict[str, Any]:
    """A checkpoint by name and by the sha256 of the weights that were used; of a training run's OUT, what it was."""
    folder, kind = Path(name), KINDS[stage]
    record: dict[str, Any] = {"name": name}
    checkpoint = Checkpoint(name)
    if (folder / LORA_FILE).is_file() and not (folder / kind.subfolder).is_dir():
        record |= {"lora": file_sha256(folder / LORA_FILE), "lora_scale": 1.0 if lora_scale is None else lora_scale}
        checkpoint = lora_base(folder, kind)
    record["weights"] = weights_sha256(checkpoint.component(kind.subfolder).weight_files())
    trained = training_record(folder)
    return record | {key: trained[key] for key in ("trained_from", "step") if key in trained}


def command(config: GenerateConfig, side: int) -> str:
    """The command line of ``config``, with the options that are not the default and the resolution."""
    words = ["kcache", "generate", *config.prompts]
    for field in fields(config):
        value = side if field.name == "resolution" else getattr(config, field.name)
        if field.name in ("prompts", "output", *_HOW_IT_RAN) or value == field.default:
            continue
        words += _option(f"--{field.name.replace('_', '-')}", value)
    return shlex.join([*words, "-o", "again.png"])


def png_text(record: dict[str, Any]) -> Any:
    """The record as Pillow takes it for a PNG: Unicode, with the two keywords that other programs show."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_itxt("Software", f"kcache {record['kcache']}")
    if title := record.get("prompt") or record.get("mix"):
        text.add_itxt("Description", str(title))
    text.add_itxt(KEY, json.dumps(record, ensure_ascii=False))
    return text


def read_record(path: Path) -> dict[str, Any]:
    """The record in a PNG that ``kcache generate`` wrote. KcacheError where there is none, or it cannot be read."""
    from PIL import Image

    from kcache.encoding.images import hushed_pillow

    try:
        with hushed_pillow(LARGEST), Image.open(path, formats=["PNG"]) as picture:  # reads no pixels
            text = picture.info.get(KEY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise KcacheError(f"{path} cannot be read as a PNG ({error}); name a picture that is whole") from None
    if not isinstance(text, str):
        raise KcacheError(
            f"{path} does not say how it was made: 'kcache generate' did not write it, or a program that wrote it again"
            " left that out; name the picture as it was made"
        )
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not _is_ours(record):
        raise KcacheError(f"what {path} says of how it was made is not what kcache writes; name it as it was made")
    return record


def _is_ours(record: dict[str, Any]) -> bool:
    """Whether what `kcache info` looks into is there and of its kind: a picture may come from anybody."""
    pictures = record.get("pictures", [record])
    return (
        all(isinstance(record.get(name), str) for name in ("kcache", "command"))
        and all(isinstance(record.get(stage), dict) for stage in KINDS)
        and isinstance(pictures, list)
        and all(isinstance(one, dict) for one in pictures)
    )


def _own(one: Wanted) -> dict[str, Any]:
    subject = {"mix": list(one.subject.options)} if isinstance(one.subject, Mix) else {"prompt": one.subject}
    return {**subject, "negative_prompt": one.negative_prompt, "seed": one.seed}


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [name] if value else [f"--no-{name[2:]}"]
    if isinstance(value, tuple):
        return [word for one in value for word in (name, str(one))]
    return [name, str(value)]
