"""The thread behind the encoders: order, how much may wait, and what becomes of an error."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kcache.encoding.finishing import MOST, Finisher
from kcache.landing import Landing, send, stacked


def test_what_is_put_is_done_in_order_and_all_of_it_by_the_end() -> None:
    done: list[int] = []
    with Finisher() as finisher:
        for number in range(50):
            put = finisher.put_commit if number % 5 == 4 else finisher.put
            put(lambda number=number: done.append(number))
    assert done == list(range(50))


def test_an_error_is_raised_where_the_next_is_put_and_nothing_after_it_is_done() -> None:
    done: list[str] = []
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise ValueError("not a finite number")

    def put_until_told(finisher: Finisher) -> None:
        finisher.put(fail)
        assert failed.wait(10)
        for _ in range(MOST + 1):  # the thread may be about to say so
            finisher.put_commit(lambda: done.append("committed"))

    with pytest.raises(ValueError, match="not a finite"), Finisher() as finisher:
        put_until_told(finisher)
    assert not done


def test_an_error_in_the_last_thing_put_is_raised_at_the_end() -> None:
    def fail() -> None:
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="disk is full"), Finisher() as finisher:
        finisher.put_commit(fail)


def test_what_was_put_before_an_interruption_is_finished() -> None:
    done: list[str] = []

    def interrupted(finisher: Finisher) -> None:
        finisher.put_commit(lambda: done.append("committed"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Finisher() as finisher:
        interrupted(finisher)
    assert done == ["committed"]


@pytest.mark.parametrize("commits", [False, True])
def test_only_so_much_waits(commits: bool) -> None:
    held, putting = threading.Event(), threading.Event()
    taken: list[int] = []

    def put_all(finisher: Finisher) -> None:
        put: Callable[[Callable[[], Any]], Any] = finisher.put_commit if commits else finisher.put
        for number in range(MOST + 2):
            put(lambda: held.wait(10))
            taken.append(number)
            if len(taken) == (1 if commits else MOST):
                putting.set()

    with Finisher() as finisher:
        thread = threading.Thread(target=put_all, args=(finisher,))
        thread.start()
        assert putting.wait(10)
        assert len(taken) == (1 if commits else MOST)
        held.set()
        thread.join(10)
    assert len(taken) == MOST + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_batch_comes_back_in_fp32_as_its_dtype_has_it(dtype: torch.dtype) -> None:
    batch = [np.random.default_rng(i).standard_normal((3, 4, 5), np.float32) for i in range(3)]
    cpu = torch.device("cpu")
    landing = Landing(send(stacked(batch, cpu), cpu).to(dtype))
    rows = [landing.row(i) for i in range(3)]
    for row, sent in zip(rows, batch, strict=True):
        assert row.dtype == np.float32
        np.testing.assert_array_equal(row, torch.from_numpy(sent).to(dtype).float().numpy())
