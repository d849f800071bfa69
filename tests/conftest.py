"""What the tests share: no network, one thread, and a tiny Kandinsky with ten pictures, encoded once per session."""

import os

# Before anything is imported: no test may ask the hub, and tiny models are quicker on one thread.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true"}

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from kcache.shards import Cache

# The same examples every time: a test that fails once fails again.
settings.register_profile("kcache", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("kcache")


@pytest.fixture(autouse=True, scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered between runs (the sha256 of weights) goes to a folder of this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior's checkpoint of width 16."""
    import tiny

    return tiny.make_prior(tmp_path_factory.mktemp("checkpoints") / "prior")


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder's checkpoint of width 16."""
    import tiny

    return tiny.make_decoder(tmp_path_factory.mktemp("checkpoints") / "decoder")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures with captions; tests that change the folder copy it first."""
    import tiny

    return tiny.make_pictures(tmp_path_factory.mktemp("dataset") / "pictures")


@pytest.fixture(scope="session")
def encoded(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_prior: Path, tiny_decoder: Path
) -> "Callable[..., Cache]":
    """``encoded(format="h5", ...)``: the pictures encoded with these options, once; tests that change it copy it."""
    from support import encode_tiny

    made: dict[str, Cache] = {}

    def cache(**options: Any) -> "Cache":
        name = "-".join(f"{key}-{value}" for key, value in sorted(options.items())) or "cache"
        if name not in made:
            root = tmp_path_factory.mktemp("caches") / "cache"
            made[name] = encode_tiny(root, pictures, tiny_prior, tiny_decoder, **options)
        return made[name]

    return cache


@pytest.fixture(params=("tar", "h5"))
def container(request: pytest.FixtureRequest) -> str:
    """Both kinds of shard file, one after the other."""
    return str(request.param)


@pytest.fixture
def cache(tmp_path: Path, container: str) -> "Cache":
    """A toy cache with each kind of shard."""
    from toy_cache import make_cache

    return make_cache(tmp_path / "cache", container)


@pytest.fixture
def tar_cache(tmp_path: Path) -> "Cache":
    """A toy cache with tar shards."""
    from toy_cache import make_cache

    return make_cache(tmp_path / "cache")
