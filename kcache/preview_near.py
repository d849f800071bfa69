"""What a cache's image embeddings tell: nearest neighbours, samples that are almost equal, and norms out of line."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kcache.progress import bar

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

NEIGHBOURS = 8
ALMOST = 0.985
"""Cosine similarity from which two pictures count as almost equal."""

OUTLYING = 6.0
"""Distance of a norm from the median, in robust standard deviations, beyond which it is out of line."""

_ROWS, _COLUMNS = 1024, 8192
"""Of the matrix of similarities so much is in memory at once: 32 MiB."""


def neighbours(
    embeds_ND: Tensor, device: torch.device, most: int = NEIGHBOURS, shown: bool = True
) -> tuple[Numbers, Floats]:
    """Of each of N embeddings the nearest others, nearest first, and their cosine similarities (shape (N, k) both).

    In fp32, block by block; k is ``most``, or N - 1 where there are no more. An embedding of zeros or of what is no
    number is similar to nothing (0).
    """
    count = len(embeds_ND)
    k = max(0, min(most, count - 1))
    found = np.zeros((count, k), np.int64), np.zeros((count, k), np.float32)
    if not k:
        return found
    with bar(count, "samples", "finding neighbours", shown=shown) as progress:
        for start in range(0, count, _ROWS):
            rows = slice(start, min(start + _ROWS, count))
            index, similarity = _nearest(embeds_ND, rows, k, device)
            found[0][rows], found[1][rows] = index.cpu().numpy(), similarity.cpu().numpy()
            progress.update(rows.stop - start)
    return found


def _nearest(embeds_ND: Tensor, rows: slice, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    own = _unit(embeds_ND[rows], device)
    numbers = torch.arange(rows.start, rows.stop, device=device)[:, None]
    index = torch.full((len(own), 0), 0, device=device, dtype=torch.int64)
    similarity = torch.zeros((len(own), 0), device=device)
    for start in range(0, len(embeds_ND), _COLUMNS):
        others = _unit(embeds_ND[start : start + _COLUMNS], device)
        columns = torch.arange(start, start + len(others), device=device).expand(len(own), -1)
        product = (own @ others.T).masked_fill(columns == numbers, -torch.inf)  # nobody neighbours itself
        similarity = torch.cat([similarity, product], 1)
        similarity, chosen = similarity.topk(min(k, similarity.shape[1]), dim=1)
        index = torch.cat([index, columns], 1).gather(1, chosen)
    return index, similarity


def _unit(embeds_ND: Tensor, device: torch.device) -> Tensor:
    return torch.nn.functional.normalize(embeds_ND.to(device, torch.float32).nan_to_num(0, 0, 0), dim=1)


def almost_equal(index_NK: Numbers, similarity_NK: Floats, least: float = ALMOST) -> list[list[int]]:
    """Groups of samples in which each is at least so similar to some other; groups and members ascend."""
    close = np.argwhere(similarity_NK >= least)
    return groups((int(i), int(index_NK[i, place])) for i, place in close)


def groups(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """What pairs connect, directly or through others."""
    leader: dict[int, int] = {}

    def find(one: int) -> int:
        while leader.setdefault(one, one) != one:
            leader[one] = leader[leader[one]]
            one = leader[one]
        return one

    for one, other in pairs:
        low, high = sorted((find(one), find(other)))
        leader[high] = low
    members: dict[int, list[int]] = {}
    for one in sorted(leader):
        members.setdefault(find(one), []).append(one)
    return [members[first] for first in sorted(members)]


def outliers(norms_N: Floats, beyond: float = OUTLYING) -> list[int]:
    """Which norms lie further than ``beyond`` robust standard deviations from the median, or are no number.

    The deviation is 1.4826 times the median of absolute differences, and at least 1 % of the median, so that among
    norms that are all but equal none is out of line for the last bit.
    """
    finite = norms_N[np.isfinite(norms_N)]
    if not finite.size:
        return list(range(len(norms_N)))
    middle = np.median(finite)
    scale = max(1.4826 * float(np.median(np.abs(finite - middle))), 0.01 * float(middle), 1e-12)
    return np.flatnonzero(~(np.abs(norms_N - middle) <= beyond * scale)).tolist()
