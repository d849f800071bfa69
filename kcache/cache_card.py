"""The card of a cache, its ``README.md``: what it holds, from what, and what it reveals of the pictures."""

import errno
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kcache.checkpoints import PRIOR
from kcache.encoded_with import encoded_with
from kcache.progress import logger
from kcache.shards import Cache, ColumnSummary, Summary, UsageError, layout, summarize
from kcache.shards.records import digest

VERSION = 2
"""Another one has every card written anew by the next encode."""

END = "<!-- kcache: end. What follows is yours, and is kept. -->"
_BEGIN = re.compile(r"^<!-- kcache writes what stands from here to the end mark: (\{.*\}) -->$", re.MULTILINE)
_FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
_LICENSE_NAME = r"[a-z0-9][a-z0-9.+-]*"
_LICENSE = re.compile(rf"^license: *({_LICENSE_NAME}) *\n", re.MULTILINE)
_MAX_BYTES = 2**20
"""A larger README is nobody's card."""


@dataclass(frozen=True)
class Origin:
    """What no record of the cache says: what the dataset is called, and its licence."""

    dataset: str | None = None
    license: str | None = None


def require_license_name(name: str) -> None:
    """UsageError unless ``name`` is an identifier as the hub has them."""
    if not re.fullmatch(_LICENSE_NAME, name):
        raise UsageError(
            f"--license {name!r} is no identifier of a licence; give one as the hub lists them, such as cc-by-4.0,"
            " cc0-1.0, mit or other"
        )


def read_origin(cache: Cache) -> Origin:
    """What the card of a cache says of its origin; nothing where it has none."""
    front, told, _ = _parts(_text(cache))
    dataset, license_ = told.get("dataset"), _LICENSE.search(front)
    return Origin(_plain(dataset) if isinstance(dataset, str) else None, license_[1] if license_ else None)


def write_card(cache: Cache, given: Origin) -> None:
    """Bring the card up to the cache, unless it is; what is not given is as the card has it.

    What a person wrote after the end mark or into the front matter is kept, and a README of another origin is not
    touched. A cache that cannot be written to keeps the card that it has.
    """
    cache, text, before = cache.reopened(), _text(cache), read_origin(cache)
    front, told, rest = _parts(text)
    if text and not told:
        return
    dataset = _plain(given.dataset) if given.dataset else before.dataset
    origin = Origin(dataset, given.license or before.license)
    state = _state(cache, origin)
    if told.get("state") == state:
        return
    front = _with_license(front or _front(origin), origin.license)
    mark = json.dumps({"dataset": origin.dataset, "state": state}, ensure_ascii=False).replace(">", r"\u003e")
    body = "\n\n".join(_body(summarize(cache), origin))
    begin = f"<!-- kcache writes what stands from here to the end mark: {mark} -->"
    _replace(cache, f"---\n{front}---\n\n{begin}\n\n{body}\n\n{END}{rest or chr(10)}")


def _replace(cache: Cache, card: str) -> None:
    try:
        cache.storage.replace(layout.CARD, card.encode())
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        logger.warning("the card of %s is out of date and cannot be written (%s)", cache.name, error.strerror)


def public_name(name: str) -> str:
    """A dataset's or checkpoint's name without the folders of this machine that it lies in; one on the hub as it is.

    Of a pattern such as ``photos/{00000..00012}.tar`` it is the folder.
    """
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not Path(name).exists():
        return name
    path = Path(name).resolve()
    return path.parent.name if re.search(r"[*?{\[]", path.name) else path.name


def _plain(name: str) -> str:
    """A name without what Markdown or HTML would take for markup: the cache, or its card, may be a stranger's."""
    return " ".join(re.sub(r"[`<>|\[\]\x00-\x1f]", " ", name).split())[:200]


def _text(cache: Cache) -> str:
    card = cache.storage.read(layout.CARD, _MAX_BYTES)
    return card.decode("utf-8", errors="replace") if card is not None else ""


