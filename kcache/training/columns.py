"""Which columns a run reads: its captioning, its resolution, and the views of each picture that it draws among."""

from collections.abc import Callable, Sequence
from itertools import count, takewhile

from kcache.shards import Cache, Column, KcacheError, UsageError
from kcache.views import BUCKETS, CENTRE, CROP, View

from .config import DecoderConfig, PriorConfig

Name = Callable[[View], str]
"""The name of the column that holds a view of every picture."""


def prior_columns(config: PriorConfig, cache: Cache) -> tuple[Column, list[Column]]:
    """The captions to train on, and the image embeddings of each view. UsageError for a column that is missing."""
    captionings = [name for name in cache.column_names() if cache.column(name).reads == "captions"]
    if not captionings:
        raise UsageError(
            f"{cache.name} has no captions; add them with 'kcache encode DATASET {cache.name} --columns text'"
        )
    if config.text_column not in captionings:
        raise UsageError(
            f"{cache.name} has no captions in a column '{config.text_column}';"
            f" choose {' or '.join(f'--text-column {name}' for name in captionings)}"
        )
    # Only the names of buckets have a resolution in them.
    (images,) = _columns(config, cache, CENTRE, "", [lambda view: view.image_column(0)])
    return cache.column(config.text_column), images


def decoder_columns(config: DecoderConfig, cache: Cache) -> list[list[Column]]:
    """Latents of each view, and image embeddings of each view. UsageError for a column that is missing."""
    if not (config.buckets or config.random_crops):
        _require_resolution(config, cache)
    resolution = config.resolution
    cut, options = (BUCKETS, " --buckets") if config.buckets else (CENTRE, "")
    names: list[Name] = [lambda view: view.latents_column(resolution), lambda view: view.image_column(resolution)]
    return _columns(config, cache, cut, f" --resolution {resolution}{options}", names)


def _columns(
    config: PriorConfig | DecoderConfig, cache: Cache, cut: str, encode_options: str, names: Sequence[Name]
) -> list[list[Column]]:
    """For each kind of column in ``names``, those of all views to draw among; the first view is not mirrored."""
    have = cache.column_names()
    cuts, options = [cut], encode_options
    if config.random_crops:
        cuts = list(takewhile(lambda crop: names[0](View(crop)) in have, (f"{CROP}{k}" for k in count(1))))
        options += f" --random-crops {len(cuts) or 4}"
        cuts = cuts or [f"{CROP}1"]
    flips = [False, True] if config.random_flip else [False]
    views = [View(cut, flip) for flip in flips for cut in cuts]
    options += " --flip" if config.random_flip else ""
    missing = [name(view) for name in names for view in views if view != View() and name(view) not in have]
    if missing:
        raise UsageError(
            f"{cache.name} lacks {', '.join(missing)} (it has: {', '.join(have) or 'none'});"
            f" add what is missing with 'kcache encode DATASET {cache.name}{options}'"
        )
    kinds = [[cache.column(name(view)) for view in views] for name in names]
    for first, *others in kinds:
        _require_alike(cache, first, others)
    return kinds


def _require_resolution(config: DecoderConfig, cache: Cache) -> None:
    """Refuse a resolution at which the cache has no centre squares, and name what it has."""
    have, resolution = cache.column_names(), config.resolution
    if View().latents_column(resolution) in have:
        return
    names = (name.removeprefix("latents-") for name in have if name.startswith("latents-"))
    sizes = sorted((name for name in names if name.isdigit() or name.endswith(f"-{BUCKETS}")), key=len)
    squares = [size for size in sizes if size.isdigit()]
    hint = f"use --resolution {squares[0]}" if squares else f"run 'kcache encode DATASET {cache.name}'"
    if View(BUCKETS).latents_column(resolution) in have:
        hint = "use --buckets"
    raise UsageError(
        f"{cache.name} has no latents at {resolution} px (it has: {', '.join(sizes) or 'none'}); {hint},"
        f" or add them with 'kcache encode DATASET {cache.name} --resolution {resolution}'"
    )


def require_same_columns(caches: Sequence[Cache], columns: Sequence[Sequence[Column]]) -> None:
    """Caches that are mixed hold the same columns, by the same encoders and stored alike; KcacheError otherwise."""
    first, names = caches[0].name, [column.name for column in columns[0]]
    for cache, others in zip(caches[1:], columns[1:], strict=True):
        if [other.name for other in others] != names:
            have = ", ".join(other.name for other in others)
            raise KcacheError(
                f"{cache.name} would be read by its columns {have} and {first} by {', '.join(names)}; encode both with"
                " the same views"
            )
        for column, other in zip(columns[0], others, strict=True):
            if found := _differences(other, column):
                raise KcacheError(
                    f"column '{other.name}' of {cache.name} was encoded otherwise than that of {first}"
                    f" ({'; '.join(found)}), so they cannot be mixed; encode one anew like the other, into another"
                    " folder"
                )


def _require_alike(cache: Cache, column: Column, others: Sequence[Column]) -> None:
    """Views of a picture that training draws among come from one encoder and are stored in one dtype."""
    for other in others:
        if differences := _differences(column, other):
            raise KcacheError(
                f"column '{column.name}' of {cache.name} was encoded otherwise than '{other.name}'"
                f" ({'; '.join(differences)}), so they are not views of one picture; encode the second like the first"
                f" with 'kcache encode DATASET {cache.name} --replace-column {other.name}'"
            )


def _differences(column: Column, other: Column) -> list[str]:
    """How two columns of one kind of feature differ in what makes them fit into one batch, each in a few words."""
    return [
        f"{what} {one}, not {two}"
        for what, one, two in [
            ("weights", column.encoder["weights"][:12], other.encoder["weights"][:12]),
            ("dtype", column.fields[0].dtype, other.fields[0].dtype),
            ("shape", list(column.fields[0].shape), list(other.fields[0].shape)),
        ]
        if one != two
    ]
