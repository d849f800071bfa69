"""An S3 service on this machine (moto's), which can be told to fail, to answer late or not at all, and to cut off."""

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass
class Fault:
    """What happens to the next ``times`` requests of a ``method`` whose path fits ``path``.

    ``status`` is answered in place of what the service would; with ``done``, after it has done it. ``cut`` ends a body
    after so many bytes. ``ignores`` drops a header of the request. With none of these the connection is closed.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    done: bool = False
    cut: int | None = None
    ignores: str | None = None


@dataclass
class Store:
    """The service: its address, what was asked of it (method, path, range), and the faults that are still to come."""

    endpoint: str
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def client(self) -> Any:
        return boto3.client("s3", endpoint_url=self.endpoint)

    def url(self, name: str) -> str:
        return f"s3://{BUCKET}/{name}"

    def objects(self, name: str) -> dict[str, bytes]:
        """Everything below a prefix, by its relative name."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{name}/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return {key.removeprefix(f"{name}/"): self.get(key) for key in keys}

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=key)

    def gets(self, path: str) -> list[tuple[str, str, str]]:
        """The reads of objects whose path fits."""
        return [asked for asked in self.asked if asked[0] == "GET" and re.search(path, asked[1])]

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class _Faulty:
    """Moto's application, with the faults of a store."""

    def __init__(self, application: Wsgi, store: Store) -> None:
        self._application, self._store = application, store

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self._store.lock:
            self._store.asked.append((method, path, environ.get("HTTP_RANGE", "")))
        fault = self._store.fault_for(method, path)
        if fault is None:
            return self._application(environ, start_response)
        if fault.ignores:
            environ.pop(fault.ignores, None)
            return self._application(environ, start_response)
        if fault.cut is not None:
            return _cut(b"".join(self._application(environ, start_response)), fault.cut)
        if fault.done:
            b"".join(self._application(environ, lambda *started: None))
        if fault.status is None:
            raise ConnectionResetError("dropped by the test")
        codes = {400: "IncompleteBody", 409: "ConditionalRequestConflict", 403: "AccessDenied"}
        body = f"<Error><Code>{codes.get(fault.status, 'SlowDown')}</Code><Message>no</Message></Error>".encode()
        start_response(f"{fault.status} No", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
        return [body]


def _cut(body: bytes, after: int) -> Iterator[bytes]:
    """The beginning of a body whose length was announced, and then the end of the connection."""
    yield body[:after]
    raise ConnectionResetError("cut off by the test")


@contextmanager
def running_store() -> Iterator[Store]:
    """A service with one empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    store = Store("")
    application = _Faulty(DomainDispatcherApplication(create_backend_app), store)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
