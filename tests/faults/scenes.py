"""What is encoded while faults happen: a first encode, a change of every kind, a prune, and a column made anew."""

import functools
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from commands import copy_old, make_old, tree
from folders import picture, write, write_rows

from kcache.shards import Cache, verify

NAMES = ("first", "change", "prune", "replaced")
Item = TypeVar("Item")


Scenes = Callable[[str], "dict[str, Scene]"]
"""The scenes by name, of a container."""


def cases(*sampled: tuple[str, str]) -> list[Any]:
    """Parameters ``(name, container, full)``: some of the ``sampled`` in every test run, all there is in a torture."""
    full = itertools.product(NAMES, ("tar", "h5"))
    return [
        *(pytest.param(*case, False, id="-".join(case)) for case in sampled),
        *(pytest.param(*case, True, id="-".join([*case, "all"]), marks=pytest.mark.torture) for case in full),
    ]


def some(items: Sequence[Item], number: int, full: bool) -> list[Item]:
    """``number`` of the items, evenly chosen with the first and the last; all of them where ``full``."""
    if full or len(items) <= number:
        return list(items)
    return [items[round(i * (len(items) - 1) / (number - 1))] for i in range(number)]


@dataclass(frozen=True)
class Scene:
    """One encode: of which dataset, into a copy of which cache (None: a new one), and how."""

    name: str
    home: str
    dataset: str
    base: str | None
    options: dict[str, Any] = field(default_factory=dict)

    def encode(self, cache: Path) -> None:
        """The encode, as the command line would do it."""
        from kcache.encoding.config import EncodeConfig
        from kcache.encoding.encode import encode

        encode(EncodeConfig(dataset=self.dataset, cache=str(cache), device="cpu", **self.options))

    def begin(self, folder: Path) -> Path:
        """A folder that holds ``cache`` as it is before the encode; the path of that cache."""
        folder.mkdir(parents=True)
        if self.base:
            shutil.copytree(self.base, folder / "cache")
        return folder / "cache"

    @property
    def undisturbed(self) -> dict[str, bytes]:
        """What the cache holds, but for ``index/``, after an encode to which nothing happened."""
        return stored(Path(self.home, "undisturbed", "cache"))

    def record(self) -> dict[str, Any]:
        """The scene as JSON takes it: what ``Scene(**...)`` is made from in another process."""
        return asdict(self)


def problems_of(scene: Scene, cache: Path) -> list[str]:
    """What is wrong with a cache that a fault has left: it is damaged, or the next encode does not make it whole."""
    problems = []
    try:
        if (cache / "kcache.json").exists():
            problems += [f"{fault.path}: {fault.problem}" for fault in verify(Cache(cache), deep=True).faults]
        scene.encode(cache)
    except Exception as error:
        return [*problems, f"{type(error).__name__}: {error}"]
    return problems + differing(scene.undisturbed, stored(cache))


def differing(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """The files in which two caches differ."""
    return [
        f"{name} is {'missing' if name not in found else 'another' if name in expected else 'too much'}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def stored(cache: Path) -> dict[str, bytes]:
    """Everything that a cache holds but ``index/``, which is derived."""
    return tree(cache, without=("index/",))


def keep_models(patch: pytest.MonkeyPatch) -> None:
    """Let all encodes until the patch is undone share what is slow: the models and the tokenizer, once loaded."""
    from kcache.encoding import columns, encoders, text_column

    kept = encoders.Models()
    patch.setattr(columns, "Models", lambda **_: kept)
    patch.setattr(text_column, "load_tokenizer", functools.cache(text_column.load_tokenizer))


def make_scenes(folder: Path, prior: Path, decoder: Path, container: str) -> dict[str, Scene]:
    """The scenes below ``folder``, each with ``NAME/undisturbed/cache``, how its encode ends when nothing happens."""
    common = {
        "pretrained_prior_model_name_or_path": str(prior),
        "pretrained_decoder_model_name_or_path": str(decoder),
        "batch_size": 1,
        "workers": 1,
    }
    new = {**common, "format": container, "shard_size": 2, "resolution": [16]}
    before, after, fewer = _datasets(folder)
    changed = str(folder / "change" / "undisturbed" / "cache")
    anew = {"columns": ["text"], "replace_column": ["text"], "store_dtype": "fp32"}
    scenes = [
        Scene("first", str(folder / "first"), before, None, new),
        Scene("change", str(folder / "change"), after, str(folder / "first" / "undisturbed" / "cache"), common),
        Scene("prune", str(folder / "prune"), fewer, changed, {**common, "prune": True}),
        Scene("replaced", str(folder / "replaced"), after, changed, {**common, **anew}),
    ]
    for scene in scenes:
        scene.encode(scene.begin(Path(scene.home, "undisturbed")))
    return {scene.name: scene for scene in scenes}


def _datasets(folder: Path) -> tuple[str, str, str]:
    """Three pictures; the same after a replacement, another caption, a renamed picture and a new one; less one."""
    before = folder / "before"
    for i, name in enumerate("abc"):
        write(before / f"{name}.png", picture((20 + i, 24)))
    write_rows(before, {f"{name}.png": f"the letter {name}" for name in "abc"})
    for path in before.iterdir():
        make_old(path)
    after = copy_old(before, folder / "after")
    make_old(write(after / "a.png", picture((33, 20))))
    make_old(write(after / "d.png", picture((20, 33))))
    os.rename(after / "c.png", after / "e.png")
    write_rows(after, {"a.png": "the letter a", "b.png": "another b", "e.png": "the letter c", "d.png": "the letter d"})
    fewer = copy_old(after, folder / "fewer")
    (fewer / "b.png").unlink()
    write_rows(fewer, {"a.png": "the letter a", "e.png": "the letter c", "d.png": "the letter d"})
    return str(before), str(after), str(fewer)
