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
        if error is not None:
            # torch says of a full disk only that a position is unexpected, so the disk is asked.
            full = "No space left" in str(error) or shutil.disk_usage(self.temporary).free < 2**20
            shutil.rmtree(self.temporary, ignore_errors=True)
            if full and isinstance(error, Exception):
                raise KcacheError(
                    f"the disk of {self.path.parent} is full and {self.path.name} was not written; free some space and"
                    f" {self.retry}"
                ) from error
            return
        put_in_place(self.temporary, self.path)


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
