"""A cache of image embeddings written by hand, with one sample of each kind that `kcache preview` marks."""

from pathlib import Path

import numpy as np

from kcache.shards import Cache, Column, Field

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"
WIDTH = 16


def make_preview_cache(root: Path, samples: int = 130) -> Cache:
    """Sample 0 has a hostile caption, 1 and 2 are the same file, 3 has a long embedding, 4 was set aside.

    Sample i has the caption "a fox" or "a red cup", and "number i".
    """
    cache = Cache.create(root, shard_size=samples, container="tar")
    column = Column("image", "image", (Field("image_embeds", "float32", (WIDTH,)),), {"class": "none"}, {}, "fp32")
    rows = [
        {
            "id": f"sample-{i}",
            "captions": [EVIL] if i == 0 else [f"{'a fox' if i % 2 else 'a red cup'}, number {i}"],
            "sha256": str(2 if i == 1 else i),
            **({"set_aside": "the file is cut off"} if i == 4 else {"width": 64, "height": 48}),
        }
        for i in range(samples)
    ]
    cache.extend_plan([str(row["id"]) for row in rows])
    cache.add_column(column, None)
    cache.commit_samples(0, rows, [f"key {i}" for i in range(samples)])
    embeds = np.random.default_rng(0).normal(size=(samples, WIDTH)).astype(np.float32)
    embeds *= 10 / np.linalg.norm(embeds, axis=1, keepdims=True)
    embeds[2], embeds[3] = embeds[1], embeds[3] * 20
    features = [None if i == 4 else {"image_embeds": embeds[i]} for i in range(samples)]
    keys = [None if i == 4 else column.key_of(row) for i, row in enumerate(rows)]
    cache.commit_features(column, 0, features, keys)
    return cache
