"""A folder that is filled under another name, and gets its own only when all that is in it lies on stable storage."""

import os
import shutil
from pathlib import Path

from kcache.shards import durable
from kcache.shards.errors import KcacheError

TEMPORARY, OLD = ".tmp-", ".old-"
"""How the names of folders begin that are being written, or were there before."""


class whole_folder:  # noqa: N801  (used as a function)
    """A context in which a folder is filled; it gets its name only when all that is in it lies on stable storage.

    ``retry`` says what to do, once there is room, when the disk was full.
    """

    def __init__(self, path: Path, retry: str) -> None:
        self.path, self.temporary, self.retry = path, path.with_name(f"{TEMPORARY}{path.name}"), retry

    def __enter__(self) -> Path:
        shutil.rmtree(self.temporary, ignore_errors=True)
        durable.make_folder(self.temporary)
        return self.temporary

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None:
            put_in_place(self.temporary, self.path)
            return
        full = is_full(self.temporary, error)
        shutil.rmtree(self.temporary, ignore_errors=True)
        if full:
            raise not_written(self.path, self.retry) from error


def is_full(folder: Path, error: BaseException) -> bool:
    """Whether an error came of a full disk: torch says of one only that a position is unexpected, so it is asked."""
    return isinstance(error, Exception) and ("No space left" in str(error) or shutil.disk_usage(folder).free < 2**20)


def not_written(path: Path, retry: str) -> KcacheError:
    """What is said when the disk was full; ``retry`` as of `whole_folder`."""
    return KcacheError(
        f"the disk of {path.parent} is full and {path.name} was not written; free some space and {retry}"
    )


def put_in_place(new: Path, path: Path) -> None:
    """Give a filled folder, or a file in a folder of its own, the name ``path``, once all of it lies on stable storage.

    What had the name is removed afterwards.
    """
    for file in [new, *new.rglob("*")]:
        if file.suffix == ".safetensors":
            # safetensors writes for its owner alone; a model is shared as the folder around it is.
            file.chmod(new.parent.stat().st_mode & 0o666)
    durable.sync_tree(new if new.is_dir() else new.parent)
    if new.is_file():
        os.replace(new, path)
    else:
        replaced = path.with_name(f"{OLD}{path.name}")
        shutil.rmtree(replaced, ignore_errors=True)
        if path.exists():
            os.rename(path, replaced)
        os.rename(new, path)
        shutil.rmtree(replaced, ignore_errors=True)
    durable.sync_folder(path.parent)
