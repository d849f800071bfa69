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
from tally import Tally

if TYPE_CHECKING:
    from commands import Encode
    from folders import Train
    from store import Store

    from kcache.shards import Cache

# The same examples every time: a test that fails once fails again.
settings.register_profile("kcache", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("kcache")


_TALLY = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TALLY] = Tally()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that `pytest -n` started hands its counts to the one that tells."""
    if output := getattr(session.config, "workeroutput", None):
        output["tally"] = session.config.stash[_TALLY].to_record()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_TALLY].add_record(getattr(node, "workeroutput", {}).get("tally", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash[_TALLY].table():
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """The counts that the table at the end of a run shows."""
    return request.config.stash[_TALLY]


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


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of a validation in 3 steps of the decoder, not 20, where a test is about something else."""
    for module in ("painter", "validation"):
        monkeypatch.setattr(f"kcache.training.{module}.STEPS", 3)


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


@pytest.fixture
def encode(tiny_prior: Path, tiny_decoder: Path) -> "Encode":
    """``encode(dataset, cache, *options)`` with the tiny encoders."""
    from commands import encode_with

    return encode_with(tiny_prior, tiny_decoder)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder with three good pictures, without captions yet."""
    from folders import picture, write

    for i, name in enumerate("abc"):
        write(tmp_path / "dataset" / f"{name}.png", picture((20 + i, 24)))
    return tmp_path / "dataset"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_prior: Path, tiny_decoder: Path) -> Path:
    """A cache with all three columns of the ten pictures; tests that change it copy it."""
    from commands import done, encode_with

    cache = tmp_path_factory.mktemp("whole") / "cache"
    done(encode_with(tiny_prior, tiny_decoder)(pictures, cache))
    return cache


@pytest.fixture
def train(tiny_prior: Path, tiny_decoder: Path, tmp_path: Path) -> "Train":
    """``train(stage, cache, *options)`` for one update from the tiny checkpoints."""

    from commands import kcache

    def run(stage: str, cache: Path, *options: object, checkpoint: Path | None = None) -> Any:
        name = f"--pretrained-{stage}-model-name-or-path"
        default = {"prior": tiny_prior, "decoder": tiny_decoder}[stage]
        resolution = ["--resolution=32"] if stage == "decoder" and "--resolution" not in options else []
        fixed = ["--max-train-steps=1", "--seed=0", "--output-dir", tmp_path / "out", name, checkpoint or default]
        return kcache("train", stage, cache, *fixed, *resolution, *options)

    return run


@pytest.fixture
def nothing_trained(tmp_path: Path) -> Iterator[None]:
    """After the test, no result lies in the output folder."""
    yield
    assert not list(tmp_path.glob("out/prior")) + list(tmp_path.glob("out/unet"))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Iterator[Store]":
    """An S3 service with an empty bucket, found by the environment; local copies lie in a folder of this test."""
    from moto.s3.models import s3_backends
    from store import BUCKET, running_store

    s3_backends.reset()  # what a test before left in this process

    with running_store() as running:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": running.endpoint,
            "KCACHE_LOCAL_CACHE": str(tmp_path / "local"),
        }.items():
            monkeypatch.setenv(name, value)
        running.client.create_bucket(Bucket=BUCKET)
        running.asked.clear()
        yield running
