"""Makes the golden caches of the present format: ``python tests/golden_caches.py`` in the root of the repository."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from kcache.shards import Cache, ColumnReader, Snapshot, layout

HERE = Path("tests/golden")
TINY = "kcache/data/kandinsky-tiny"


def make(container: str) -> Path:
    """The two pictures encoded by kandinsky-tiny, whose weights lie in the repository."""
    cache = HERE / f"format-{layout.FORMAT_VERSION}" / container
    options = [f"--format={container}", "--shard-size=4", "--resolution=64", "--store-dtype=fp16", "--device=cpu"]
    models = [f"--pretrained-{stage}-model-name-or-path={TINY}/{stage}" for stage in ("prior", "decoder")]
    line = [*options, *models, "--batch-size=2", "--caption-column=caption"]
    subprocess.run([sys.executable, "-m", "kcache", "encode", HERE / "pictures", cache, *line], check=True)
    shutil.rmtree(cache / "index")
    return cache


def values(cache: Cache) -> dict[str, dict[str, list[object]]]:
    """For every sample, column and field: dtype, shape, sha256 of the bytes, and the first three numbers."""
    found: dict[str, dict[str, list[object]]] = {}
    for name in cache.column_names():
        snapshot = Snapshot(cache, [name])
        reader = ColumnReader(snapshot, name)
        for i, (shard, row) in enumerate(snapshot.rows.tolist()):
            for field in reader.column.fields:
                array = reader.read(i, field.name)
                digest = hashlib.sha256(array.tobytes()).hexdigest()
                told = [str(array.dtype), list(array.shape), digest, array.ravel()[:3].tolist()]
                found.setdefault(cache.ids(shard)[row], {})[f"{name}/{field.name}"] = told
        reader.close()
    return found


if __name__ == "__main__":
    made = [make(container) for container in layout.CONTAINERS]
    expected = [values(Cache(cache)) for cache in made]
    assert expected[0] == expected[1]
    for cache in made:
        shutil.rmtree(cache / "index")
    (made[0].parent / "values.json").write_text(json.dumps(expected[0], indent=1) + "\n")
