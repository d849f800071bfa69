"""How well sampled image embeddings match the true ones of held-out pictures."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 1024
"""Sampled embeddings that are compared with all true ones at a time: 4 KB for each row and thousand pictures."""


@dataclass(frozen=True)
class Scores:
    """Mean cosine similarity to the true embedding, and the share for which it is the nearest, or among the five."""

    cosine: float
    recall_at_1: float
    recall_at_5: float


def retrieval(sampled_ND: Tensor, true_ND: Tensor) -> Scores:
    """Scores of N sampled embeddings, row by row against the true embeddings of the same pictures.

    Every sampled embedding ranks all different pictures of the set by cosine similarity. Rows of ``true_ND`` that are
    equal are one picture, for which any of them is right. Ties count against the model, and so does what is not a
    number: embeddings that are all the same, zero or NaN retrieve nothing. Chance is 1 or 5 in the number of different
    pictures, so scores compare between sets of one size only. ValueError without any row.
    """
    if sampled_ND.shape != true_ND.shape or not len(true_ND):
        raise ValueError(f"{tuple(sampled_ND.shape)} sampled and {tuple(true_ND.shape)} true embeddings")
    pictures_PD, picture_of_N = torch.unique(true_ND.float(), dim=0, return_inverse=True)
    sampled_ND, pictures_PD = F.normalize(sampled_ND.float(), dim=1), F.normalize(pictures_PD, dim=1)
    cosines, ranks = [], []
    for start in range(0, len(sampled_ND), ROWS):
        sampled, own = sampled_ND[start : start + ROWS], picture_of_N[start : start + ROWS]
        similarity = sampled @ pictures_PD.T
        of_own = similarity.gather(1, own[:, None])
        cosines.append(of_own[:, 0])
        ranks.append((~(similarity < of_own)).sum(1))  # its own picture is not below itself either: the best rank is 1
    rank = torch.cat(ranks)
    return Scores(
        cosine=float(torch.cat(cosines).mean()),
        recall_at_1=float((rank <= 1).float().mean()),
        recall_at_5=float((rank <= 5).float().mean()),
    )
