"""Caption files beside pictures: ``a.txt`` for ``a.png``, and ``a.1.txt``, ``a.2.txt``, ... for further captions."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence

_NUMBERED = re.compile(r"(.+)\.(\d{1,6})", re.DOTALL)


def caption_files(pictures: Sequence[str], texts: Sequence[str]) -> dict[str, list[str]]:
    """For each picture of one folder the names of its caption files, in order; ``texts`` are all that end in .txt.

    ``a.png.txt`` is meant for ``a.png`` alone and rules out ``a.txt``, which ``a.jpg`` may share. ``a.1.txt`` belongs
    to ``a.1.png`` where there is such a picture, and is the second caption of ``a.png`` where there is not.
    """
    owners = {*pictures, *(os.path.splitext(picture)[0] for picture in pictures)}
    files: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for text in texts:
        owner, number = text.removesuffix(".txt"), -1
        if owner not in owners and (numbered := _NUMBERED.fullmatch(owner)):
            owner, number = numbered[1], int(numbered[2])
        files[owner].append((number, text))
    found = {picture: files.get(picture) or files.get(os.path.splitext(picture)[0]) or [] for picture in pictures}
    return {picture: [text for _, text in sorted(numbered)] for picture, numbered in found.items()}


def read_captions(folder: str, names: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """The captions in these files, and None; or no captions, and why they cannot be had."""
    if not names:
        return (), "it has no caption: neither metadata.jsonl, metadata.csv nor a .txt file beside it"
    captions = []
    for name in names:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                captions.append(file.read().decode("utf-8-sig").strip())
        except UnicodeDecodeError:
            return (), f"its caption file {name} is not UTF-8 text"
        except OSError as error:
            return (), f"its caption file {name} cannot be read: {error.strerror or error}"
    return tuple(captions), None
