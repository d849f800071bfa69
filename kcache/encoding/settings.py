"""What one column is made with: as the options say, else as its record or one beside it says, else the default."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from kcache.checkpoints import Checkpoint
from kcache.devices import find_device
from kcache.encoded_with import CHECKPOINTS
from kcache.shards import Column, KcacheError, UsageError
from kcache.views import BUCKETS, CENTRE, ColumnName, View

from .config import EncodeConfig
from .crops import BUCKET_STEP, CROP_SCALE, CROP_SEED, Cut, NearestBucket, RandomSquare, bucket_sizes
from .encoders import STORE_DTYPES, Precision
from .templates import CaptionTemplate, asked_text_column

Value = TypeVar("Value")

DEFAULT_ALPHA = "white"


class Settings:
    """What one column is made with, each value asked for where it is needed.

    The records beside a column's own are asked so that a column that is added to a cache is made as the others were:
    those of its own kind first.
    """

    def __init__(self, config: EncodeConfig, name: ColumnName, records: Mapping[str, Column]) -> None:
        """``records`` are the columns that the cache has, by name."""
        self._config, self._name = config, name
        self._own = records.get(name.name)
        self._records = sorted(
            records.values(), key=lambda column: (column.name != name.name, _kind(column) != name.kind, column.name)
        )

    def checkpoint(self) -> Checkpoint:
        """The checkpoint that has the encoder. KcacheError where a recorded one was a folder and is there no more."""
        which, default = CHECKPOINTS[self._name.kind]
        option = f"pretrained_{which}_model_name_or_path"
        makers = [column for column in self._records if CHECKPOINTS[_kind(column)][0] == which]
        notes = makers[0].notes if makers else {}
        name = getattr(self._config, option) or notes.get("from") or default
        if getattr(self._config, option) is None and makers and _was_folder(notes) and not Path(name).is_dir():
            raise KcacheError(
                f"column '{makers[0].name}' was encoded with the checkpoint in {name}, and that folder is not here;"
                f" say where it is now with --{option.replace('_', '-')}"
            )
        # Another checkpoint than the recorded one has revisions and variants of its own.
        recorded = notes if name == notes.get("from") else {}
        revision = self._config.revision or recorded.get("revision")
        return Checkpoint(name, revision, self._config.variant or recorded.get("variant"), self._config.cache_dir)

    def precision(self) -> Precision:
        """What is computed in and stored; without a record fp32 on a CPU and fp16 elsewhere, and fp16."""
        device = find_device(self._config.device)
        encode = self._recorded(lambda column: column.encode_dtype) or ("fp32" if device.type == "cpu" else "fp16")
        names = {numpy: name for name, numpy in STORE_DTYPES.items()}
        store = self._recorded(lambda column: names.get(column.fields[0].dtype)) or "fp16"
        return Precision(self._config.encode_dtype or encode, self._config.store_dtype or store, device)

    def alpha(self) -> str:
        """What becomes of transparent pixels."""
        recorded = self._recorded(lambda column: column.preprocessing.get("alpha"))
        return self._config.alpha or recorded or DEFAULT_ALPHA

    def trim(self) -> bool:
        """Whether captions are encoded at their own length."""
        return bool(
            self._config.trim_captions
            if self._config.trim_captions is not None
            else any("padded_to_multiple_of" in column.preprocessing for column in self._records)
        )

    def template(self) -> CaptionTemplate | None:
        """The words around captions; None for ``text``. UsageError for a new column that is given none."""
        name, recorded = self._name.name, self._own.preprocessing.get("template") if self._own else None
        if name == "text":
            return None
        if name == asked_text_column(self._config) and self._config.caption_template:
            self._refuse_shared_name(recorded)
            return CaptionTemplate.parse(self._config.caption_template)
        if recorded is None:
            raise UsageError(
                f"there is no text column '{name}' yet: say what it holds with"
                f" --text-column {name} --caption-template 'a photo of sks {{text}}'"
            )
        return CaptionTemplate.parse(recorded)

    def cut(self, view: View) -> Cut | None:
        """How pictures are cut; None for the centre, where CLIP and MoVQ each have their own way."""
        if view.cut == CENTRE:
            return None
        return self._bucket() if view.cut == BUCKETS else self._random_square(view.crop_number)

    def _random_square(self, number: int) -> RandomSquare:
        scale = self._option("crop_scale", "scale", CROP_SCALE)
        if not 0 < scale <= 1:
            raise UsageError(
                f"--crop-scale {scale} is not above 0 and at most 1; it is a part of the picture's shorter side"
            )
        return RandomSquare(number, scale, self._option("crop_seed", "seed", CROP_SEED))

    def _bucket(self) -> NearestBucket:
        step, resolution = self._option("bucket_step", "step", BUCKET_STEP), self._name.resolution
        assert resolution is not None, self._name
        for column in self._records:
            # The list that was used, and not the one that this version would make of the same step.
            if f"-{resolution}-{BUCKETS}" in column.name and _crop(column)["step"] == step:
                return NearestBucket(step, tuple((width, height) for width, height in _crop(column)["buckets"]))
        return NearestBucket(step, bucket_sizes(resolution, step))

    def _option(self, option: str, key: str, default: Any) -> Any:
        """An option that shapes a cut, else its value in a record, else the default."""
        given = getattr(self._config, option)
        recorded = self._recorded(lambda column: _crop(column).get(key))
        return next(value for value in (given, recorded, default) if value is not None)

    def _recorded(self, value: Callable[[Column], Value | None]) -> Value | None:
        """The first record's value that is not None."""
        return next((found for column in self._records if (found := value(column)) is not None), None)

    def _refuse_shared_name(self, recorded: str | None) -> None:
        """UsageError where a column of the name that a template was given by kcache has another template."""
        if not self._config.text_column and recorded not in (None, self._config.caption_template):
            raise UsageError(
                f"the cache has a column '{self._name.name}' with the template {recorded!r};"
                f" name another one for {self._config.caption_template!r} with --text-column"
            )


def _kind(column: Column) -> str:
    return column.name.partition("-")[0]


def _crop(column: Column) -> dict[str, Any]:
    """How a column's pictures are cut; nothing where it is the centre."""
    crop = column.preprocessing.get("crop")
    return crop if isinstance(crop, dict) else {}


def _was_folder(notes: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was a folder and no name on the hub (records of kcache 0.1 do not say: by its looks)."""
    name = str(notes["from"])
    return bool(notes.get("folder", Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1))
