"""Cosine similarity and retrieval of sampled image embeddings, on values made by hand."""

import math

import pytest
import torch
from torch import Tensor

from kcache.training import scores
from kcache.training.scores import retrieval


def directions(*degrees: float) -> Tensor:
    """Unit vectors in the plane."""
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_embeddings_that_are_right_have_every_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "ROWS", 3)
    true = directions(0, 40, 80, 120, 160, 200, 240)
    perfect = retrieval(true * 7, true)  # their lengths say nothing
    assert (perfect.cosine, perfect.recall_at_1, perfect.recall_at_5) == pytest.approx((1, 1, 1))


def test_the_rank_of_its_own_picture_counts() -> None:
    true = directions(0, 10, 20, 30, 40, 50)
    sampled = directions(0, 12, 0, 30, 31, 0)  # their own are the 1st, 1st, 3rd, 1st, 2nd and 6th of all
    found = retrieval(sampled, true)
    assert found.recall_at_1 == pytest.approx(3 / 6)
    assert found.recall_at_5 == pytest.approx(5 / 6)
    off = [0, 2, 20, 0, 9, 50]
    assert found.cosine == pytest.approx(sum(math.cos(math.radians(one)) for one in off) / 6)


def test_equal_pictures_are_one_picture() -> None:
    true = directions(0, 0, 0, 90)
    assert retrieval(true, true).recall_at_1 == 1
    sixth = directions(0, 0, 0, 10, 20, 30, 40, 50)  # 50 is the sixth picture from 0, and would be the eighth row
    assert retrieval(directions(*[0] * 8), sixth).recall_at_5 == pytest.approx(7 / 8)


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan, math.inf])
def test_embeddings_that_are_all_the_same_retrieve_nothing_by_luck(value: float) -> None:
    true = torch.eye(8)
    found = retrieval(torch.full((8, 8), value), true)
    assert (found.recall_at_1, found.recall_at_5) == (0, 0)


def test_ties_count_against_the_model() -> None:
    between = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert retrieval(between, torch.eye(2)).recall_at_1 == 0


def test_half_precision_is_compared_in_full() -> None:
    true = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).half()
    assert retrieval(true, true) == retrieval(true.float(), true.float())
    assert retrieval(true, true).recall_at_1 == 1


def test_there_must_be_as_many_sampled_as_true_ones() -> None:
    for sampled, true in ((torch.zeros(0, 2), torch.zeros(0, 2)), (torch.zeros(3, 2), torch.zeros(2, 2))):
        with pytest.raises(ValueError, match="true embeddings"):
            retrieval(sampled, true)
