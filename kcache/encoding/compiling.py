"""``--compile``: encoders compiled by torch, in a few graphs for batches of every shape."""

from typing import Any

from kcache.compiler import BACKEND


def compile_encoder(model: Any) -> None:
    """Let a module be compiled when it is first called. Its weights and their names stay as they are.

    The first shape of a batch is compiled for itself, the second for any that may follow, and one input alone once
    more: the last batch of a shard, a smaller one after a halving, trimmed captions and buckets take no further graph.
    """
    model.compile(backend=BACKEND)
