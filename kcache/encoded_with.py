"""The checkpoints that a cache was encoded with, as its columns note them."""

from collections.abc import Iterable, Mapping
from typing import Any

from kcache.checkpoints import DECODER, PRIOR

CHECKPOINTS = {
    "text": ("prior", PRIOR),
    "image": ("prior", PRIOR),
    "latents": ("decoder", DECODER),
}
"""Which checkpoint a kind of column is made with, and its name on the hub."""


def encoded_with(columns: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """From names of columns and their notes the checkpoint of each stage, where it is not the default one on the hub.

    Where columns of one stage differ it is that of the plainest name.
    """
    found: dict[str, str] = {}
    for column, notes in sorted(columns, key=lambda one: (len(one[0]), one[0])):
        stage, default = CHECKPOINTS.get(column.partition("-")[0], ("", ""))
        name = str(notes.get("from") or default)
        if stage and name != default:
            found.setdefault(stage, name)
    return found
