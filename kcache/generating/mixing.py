"""Mixes: prompts and pictures with weights, of which one picture is made."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kcache.shards.errors import UsageError

from .sources import looks_like_picture, read_picture


@dataclass(frozen=True)
class Ingredient:
    """A prompt, or the path of a picture, and the share that it has."""

    name: str
    weight: float
    is_picture: bool


@dataclass(frozen=True)
class Mix:
    """What one picture is made of: the image embeddings of its ingredients, added by weights whose sum is 1."""

    ingredients: tuple[Ingredient, ...]

    def __str__(self) -> str:
        names = [Path(one.name).name if one.is_picture else one.name for one in self.ingredients]
        if len(names) == 1:
            return names[0]
        return " + ".join(f"{one.weight:.3g} {name}" for one, name in zip(self.ingredients, names, strict=True))

    @property
    def prompts(self) -> tuple[str, ...]:
        """Those of the ingredients that are text."""
        return tuple(one.name for one in self.ingredients if not one.is_picture)

    @property
    def options(self) -> tuple[str, ...]:
        """Each ingredient as it is given to ``--mix``."""
        return tuple(f"{one.name}={one.weight!r}" for one in self.ingredients)

    def for_pipeline(self) -> tuple[list[Any], list[float]]:
        """The prompts and pictures, and the weights, as ``KandinskyV22PriorPipeline.interpolate`` takes them."""
        ingredients = [read_picture(one.name) if one.is_picture else one.name for one in self.ingredients]
        return ingredients, [one.weight for one in self.ingredients]


def parse_mix(words: Iterable[str]) -> Mix:
    """The mix of ``"a fox=0.6"``, ``"photo.png=0.4"``; without a number an ingredient has the weight 1."""
    return parse_weights(map(_split, words), "--mix")


def parse_weights(weights: Iterable[tuple[str, Any]], where: str) -> Mix:
    """A mix of names with their weights, which are divided by their sum.

    UsageError for a weight that is no number above 0; KcacheError for a picture that cannot be read.
    """
    given = [(name, _weight(name, weight, where)) for name, weight in weights]
    total = math.fsum(weight for _, weight in given)
    total = 1.0 if math.isclose(total, 1.0) else total  # 0.1 + 0.9 is meant to stay so, to the bit
    return Mix(tuple(Ingredient(name, weight / total, _is_picture(name)) for name, weight in given))


def _split(word: str) -> tuple[str, float]:
    name, sign, weight = word.rpartition("=")
    try:
        return (name, float(weight)) if sign else (word, 1.0)
    except ValueError:
        if re.fullmatch(r"\s*\d*,\d+\s*", weight):
            point = weight.strip().replace(",", ".")
            raise UsageError(
                f"--mix '{word}' has the weight {weight}; write it with a point: '{name}={point}'"
            ) from None
        return word, 1.0  # a prompt with a "=" in it


def _weight(name: str, weight: Any, where: str) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise UsageError(f"{where} gives '{name}' the weight {weight}; it must be a number above 0")
    if not name.strip():
        raise UsageError(f'{where} has a weight without a prompt or a picture; write it as "a fox=0.6"')
    return float(weight)


def _is_picture(name: str) -> bool:
    if not looks_like_picture(name) and not Path(name).is_file():
        return False
    read_picture(name)  # refused now, and not when the models are loaded
    return True
