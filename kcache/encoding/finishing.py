"""One thread that does in order what comes after the encoders: features are converted and checked, shards committed."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

MOST = 4
"""Batches that may wait to be finished: enough to bridge the writing of a shard, few enough to be held in memory."""


class Finisher:
    """Finishes batches and commits shards while the encoders go on.

    At most one commit is waiting, so that a kill costs little more than one shard. After an error nothing more is done,
    for it would build on what is missing; whoever puts the next thing is told.
    """

    def __enter__(self) -> "Finisher":
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="kcache-finish")
        self._waiting, self._commit = deque[Future[None]](), None
        self._failed = False
        return self

    _commit: Future[None] | None

    def put(self, work: Callable[[], None]) -> Future[None]:
        """Have ``work`` done after all that was put before, of which `MOST` may wait. Raises what went wrong."""
        while self._waiting and (len(self._waiting) >= MOST or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._do, work))
        return self._waiting[-1]

    def put_commit(self, commit: Callable[[], None]) -> None:
        """As `put`, when the commit before is done."""
        if self._commit:
            self._commit.result()
        self._commit = self.put(commit)

    def _do(self, work: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            work()
        except BaseException:
            self._failed = True
            raise

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(wait=True)
        for done in self._waiting if kind is None else ():
            done.result()
