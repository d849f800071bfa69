"""What was learned by one UNet, added to another: from the decoder to those of inpainting and ControlNet."""

from typing import Any

from kcache.shards.errors import KcacheError

_FIRST = "conv_in.weight"
"""The one weight whose shape (O, I, 3, 3) depends on what a UNet takes beside the latents, which come first in I."""


def add_difference(target: Any, trained: Any, before: Any, name: str) -> None:
    """Add to ``target`` by how much ``trained`` differs from what it was ``before``, weight for weight, in place.

    ``target`` may have weights of its own, such as those for a hint, and more input channels; ``name`` is what to call
    it in the KcacheError when the others' weights are not all in it.
    """
    import torch

    old, new, theirs = before.state_dict(), trained.state_dict(), target.state_dict()
    with torch.no_grad():
        for key, weight in new.items():
            change = weight - old[key]
            own = theirs.get(key)
            if key == _FIRST and own is not None:
                own = own[:, : change.shape[1]]
            if own is None or own.shape != change.shape:
                raise KcacheError(
                    f"the UNet of {name} {'lacks' if own is None else 'has another shape of'} {key}, which was trained;"
                    " name a pipeline of the same architecture, such as"
                    " kandinsky-community/kandinsky-2-2-decoder-inpaint"
                )
            own += change
