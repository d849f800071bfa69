"""Objects in an S3 bucket, or in a service that speaks its protocol and has conditional writes."""

import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from .errors import CacheError, UsageError
from .objects import StoredObject

logger = logging.getLogger("kcache")
_PIECE = 1 << 20
_ATTEMPTS = 10
"""Attempts at one request; the pauses between them grow, to about a minute in all."""

_CONNECTIONS = 32


class S3Objects:
    """The objects below ``s3://BUCKET/PREFIX``. Credentials, region and endpoint are found as boto3 finds them."""

    def __init__(self, url: str) -> None:
        """Ask nothing of the store yet. UsageError without a bucket, or without boto3."""
        self.url = url
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not self._bucket or not prefix:
            raise UsageError(
                f"{url} names no folder in a bucket; give one such as s3://{self._bucket or 'bucket'}/cache"
            )
        if not all(part.strip(".") for part in prefix.split("/")):
            raise UsageError(f"{url} has a part that is empty, '.' or '..'; give it without")
        self._prefix = f"{prefix}/"
        with self._told():
            endpoint = self._client.meta.endpoint_url
        self.identity = f"{url} at {endpoint}"

    def require_writable(self) -> None:
        """Whether this service can is seen when a cache is made."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose name begins with ``prefix``, sorted by name."""
        with self._told():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    name, written = entry["Key"].removeprefix(self._prefix), entry["LastModified"].timestamp()
                    yield StoredObject(name, entry["Size"], f"{entry['ETag']} {written}")

    def read(self, name: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of an object from ``start`` on, in pieces."""
        from botocore.exceptions import BotoCoreError, ClientError

        ranged = {"Range": f"bytes={start}-"} if start else {}
        with self._told():
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name, **ranged)["Body"]
            except ClientError as error:
                if _code(error) in ("NoSuchKey", "404"):
                    raise FileNotFoundError(f"{self.url}/{name}") from None
                raise
        try:
            yield from body.iter_chunks(_PIECE)
        except (BotoCoreError, OSError) as error:  # cut off in the middle; urllib3's errors become one of botocore's
            raise ConnectionError(str(error)) from None

    def put(self, name: str, data: bytes, *, if_absent: bool) -> bool:
        """Make an object, whole or not at all."""
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": "*"} if if_absent else {}
        with self._told():
            for attempt in range(_ATTEMPTS):
                try:
                    self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data, **condition)
                    return True
                except ClientError as error:
                    if if_absent and _status(error) == 412:
                        return False
                    # 409: another conditional write of the same name is under way, and S3 asks to try again.
                    if _status(error) != 409 or attempt + 1 == _ATTEMPTS:
                        raise
                    time.sleep(random.uniform(0, min(5.0, 0.05 * 2**attempt)))
        raise AssertionError("unreachable")

    @property
    def _client(self) -> Any:
        """Made anew in a forked process, which must not share connections with its parent."""
        settings = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
        return _make_client(os.getpid(), tuple(settings))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Within it what boto3 raises becomes one sentence."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise CacheError(self._sentence(error)) from error
        except BotoCoreError as error:
            said = " ".join(str(error).split()).rstrip(".")
            raise CacheError(
                f"{self.url} cannot be reached ({said}); what was committed is safe: {_HOW_TO_SIGN_IN}, and run the"
                " same command again"
            ) from error
        except ValueError as error:  # of an endpoint that is no URL
            raise UsageError(f"{self.url} cannot be asked for ({error}); {_HOW_TO_SIGN_IN}") from None

    def _sentence(self, error: Any) -> str:
        code, status = _code(error), _status(error)
        if code == "NoSuchBucket":
            return f"{self.url}: there is no bucket '{self._bucket}'; make it, or name another"
        if status in (401, 403):
            return f"{self.url}: access was denied ({code}); {_HOW_TO_SIGN_IN}"
        if code == "NotImplemented" or status == 501:
            return (
                f"{self.url}: this store has no conditional writes (If-None-Match), on which commits rest;"
                " encode into a local folder and copy that there"
            )
        said = error.response.get("Error", {}).get("Message") or code
        return (
            f"{self.url}: the store answered {status} ({said}); what was committed is safe: run the same command again"
        )


_HOW_TO_SIGN_IN = (
    "see that AWS_PROFILE or AWS_ACCESS_KEY_ID, AWS_REGION and AWS_ENDPOINT_URL (with https:// or http://) are right"
)


@lru_cache(maxsize=4)
def _make_client(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    """What boto3 makes in a process with these settings: half a second of work, and its connections are kept."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise UsageError("a cache in s3:// needs boto3; run: pip install 'kcache[s3]'") from None
    retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
    client = boto3.client(
        "s3",
        config=Config(retries=retries, max_pool_connections=_CONNECTIONS, connect_timeout=10, read_timeout=30),
    )
    client.meta.events.register("needs-retry.s3", _say_why_it_takes_long)
    return client


def _say_why_it_takes_long(attempts: int, response: Any, caught_exception: Any, **_: object) -> None:
    """boto3 tries again by itself, without a word."""
    failed = caught_exception is not None or (response is not None and response[0].status_code >= 500)
    if failed and attempts > 1:
        logger.info("the store does not answer as it should (attempt %d of %d); trying again", attempts, _ATTEMPTS)


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
