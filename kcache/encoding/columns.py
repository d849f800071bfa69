"""From the options of an encode and the records of a cache to the encoders of its columns."""

from collections.abc import Iterable

from kcache.shards import Cache, Column, UsageError, layout
from kcache.views import BUCKETS, ColumnName, parse_column

from .config import EncodeConfig
from .encoders import Encoder, Models
from .image_column import ImageColumn
from .latents_column import LatentsColumn
from .selection import column_names
from .settings import DEFAULT_ALPHA, Settings
from .text_column import TextColumn


def make_encoders(config: EncodeConfig, cache: Cache | None) -> dict[str, Encoder]:
    """The encoder of every column to encode, in a fixed order. What ``config`` leaves open is as the cache has it.

    An option that contradicts a column's record is no error here: it makes an encoder with another fingerprint.
    UsageError for options that contradict one another.
    """
    # A kill may leave the records of some of the first columns only, so a cache without any shard is still a new one.
    # Asked before the records are read: another process may be making them.
    new = cache is None or not cache.commits(layout.SAMPLES)
    records = {name: cache.column(name) for name in cache.column_names()} if cache else {}
    names = column_names(config, list(records), new=new)
    models = Models(compiled=config.compile and not config.dry_run)  # its estimates are those of a run without
    encoders = {name.name: _make(name, Settings(config, name, records), models) for name in names}
    made = {name: encoder.column for name, encoder in encoders.items()}
    alpha_of(made.values())
    _require_one_cut((records | made).values())
    return encoders


def _make(name: ColumnName, settings: Settings, models: Models) -> Encoder:
    """The encoder of one column. A new kind is a branch here, its name in views.py and a class beside it."""
    checkpoint, precision = settings.checkpoint(), settings.precision()
    if name.view is None:
        return TextColumn(name.name, checkpoint, precision, models, settings.template(), trim=settings.trim())
    cut, alpha, flip = settings.cut(name.view), settings.alpha(), name.view.flip
    if name.kind == "image":
        return ImageColumn(name.name, checkpoint, precision, models, alpha, cut, flip=flip)
    assert name.resolution is not None, name
    return LatentsColumn(name.name, checkpoint, precision, models, alpha, name.resolution, cut, flip=flip)


def alpha_of(columns: Iterable[Column]) -> str:
    """How all these columns take transparent pixels. UsageError where they differ, for a picture is decoded once."""
    by_alpha = {column.preprocessing["alpha"]: column.name for column in columns if "alpha" in column.preprocessing}
    if len(by_alpha) > 1:
        differing = " and ".join(f"'{name}' (--alpha {alpha})" for alpha, name in sorted(by_alpha.items()))
        raise UsageError(
            f"columns {differing} take transparent pixels differently and a picture is decoded once;"
            " encode them one after the other with --columns"
        )
    return next(iter(by_alpha), DEFAULT_ALPHA)


def _require_one_cut(columns: Iterable[Column]) -> None:
    """UsageError where CLIP and MoVQ would see different parts of a picture under the same name of a view."""
    cuts: dict[tuple[str, int | None], Column] = {}
    for column in columns:
        name = parse_column(column.name)
        if name.view and name.view.cut:
            key = (name.view.cut, name.resolution if name.view.cut == BUCKETS else None)
            other = cuts.setdefault(key, column)
            if other.preprocessing["crop"] != column.preprocessing["crop"]:
                raise UsageError(
                    f"columns '{other.name}' and '{column.name}' must be cut alike and are not"
                    f" ({other.preprocessing['crop']} and {column.preprocessing['crop']});"
                    " leave out --bucket-step, --crop-scale and --crop-seed, or encode both with the same"
                )
