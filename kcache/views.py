"""The ways to cut a picture, and the names of the columns that hold each: what encoding and training agree on."""

import re
from dataclasses import dataclass, replace

from kcache.shards import layout
from kcache.shards.errors import UsageError

CENTRE, BUCKETS, CROP = "", "buckets", "crop-"


@dataclass(frozen=True)
class View:
    """One way to cut a picture for CLIP and MoVQ.

    ``cut`` is `CENTRE` (the reference's centre square), `BUCKETS` (the nearest of some shapes of equal area) or
    ``crop-K`` (the Kth of the fixed random crops, from 1); ``flip`` mirrors it left to right.
    """

    cut: str = CENTRE
    flip: bool = False

    def image_column(self, resolution: int) -> str:
        """The column of CLIP embeddings: ``image``, ``image-flip``, ``image-crop-1``, ``image-512-buckets``, ..."""
        # Only the shapes of buckets depend on a resolution; any other cut looks the same to CLIP at all of them.
        return self._name(f"image-{resolution}" if self.cut == BUCKETS else "image")

    def latents_column(self, resolution: int) -> str:
        """The column of latents: ``latents-512``, ``latents-512-crop-1-flip``, ``latents-512-buckets``, ..."""
        return self._name(f"latents-{resolution}")

    @property
    def crop_number(self) -> int:
        """K of the Kth random crop, from 1; 0 for every other cut."""
        return int(self.cut.removeprefix(CROP)) if self.cut.startswith(CROP) else 0

    @property
    def flipped(self) -> "View":
        """The same cut, mirrored."""
        return replace(self, flip=True)

    def _name(self, base: str) -> str:
        return "-".join([base, *([self.cut] if self.cut else []), *(["flip"] if self.flip else [])])


@dataclass(frozen=True)
class ColumnName:
    """What the name of a column says: its kind (``text``, ``image`` or ``latents``) and how the picture was cut.

    ``view`` is None for captions; ``resolution`` is None where nothing depends on one (`View.image_column`).
    """

    name: str
    kind: str
    view: View | None = None
    resolution: int | None = None

    @property
    def order(self) -> tuple[object, ...]:
        """Where columns stand in a list: text, image, latents; then resolution, centre, buckets, crops; flips last."""
        view = self.view or View()
        rank = (KINDS.index(self.kind), self.resolution or 0, view.cut != CENTRE, view.crop_number, view.flip)
        return (*rank, self.name)


KINDS = ("text", "image", "latents")

_CUT = rf"(?P<cut>{CROP}[1-9]\d*)"
_FLIP = r"(?P<flip>-flip)?"
_PATTERNS = {
    "text": re.compile(r"text(-[a-z0-9-]+)?"),
    "image": re.compile(rf"image(-(?P<resolution>[1-9]\d*)-(?P<buckets>{BUCKETS})|-{_CUT})?{_FLIP}"),
    "latents": re.compile(rf"latents-(?P<resolution>[1-9]\d*)(-(?P<buckets>{BUCKETS})|-{_CUT})?{_FLIP}"),
}


def parse_column(name: str) -> ColumnName:
    """The inverse of `View.image_column` and `View.latents_column`, and ``text`` or ``text-NAME`` for captions.

    UsageError for a name that is none of these.
    """
    for kind, pattern in _PATTERNS.items():
        if layout.is_column_name(name) and (match := pattern.fullmatch(name)):
            return _parsed(name, kind, match.groupdict())
    raise UsageError(
        f"there is no column '{name}'; columns are text, image and latents-N, with N a resolution in pixels, and their"
        " variants text-NAME, image-flip, latents-N-crop-1, latents-N-buckets and so on"
    )


def _parsed(name: str, kind: str, parts: dict[str, str | None]) -> ColumnName:
    if kind == "text":
        return ColumnName(name, kind)
    view = View(parts["buckets"] or parts["cut"] or CENTRE, parts["flip"] is not None)
    return ColumnName(name, kind, view, int(parts["resolution"]) if parts["resolution"] else None)
