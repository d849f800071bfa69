"""What the tests of faults share: scenes that are encoded once, and encodes that wait for no disk."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenes import Scene, Scenes, keep_models, make_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory, tiny_prior: Path, tiny_decoder: Path) -> Scenes:
    """``scenes(container)``: the four scenes by name, made once."""
    made: dict[str, dict[str, Scene]] = {}

    def scenes(container: str) -> dict[str, Scene]:
        if container not in made:
            folder = tmp_path_factory.mktemp("scenes")
            made[container] = make_scenes(folder, tiny_prior, tiny_decoder, container)
        return made[container]

    return scenes


@pytest.fixture(scope="module")
def fast() -> Iterator[None]:
    """All encodes of the module load their models once, and wait for no disk."""
    with pytest.MonkeyPatch.context() as patch:
        keep_models(patch)
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
