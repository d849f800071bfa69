"""The pictures that are asked for, one by one: prompts of the command line and of a file, and mixes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kcache.shards.errors import KcacheError, UsageError

from .config import GenerateConfig
from .mixing import Mix, parse_mix, parse_weights

_KEYS = {"prompt", "mix", "negative_prompt", "seed"}


@dataclass(frozen=True)
class Wanted:
    """One picture: of what, with what seed for all its noise, and what it should not be."""

    subject: str | Mix
    seed: int = 0
    negative_prompt: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """All that the text encoder will be given."""
        own = self.subject.prompts if isinstance(self.subject, Mix) else (self.subject,)
        return (*own, self.negative_prompt)


def wanted_pictures(config: GenerateConfig) -> list[Wanted]:
    """All pictures that ``config`` asks for: those of a subject one after the other, with seeds from its own up.

    UsageError where nothing is asked for; KcacheError where the prompts file or a mix cannot be used.
    """
    subjects = list(_subjects(config))
    if not subjects:
        raise UsageError(
            'no prompt was given; write it in quotes: kcache generate "a red fox", or name a --prompts-file'
        )
    return [replace(one, seed=one.seed + n) for one in subjects for n in range(config.num_images_per_prompt)]


def _subjects(config: GenerateConfig) -> Iterator[Wanted]:
    for prompt in config.prompts:
        yield Wanted(prompt, config.seed, config.negative_prompt)
    if config.prompts_file is not None:
        yield from _read(Path(config.prompts_file), config)
    if config.mix:
        yield Wanted(parse_mix(config.mix), config.seed, config.negative_prompt)


def _read(path: Path, config: GenerateConfig) -> list[Wanted]:
    """A prompt from each line that is neither empty nor a ``#`` comment; of a ``.jsonl`` an object from each."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise KcacheError(
            f"the prompts file {path} cannot be read ({cause}); name a text file, a prompt a line"
        ) from None
    kept = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not kept:
        raise KcacheError(f"the prompts file {path} has no prompt in it; write one on each line")
    if path.suffix.lower() != ".jsonl":
        return [Wanted(line, config.seed, config.negative_prompt) for _, line in kept]
    return [_from_json(line, f"line {number} of {path}", config) for number, line in kept]


def _from_json(line: str, where: str, config: GenerateConfig) -> Wanted:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise KcacheError(f'{where} is not JSON ({error}); write it as {{"prompt": "a red fox"}}') from None
    if not isinstance(given, dict) or set(given) - _KEYS or ("prompt" in given) == ("mix" in given):
        raise KcacheError(f"{where} needs 'prompt' or 'mix', and takes beside it 'negative_prompt' and 'seed' alone")
    negative, seed = given.get("negative_prompt", config.negative_prompt), given.get("seed", config.seed)
    if not isinstance(negative, str) or type(seed) is not int or seed < 0:
        raise KcacheError(f"{where} needs text for 'negative_prompt', and for 'seed' a whole number from 0 up")
    return Wanted(_subject(given, where), seed, negative)


def _subject(given: dict[str, Any], where: str) -> str | Mix:
    if isinstance(given.get("prompt"), str):
        return str(given["prompt"])
    if isinstance(given.get("mix"), dict) and given["mix"]:
        return parse_weights(given["mix"].items(), where)
    raise KcacheError(
        f"{where} needs text for 'prompt', and for 'mix' weights by name such as {{\"a fox\": 0.6, \"photo.png\": 0.4}}"
    )
