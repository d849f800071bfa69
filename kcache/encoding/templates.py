"""Caption templates: a caption with words around it, as a text column of its own."""

import re
import string
from dataclasses import dataclass

from kcache.shards import UsageError, layout
from kcache.shards.records import digest

from .config import EncodeConfig

EXAMPLE = "'a photo of sks {text}'"
LONGEST_NAME = 40


@dataclass(frozen=True)
class CaptionTemplate:
    """Words around a caption: ``a photo of sks {text}``, with braces doubled where they stand for themselves."""

    source: str
    before: str
    after: str

    @classmethod
    def parse(cls, source: str) -> "CaptionTemplate":
        """UsageError for a template that has not exactly one ``{text}``, or another field."""
        try:
            parts = list(string.Formatter().parse(source))
        except ValueError as error:
            raise UsageError(
                f"--caption-template {source!r} is no template ({error}); write it as in {EXAMPLE}"
            ) from None
        fields = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
        if fields != [("text", "", None)]:
            raise UsageError(
                f"--caption-template {source!r} must have {{text}} once and no other field, as in {EXAMPLE}"
            )
        # A doubled brace splits literal text: what comes before the field may be several parts.
        place = next(i for i, part in enumerate(parts) if part[1] is not None)
        literals = [literal for literal, *_ in parts]
        return cls(source, "".join(literals[: place + 1]), "".join(literals[place + 1 :]))

    def __call__(self, caption: str) -> str:
        """The caption as it is encoded."""
        return self.before + caption + self.after

    @property
    def column(self) -> str:
        """A name for its column where the user gives none: ``text-a-photo-of-sks``, at most 40 characters.

        Where words are left out, the template's digest ends the name, so that two templates share none.
        """
        words = "-".join(re.findall(r"[a-z0-9]+", f"{self.before} {self.after}".lower()))
        name, suffix = f"text-{words}", f"-{digest(self.source)[:8]}"
        if words and len(name) <= LONGEST_NAME:
            return name
        return name[: LONGEST_NAME - len(suffix)].rstrip("-") + suffix


def asked_text_column(config: EncodeConfig) -> str | None:
    """The text column that the options ask for, by its name or by a template; None where they name none."""
    if config.caption_template is None:
        return config.text_column
    if config.text_column:
        require_text_column(config.text_column)
    return config.text_column or CaptionTemplate.parse(config.caption_template).column


def require_text_column(name: str) -> None:
    """UsageError for a name that a column of templated captions cannot have."""
    if not re.fullmatch(r"text-[a-z0-9-]+", name) or not layout.is_column_name(name):
        raise UsageError(
            f"--text-column {name} cannot name a column of templated captions: it must be text- and then lower-case"
            " letters, digits and dashes, at most 64 in all, such as text-sks"
        )
