"""How many faults of each kind were tried and how many missed, for the last line of a run."""

from collections import Counter


class Tally:
    """How many faults of each kind were tried, and how many of them were missed: not survived, or not noticed."""

    def __init__(self) -> None:
        self.tried, self.missed = Counter[str](), Counter[str]()

    def __call__(self, kind: str, problems: list[str]) -> list[str]:
        """Count one fault, missed where it left ``problems``; gives these back."""
        self.tried[kind] += 1
        self.missed[kind] += bool(problems)
        return problems

    def __str__(self) -> str:
        return "; ".join(f"{n:,} {kind}, {self.missed[kind]:,} missed" for kind, n in sorted(self.tried.items()))
