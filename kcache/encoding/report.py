"""What an encode found and did, for whoever called it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kcache.progress import logger

from .work import Work

REASONS_ANNOUNCED = 5
"""Of the reasons why samples lose their features, so many are said before it is done; the summary has more."""


@dataclass(frozen=True)
class Estimate:
    """What a column's work would take."""

    samples: int
    unplanned: int
    """Of them, those that the cache does not know yet."""
    bytes: int
    """Of the features themselves."""
    disk: int
    """Of the files that hold them, with what is copied into these from files before."""
    seconds: float

    def plus(self, other: "Estimate") -> "Estimate":
        """Both together: of a stream, what the windows before take and this one."""
        return Estimate(
            self.samples + other.samples,
            self.unplanned + other.unplanned,
            self.bytes + other.bytes,
            self.disk + other.disk,
            self.seconds + other.seconds,
        )


@dataclass
class EncodeReport:
    """One run: the dataset against the cache, what was encoded, and what a person may want to look at."""

    samples: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """For each column, its rows by state: hit, changed, new, gone, set aside."""
    changed: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    """Samples that have features and cannot be encoded any more, and why."""
    taken_out: dict[str, str] = field(default_factory=dict)
    """Samples that lose their features, and why."""
    lacking: dict[str, list[str]] = field(default_factory=dict)
    """By column, samples that are kept, have no features in it, and cannot be encoded any more."""
    set_aside: dict[str, str] = field(default_factory=dict)
    found_bad: int = 0
    """Of those set aside, the ones that nobody could know of before their pictures were decoded."""
    shards_written: int = 0
    encoded: dict[str, int] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    """Of a dry run, by column."""
    beginning: float = 0.0
    """Of a dry run: seconds until the first batch, with the models loaded that a run needs."""
    reading: float = 0.0
    """Of a dry run: seconds to read the pictures that a run would encode."""
    in_all: float = 0.0
    """Of a dry run: seconds that a run would take."""
    refused: dict[str, str] = field(default_factory=dict)
    """Of a dry run: the columns that a run would refuse to mix, and what differs."""
    cut: dict[str, int] = field(default_factory=dict)
    """Samples with a caption that is longer than the text encoder takes, and the tokens of the longest."""
    empty_captions: int = 0
    animated: list[str] = field(default_factory=list)
    upscaled: Counter[str] = field(default_factory=Counter)
    """For each latents column, the pictures that were enlarged by more than ``max_upscale``."""
    pictures: int = 0
    seconds: float = 0.0

    def add(self, work: Work) -> None:
        """Take over what was found (of a stream, in one window of it)."""
        for name, counts in work.counts.items():
            self.counts.setdefault(name, Counter()).update(counts)
        self.changed |= work.changed
        self.renamed |= work.renamed
        self.gone |= work.gone
        self.taken_out |= work.taken_out
        self.set_aside |= work.set_aside
        for name, samples in work.lacking.items():
            self.lacking.setdefault(name, []).extend(samples)


def announce(counts: Mapping[str, Mapping[str, int]]) -> None:
    """The first lines of a run: for each column, its rows by state."""
    width = max([12, *map(len, counts)])
    for name, by_state in counts.items():
        states: Iterable[str] = (f"{s} {by_state.get(s, 0):,}" for s in ("hit", "changed", "new", "gone", "set aside"))
        logger.info("%-*s %s", width, name, " / ".join(states))


def announce_loss(taken_out: Mapping[str, str]) -> None:
    """What a run will take out of the cache, before it does: how many samples, and why."""
    for reason, number in Counter(taken_out.values()).most_common(REASONS_ANNOUNCED):
        logger.info("%-12s %s: %s", "taken out", f"{number:,}", reason)
