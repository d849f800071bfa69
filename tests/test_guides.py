"""Every command in the documents is run by a test or marked as not run; those of the guides are run here, small."""

import runpy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from commands import checkpoint_options, done, kcache
from guides import ROOT, Block, blocks, expand
from PIL import Image
from sources import img2dataset
from store import Store

pytestmark = pytest.mark.usefixtures("few_steps")

PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]
GUIDES = ["docs/tutorial.md", "docs/small-gpu.md", "docs/sweeps.md", "docs/large-datasets.md"]
TINY = ROOT / "kcache" / "data" / "kandinsky-tiny"

SMALLER = {
    "--max-train-steps": "2",
    "--validation-steps": "2",
    "--train-batch-size": "2",
    "--resolution": "32",
    "--shard-size": "2",
    "--local-cache": "local",
}
"""What is given here in place of a page's own values."""

FEWER_TURNS = {"in 3e-5 1e-4 3e-4 1e-3 3e-3;": "in 3e-4;", "in 4 8 16 32;": "in 4 16;", "in 1 2 3;": "in 1;"}
"""Of the loops in docs/sweeps.md."""

Follow = Callable[..., None]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_commands_is_run_or_marked_as_not_run(page: str) -> None:
    for block in blocks(page):
        if block.kind == "run by":
            test = (ROOT / "tests" / block.said).read_text("utf-8")
            assert Path(page).name in test, f"{block} is run by {block.said}, which does not name {page}"
        elif block.is_typed and page not in GUIDES:
            assert block.kind == "not run", f"{block} is neither run by a test nor marked: '<!-- not run: why -->'"


def test_a_block_that_is_neither_would_be_found(tmp_path: Path) -> None:
    marked, unmarked, output = "<!-- not run: why -->\n```\nhf a\n```\n", "```\nkcache b\n```\n", "```\nhit 1\n```\n"
    (tmp_path / "page.md").write_text(f"{marked}\n{unmarked}\n{output}")
    found = [(block.line, block.is_typed, block.kind) for block in blocks(str(tmp_path / "page.md"))]
    assert found == [(2, True, "not run"), (6, True, ""), (10, False, "")]


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Follow:
    """``follow(page)``: type what is to be run of it, in a folder of this test."""
    monkeypatch.chdir(tmp_path)

    def run(page: str, fewer: Mapping[str, str] = MappingProxyType({})) -> None:
        typed = written = ""
        for block in blocks(page):
            if block.language == "python":
                written = block.text
            elif is_due(block):
                text = block.text
                for shown, here in fewer.items():
                    text = text.replace(shown, here)
                for program, *words in expand(text, typed, tmp_path):
                    if program == "python":
                        Path(words[0]).write_text(written, "utf-8")
                        runpy.run_path(words[0])
                    else:
                        done(kcache(*smaller(words)))
                typed += text

    return run


def is_due(block: Block) -> bool:
    """Whether a block is run here: all of the guides that is not marked, and of other pages what is marked so."""
    return block.is_typed and ((block.page in GUIDES and not block.kind) or block.said == Path(__file__).name)


def smaller(words: list[str]) -> list[str]:
    """A command with less to do, and with kandinsky-tiny where the page leaves it at the hub's checkpoints."""
    words = [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    if words[0] == "generate":
        words = [word for word in words if word != "--offload"]  # refused where there is no GPU
        hubs = {"--prior": TINY / "prior", "--decoder": TINY / "decoder", "--resolution": 32}
        more = [f"{name}={value}" for name, value in hubs.items() if name not in words]
        return [*words, *more, "--num-inference-steps=2", "--prior-num-inference-steps=2"]
    if words[0] == "plan":
        words.append("--train-batch-size=1")
    if words[0] in ("encode", "train", "plan") and "--pretrained-prior-model-name-or-path" not in words:
        return [*words, *checkpoint_options(TINY / "prior", TINY / "decoder")]
    return words


def test_the_tutorial_goes_from_pictures_to_a_lora_that_diffusers_loads(follow: Follow) -> None:
    source, data = ROOT / "kcache" / "data" / "pictures", Path("kcache/data")
    (data / "pictures").mkdir(parents=True)
    rows = (source / "metadata.jsonl").read_text("utf-8").splitlines(keepends=True)[:6]
    (data / "pictures" / "metadata.jsonl").write_text("".join(rows), "utf-8")
    for name in ("1f308", "1f31d", "1f31e", "1f332", "1f334", "1f335"):
        shutil.copy(source / f"{name}.webp", data / "pictures")
    (data / "kandinsky-tiny").symlink_to(TINY)
    follow("docs/tutorial.md")
    *_, with_diffusers = [block.text for block in blocks("docs/tutorial.md") if block.language == "python"]
    exec(with_diffusers.replace("height=64", "num_inference_steps=2, height=64"))
    with Image.open("fox.png") as picture:
        assert picture.size == (64, 64)
    assert {path.name for path in Path("my-decoder").iterdir()} >= {
        "README.md",
        "validation.png",
        "pytorch_lora_weights.safetensors",
    }


def test_the_page_on_small_gpus_is_right_about_its_commands(follow: Follow, pictures: Path) -> None:
    Path("my-pictures").symlink_to(pictures)
    follow("docs/small-gpu.md")
    follow("docs/generating.md")  # how its fox.png was made


def test_the_page_on_sweeps_is_right_about_its_commands(follow: Follow, pictures: Path) -> None:
    Path("my-pictures").symlink_to(pictures)
    follow("docs/sweeps.md", FEWER_TURNS)
    assert {path.name for path in Path("sweep").iterdir()} == {"first", "rate-3e-4-rank-4", "rate-3e-4-rank-16"}
    assert Path("rank-16.png").is_file()
    Path("my-prior").symlink_to("sweep/first")
    follow("docs/watching.md")


def test_the_page_on_large_datasets_is_right_about_its_commands(follow: Follow, store: Store) -> None:
    for number in range(2):
        rows = {f"{number}000{letter}": {"text": f"{number} {letter}", "width": 600} for letter in "abcd"}
        img2dataset(Path(f"tars/0000{number}.tar"), rows)
    follow("docs/large-datasets.md")
    assert store.objects("big")
