"""Which columns an encode fills: those that are named, or those that a cache has and those that are asked for."""

from collections.abc import Sequence

from kcache.shards import UsageError
from kcache.views import BUCKETS, CENTRE, CROP, KINDS, ColumnName, View, parse_column

from .config import DEFAULT_RESOLUTION, EncodeConfig
from .templates import asked_text_column


def column_names(config: EncodeConfig, existing: Sequence[str], *, new: bool) -> list[ColumnName]:
    """The columns to encode, in a fixed order.

    ``--columns`` are exactly these, a kind standing for all that the other options ask of it. Without it a ``new``
    cache gets all kinds, and one that exists keeps all that it has (``existing``) and gets what is asked for besides.
    """
    had = [parse_column(name) for name in existing]
    if config.columns:
        names = [name for word in config.columns for name in _named(word, config, had)]
    elif new:
        names = [*had, *(name for kind in KINDS for name in _of_kind(kind, config, had))]
    else:
        names = [*had, *_added(config, had)]
    names = sorted(dict.fromkeys(names), key=lambda name: name.order)
    _refuse_unused(config, names)
    return names


def _named(word: str, config: EncodeConfig, had: Sequence[ColumnName]) -> list[ColumnName]:
    """The columns that one word of ``--columns`` stands for."""
    return _of_kind(word, config, had) if word in KINDS else [parse_column(word)]


def _of_kind(kind: str, config: EncodeConfig, had: Sequence[ColumnName]) -> list[ColumnName]:
    """All columns of a kind that the options ask for, the plain ones with them."""
    if kind == "text":
        return [parse_column(asked_text_column(config) or "text")]
    plain = [_column(kind, View(cut), n) for n in _resolutions(config, had) for cut in (CENTRE, *_asked_cuts(config))]
    return [*plain, *(_flipped(plain) if config.flip else [])]


def _added(config: EncodeConfig, had: Sequence[ColumnName]) -> list[ColumnName]:
    """What the options add to a cache: views of the kinds of features that it has, and latents of a new resolution."""
    kinds = {name.kind for name in had if name.view} | ({"latents"} if config.resolution else set())
    resolutions, cuts = _resolutions(config, had), _asked_cuts(config)
    added = [_column("latents", View(), n) for n in config.resolution]
    for kind in kinds or {"image", "latents"}:
        added += [_column(kind, View(cut), n) for n in resolutions for cut in cuts]
    if config.flip:
        # Also those views that the cache has already, so that whatever training draws from has both sides.
        added += _flipped([name for name in (*had, *added) if name.resolution in (None, *resolutions)])
    text = asked_text_column(config)
    return [*added, *([parse_column(text)] if text else [])]


def _resolutions(config: EncodeConfig, had: Sequence[ColumnName]) -> list[int]:
    """The resolutions asked for, or those that the cache has, or the default."""
    return list(config.resolution) or sorted({n.resolution for n in had if n.resolution}) or [DEFAULT_RESOLUTION]


def _asked_cuts(config: EncodeConfig) -> list[str]:
    return [*([BUCKETS] if config.buckets else []), *(f"{CROP}{k + 1}" for k in range(config.random_crops))]


def _column(kind: str, view: View, resolution: int) -> ColumnName:
    return parse_column(view.image_column(resolution) if kind == "image" else view.latents_column(resolution))


def _flipped(names: Sequence[ColumnName]) -> list[ColumnName]:
    """The mirrored columns of those names that are columns of pictures."""
    return [_column(name.kind, name.view.flipped, name.resolution or 0) for name in names if name.view]


def _refuse_unused(config: EncodeConfig, names: Sequence[ColumnName]) -> None:
    """UsageError for an option that none of the columns hears."""
    views = [name.view for name in names if name.view]
    buckets, crops = any(v.cut == BUCKETS for v in views), any(v.crop_number for v in views)
    heard = {
        "--flip": (config.flip, any(view.flip for view in views)),
        "--buckets": (config.buckets, buckets),
        "--bucket-step": (config.bucket_step is not None, buckets),
        "--random-crops": (config.random_crops, crops),
        "--crop-scale": (config.crop_scale is not None, crops),
        "--crop-seed": (config.crop_seed is not None, crops),
        "--caption-template": (config.caption_template, asked_text_column(config) in [name.name for name in names]),
        "--text-column": (config.text_column, config.text_column in [name.name for name in names]),
    }
    for option, (given, is_heard) in heard.items():
        if given and not is_heard:
            raise UsageError(
                f"{option} has no effect on the columns {', '.join(name.name for name in names)};"
                " ask for the columns that it shapes (docs/views.md), or leave it out"
            )
