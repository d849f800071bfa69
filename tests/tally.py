"""How many faults of each kind were tried, and what became of them: the table at the end of a run of the tests."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Tally:
    """By kind: how many faults were tried, and how many were missed, that is not survived or not noticed.

    ``unseen`` are those that nobody promises to notice, by what docs/format.md calls them; they are no misses.
    """

    def __init__(self) -> None:
        self.tried, self.missed = Counter[str](), Counter[str]()
        self.unseen: dict[str, Counter[str]] = {}

    def __call__(self, kind: str, problems: list[str]) -> list[str]:
        """Count one fault, missed where it left ``problems``; gives these back."""
        self.add(kind, 1, int(bool(problems)))
        return problems

    def add(self, kind: str, tried: int, missed: int = 0, unseen: Mapping[str, int] | None = None) -> None:
        """Count many faults at once."""
        self.tried[kind] += tried
        self.missed[kind] += missed
        self.unseen.setdefault(kind, Counter()).update(unseen or {})

    @contextmanager
    def all_survived(self, kind: str, tried: int) -> Iterator[None]:
        """Count faults whose outcome is looked at within: one of them is missed where that raises."""
        try:
            yield
        except BaseException:
            self.add(kind, tried, 1)
            raise
        self.add(kind, tried)

    def to_record(self) -> dict[str, Any]:
        """The counts as one process of a run hands them to another."""
        return {kind: [n, self.missed[kind], dict(self.unseen[kind])] for kind, n in self.tried.items()}

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Add the counts of another process."""
        for kind, (tried, missed, unseen) in record.items():
            self.add(kind, tried, missed, unseen)

    def table(self) -> list[str]:
        """The lines of a table, empty where nothing was counted."""
        if not self.tried:
            return []
        width = max(map(len, self.tried))
        lines = [f"{'faults':{width}}  {'tried':>9}  {'found or survived':>17}  {'missed':>6}  not promised to be seen"]
        for kind, tried in sorted(self.tried.items()):
            unseen = self.unseen[kind]
            right = tried - self.missed[kind] - unseen.total()
            why = "; ".join(f"{number:,} {what}" for what, number in unseen.items() if number)
            lines.append(f"{kind:{width}}  {tried:9,}  {right:17,}  {self.missed[kind]:6,}  {why}".rstrip())
        return lines
