"""What a path that is no cache may be instead, and what to type for it."""

from pathlib import Path


def not_a_cache(name: str, path: Path) -> str:
    """The sentence for a ``path`` without a cache's root record, by the ``name`` that was given for it."""
    if path.is_file():
        return f"{name} is a file and not a kcache cache; name a folder that 'kcache encode' has made"
    if (path / "training.json").is_file():
        return (
            f"{name} is not a kcache cache but what 'kcache train' left; 'kcache report {name} -o report.html' shows it"
        )
    if (path / "metadata.jsonl").is_file():
        return f"{name} is not a kcache cache but a dataset; make one of it with 'kcache encode {name} CACHE'"
    return f"{name} is not a kcache cache; make one with 'kcache encode DATASET {name}'"
