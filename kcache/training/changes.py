"""How a cache differs from the snapshot that a checkpoint was trained on, counted in rows and said in words."""

from collections import Counter

from kcache.shards import Cache, CacheError, Commit, Snapshot, layout

Generations = dict[str, list[list[int]]]
"""For each column, by the name of its files, ``[shard, generation]`` of what was pinned."""


def describe_changes(before: Generations | None, samples: int, snapshot: Snapshot) -> str:
    """Such as "text: 12 rows encoded anew, 40 added; 3,428 samples instead of 3,388"."""
    said = []
    if before is not None:
        old_editions = {_name(stem): stem for stem in before}
        for stem, now in snapshot.generations.items():
            old = old_editions.get(_name(stem))
            if old is not None and old != stem:
                said.append(f"{_name(stem)}: made anew by another encoder")
            elif old is not None and before[old] != now:
                said.append(f"{stem}: {_count(snapshot.cache, stem, dict(before[old]), dict(now))}")  # type: ignore[arg-type]
    if samples != len(snapshot):
        said.append(f"{len(snapshot):,} samples instead of {samples:,}")
    return "; ".join(said) or "its rows differ"


def _name(stem: str) -> str:
    return stem.split(".")[0]


def _count(cache: Cache, stem: str, before: dict[int, int], now: dict[int, int]) -> str:
    """What became of a column's rows, from the keys in the commits of then and now."""
    rows = Counter[str]()
    for shard in sorted(before.keys() | now.keys()):
        if before.get(shard) == now.get(shard):
            continue
        old, new = (_keys(cache, stem, shard, generations.get(shard)) for generations in (before, now))
        for i in range(max(len(old), len(new))):
            rows[_state(old[i] if i < len(old) else None, new[i] if i < len(new) else None)] += 1
    states = [state for state in ("encoded anew", "added", "taken out") if rows[state]]
    said = (f"{rows[state]:,} {'row' if rows[state] == 1 else 'rows'} {state}" for state in states)
    return ", ".join(said) or "other files with the same rows"


def _state(old: str | None, new: str | None) -> str:
    if old == new:
        return "kept"
    return "added" if old is None else "taken out" if new is None else "encoded anew"


def _keys(cache: Cache, stem: str, shard: int, generation: int | None) -> tuple[str | None, ...]:
    if generation is None:
        return ()
    path = cache.root / layout.commit(stem, shard, generation)
    try:
        return Commit.load(path).keys
    except CacheError:
        return ()  # Another cache, or one whose old commits were cleared away: its rows count as added.
