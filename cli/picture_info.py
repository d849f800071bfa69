"""What `kcache info` says of a picture: how it was made, and the command that makes it again."""

import json
from pathlib import Path
from typing import Any

import click

from kcache.cli.say import say

_TITLES = {"prompt": "prompt", "mix": "mix", "negative_prompt": "negative", "seed": "seed"}
_ELSEWHERE = {"kcache", "command", "pictures", "prior", "decoder", *_TITLES}


def is_png(path: Path) -> bool:
    """Whether a file begins as a PNG does."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


def print_picture(path: Path, as_json: bool) -> int:
    """Print the record of a PNG that `kcache generate` wrote."""
    from kcache.generating.metadata import read_record

    record = read_record(path)
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return 0
    pictures = record.get("pictures", [record])
    say(f"{path}: {_how_many(record)}, made by kcache {record['kcache']}")
    for one in pictures:
        said = [f"{title} {_value(one[key])}" for key, title in _TITLES.items() if one.get(key) not in (None, "")]
        say("  " + ", ".join(said))
    for stage in ("prior", "decoder"):
        say(f"  {stage:30} {_checkpoint(record[stage])}")
    for name, value in record.items():
        if name not in _ELSEWHERE:
            say(f"  {name.replace('_', '-'):30} {_value(value)}")
    say(f"Again: {record['command']}")
    return 0


def _how_many(record: dict[str, Any]) -> str:
    return f"a grid of {len(record['pictures']):,}" if "pictures" in record else "a picture"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(str, value))
    return f"'{value}'" if isinstance(value, str) else f"{value}"


def _checkpoint(record: dict[str, Any]) -> str:
    parts = [str(record.get("name")), f"weights {str(record.get('weights'))[:16]}"]
    if "lora" in record:
        parts.append(f"LoRA {str(record['lora'])[:16]} at scale {record.get('lora_scale')}")
    if "trained_from" in record:
        parts.append(f"trained from {record['trained_from']} for {record.get('step')} updates")
    return ", ".join(parts)
