"""``--optimizer-args``: NAME=VALUE words, read and checked against what an optimizer's class takes."""

import difflib
import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any

from kcache.shards import UsageError

_OWN_OPTION = {
    "lr": "--learning-rate",
    "betas": "--adam-beta1 and --adam-beta2",
    "eps": "--adam-epsilon",
    "weight_decay": "--adam-weight-decay",
    "warmup_steps": "--lr-scheduler constant_with_warmup and --lr-warmup-steps",
}
"""Arguments of optimizers that kcache has options for."""


def parse_args(words: Iterable[str], optimizer: str, takes: type, from_options: Iterable[str]) -> dict[str, Any]:
    """The values that ``words`` give to arguments of the class ``takes``, which ``--optimizer`` calls ``optimizer``.

    ``from_options`` are the arguments that other options give. UsageError for a word that is no NAME=VALUE, a name
    that the class does not take or that has an option of its own, and a value that is not of the default's type.
    """
    has = {name: argument for name, argument in inspect.signature(takes).parameters.items() if name != "params"}
    elsewhere = {name: _OWN_OPTION[name] for name in (*from_options, "warmup_steps") if name in has}
    free = sorted(set(has) - set(elsewhere))
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = (part.strip() for part in word.partition("="))
        if not equals or not name:
            raise UsageError(f"--optimizer-args takes NAME=VALUE, and '{word}' is none; such as {free[0]}=VALUE")
        if name in elsewhere:
            raise UsageError(f"--optimizer-args {name} has an option of its own: give {elsewhere[name]}")
        if name not in free:
            raise UsageError(
                f"--optimizer {optimizer} has no argument '{name}' (it has: {', '.join(free)})"
                f"{did_you_mean(name, free)}"
            )
        if name in values:
            raise UsageError(f"--optimizer-args gives {name} twice; leave one out")
        values[name] = _checked(word, parse_value(text), has[name])
    return values


def parse_value(text: str) -> Any:
    """A number, true, false or none; with commas a tuple of these; anything else is the text itself."""
    if "," in text:
        return tuple(parse_value(part) for part in text.strip("()").split(",") if part.strip())
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """What ends a sentence about an unknown name: the nearest of ``names``, or nothing where none is near."""
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


_WORDS = {"true": True, "false": False, "none": None}


def _checked(word: str, value: Any, argument: inspect.Parameter) -> Any:
    """``value`` where it is of the type of the argument's default: Python takes the text 'no' for true."""
    default = argument.default
    if isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int) and "float" not in str(argument.annotation):
        fits, wanted = _is_number(value) and isinstance(value, int), "a whole number"
    elif isinstance(default, int | float):
        fits, wanted = _is_number(value), "a number"
    elif isinstance(default, tuple):
        alike = isinstance(value, tuple) and len(value) == len(default)
        fits = alike and all(part is None or _is_number(part) for part in value)
        wanted = f"{len(default)} numbers with commas between them"
    else:  # None is for what is off, or chosen by the optimizer
        fits, wanted = value is None or isinstance(value, bool | int | float), "a number, true, false or none"
    if not fits:
        raise UsageError(f"--optimizer-args {word} does not fit: {argument.name} is {wanted}, by default {default}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