def _parts(text: str) -> tuple[str, dict[str, object], str]:
    """Front matter, what the begin mark tells, and what follows the end mark; nothing of each that is not there."""
    front, begin = _FRONT.match(text), _BEGIN.search(text)
    try:
        told = json.loads(begin[1]) if begin else {}
    except ValueError:
        told = {}
    return front[1] if front else "", told, text.partition(END)[2]


def _state(cache: Cache, origin: Origin) -> str:
    """What tells whether a card is up to date, had from the names of the commits alone."""
    generations = {cache.stem(name): cache.commits(name) for name in (layout.SAMPLES, *cache.column_names())}
    listed = {stem: list(commits.items()) for stem, commits in generations.items()}
    return digest([VERSION, cache.shard_count, listed, origin.dataset, origin.license])[:16]


def _front(origin: Origin) -> str:
    """The metadata that the hub reads; its viewer cannot show features."""
    name = json.dumps(f"{origin.dataset or 'Pictures'}, encoded for Kandinsky 2.2", ensure_ascii=False)
    return f"pretty_name: {name}\ntask_categories: [text-to-image]\ntags: [kcache, kandinsky-2-2]\nviewer: false\n"


def _with_license(front: str, license_: str | None) -> str:
    return f"license: {license_}\n{_LICENSE.sub('', front)}" if license_ else front


def _body(summary: Summary, origin: Origin) -> Iterator[str]:
    yield f"# {origin.dataset or 'Pictures'}, encoded for Kandinsky 2.2"
    of = f" of `{origin.dataset}`" if origin.dataset else ""
    yield (
        f"Features of {summary.samples - len(summary.set_aside):,} pictures{of} and of their captions, as the frozen"
        " encoders of Kandinsky 2.2 give them: a cache for training its prior and decoder with kcache. The pictures are"
        " not in it."
    )
    stated = f"`{origin.license}`" if origin.license else "not stated (`kcache encode ... --license NAME` fills it in)"
    yield f"Licence of the data: {stated}."
    yield _WARNING
    yield f"## What it holds\n\n{_table(summary)}"
    if summary.set_aside:
        yield f"Set aside, and without features: {len(summary.set_aside):,}."
    yield _use(summary)


_WARNING = """## It reveals the pictures

Treat this cache as you would treat the pictures themselves.

- **Captions** are in it as they were written, and ids are names of files.
- **Latents** are pictures: the public MoVQ turns them back into near copies.
- **Image embeddings** tell what a picture shows, and the public decoder makes pictures like it.
- **sha256 of the picture files**: who has a picture can prove that it was here.

Do not publish it unless you may publish the pictures and captions that it was made from."""


def _use(summary: Summary) -> str:
    """What to do with it, with the prior that it was encoded with: of a folder there is but the name."""
    recorded = encoded_with((column.name, column.notes) for column in summary.columns).get("prior", PRIOR)
    prior = _plain(public_name(recorded))
    option = "" if recorded == PRIOR else f" --pretrained-prior-model-name-or-path {shlex.quote(prior)}"
    said = "" if prior == recorded else f"`{prior}` is a copy of the checkpoint that it was encoded with.\n\n"
    return f"""## Use

```
kcache verify CACHE --deep
kcache info CACHE --fits {shlex.quote(prior)}
kcache train prior CACHE --output-dir my-prior{option}
```

{said}Nothing in it is code, and reading it runs none: tar or HDF5 files of plain arrays, and JSON."""


def _table(summary: Summary) -> str:
    head = ["| column | samples | size | fields | encoder |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(_cells(column))} |" for column in summary.columns)])


def _cells(column: ColumnSummary) -> Iterator[str]:
    yield f"`{column.name}`"
    yield f"{column.rows:,}"
    yield f"{column.bytes / 1e6:,.1f} MB"
    yield "<br>".join(f"{name}: {kind}" for name, kind in column.fields.items())
    source = public_name(str(column.notes["from"])) if column.notes.get("from") else "an unknown checkpoint"
    yield _plain(f"{column.encoder.get('class', 'unknown')} of {source}, in {column.encode_dtype}")
