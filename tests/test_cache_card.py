"""The card of a cache: what it is, from what, what it reveals, and nothing that names this machine."""

import shutil
from pathlib import Path

import pytest
from commands import Encode, copy_old, done, encode_with, kcache, refused, stamps, tree
from support import features

from kcache.cache_card import END, Origin, public_name, read_origin, write_card
from kcache.shards import Cache, Snapshot, verify


@pytest.fixture(scope="module")
def carded(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_prior: Path, tiny_decoder: Path
) -> tuple[Path, Path]:
    """A dataset and its cache, made with a licence."""
    folder = tmp_path_factory.mktemp("carded")
    dataset = copy_old(pictures, folder / "fruit & foxes")
    done(encode_with(tiny_prior, tiny_decoder)(dataset, folder / "cache", "--license", "cc-by-4.0"))
    return dataset, folder / "cache"


@pytest.fixture
def mine(carded: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Both, to be changed."""
    return carded[0], shutil.copytree(carded[1], tmp_path / "cache")


def card(cache: Path) -> str:
    return (cache / "README.md").read_text("utf-8")


def test_it_says_what_the_cache_holds_and_what_that_reveals(carded: tuple[Path, Path], tiny_prior: Path) -> None:
    said = card(carded[1])
    assert "\n# fruit & foxes, encoded for Kandinsky 2.2\n" in said
    assert "Features of 10 pictures of `fruit & foxes` and of their captions" in said
    assert "Licence of the data: `cc-by-4.0`." in said
    assert "| `image` | 10 | " in said
    assert f"CLIPVisionModelWithProjection of {tiny_prior.name}, in fp32" in said
    assert "## It reveals the pictures" in said
    for what in ("Captions", "Latents", "Image embeddings", "sha256 of the picture files"):
        assert f"**{what}**" in said


def test_its_commands_name_the_checkpoint_that_the_cache_was_encoded_with(
    carded: tuple[Path, Path], tiny_prior: Path
) -> None:
    said = card(carded[1])
    assert f"\nkcache info CACHE --fits {tiny_prior.name}\n" in said
    assert f"--output-dir my-prior --pretrained-prior-model-name-or-path {tiny_prior.name}\n" in said
    assert f"\n`{tiny_prior.name}` is a copy of the checkpoint that it was encoded with.\n" in said


def test_no_folder_of_this_machine_is_in_it(carded: tuple[Path, Path], tiny_prior: Path) -> None:
    for folder in (carded[0].parent, carded[1].parent, tiny_prior.parent, Path.home()):
        assert str(folder) not in card(carded[1])


def test_the_hub_can_read_its_metadata(carded: tuple[Path, Path]) -> None:
    from huggingface_hub import DatasetCard

    data = DatasetCard(card(carded[1])).data
    assert (data.license, data.task_categories, data.tags) == (
        "cc-by-4.0",
        ["text-to-image"],
        ["kcache", "kandinsky-2-2"],
    )
    assert data.pretty_name == "fruit & foxes, encoded for Kandinsky 2.2"


def test_a_run_that_changes_nothing_does_not_write_it_and_one_that_does_brings_it_up_to_date(
    encode: Encode, mine: tuple[Path, Path], tmp_path: Path
) -> None:
    before = tree(mine[1]), stamps(mine[1])
    done(encode(mine[0], mine[1]))
    assert (tree(mine[1]), stamps(mine[1])) == before
    dataset = copy_old(mine[0], tmp_path / "fruit & foxes")
    (dataset / "grey.png").unlink()
    done(encode(dataset, mine[1], "--prune"), code=3)
    assert "Features of 9 pictures" in card(mine[1])
    assert "Set aside, and without features: 1." in card(mine[1])
    assert "cc-by-4.0" in card(mine[1])  # it need not be said again
    done(encode(dataset, mine[1], "--license", "mit"), code=3)
    assert card(mine[1]).startswith("---\nlicense: mit\npretty_name: ")
    assert "cc-by-4.0" not in card(mine[1])


def test_what_a_person_wrote_is_kept(mine: tuple[Path, Path]) -> None:
    cache = Cache(mine[1])
    written = card(mine[1]).replace("viewer: false\n", "viewer: false\nlanguage: en\n") + "\n## Mine\n\nTake care.\n"
    (mine[1] / "README.md").write_text(written, "utf-8")
    write_card(cache, Origin("another name"))
    again = card(mine[1])
    assert "\n# another name, encoded for Kandinsky 2.2\n" in again
    assert "language: en\n---" in again
    assert again.endswith(f"{END}\n\n## Mine\n\nTake care.\n")
    (mine[1] / "README.md").write_text("# All mine\n", "utf-8")
    write_card(cache, Origin("a third name"))
    assert card(mine[1]) == "# All mine\n"


def test_it_is_no_part_of_what_the_cache_promises(mine: tuple[Path, Path]) -> None:
    snapshot, held = Snapshot(Cache(mine[1]), ["text", "image"]).digest, features(Cache(mine[1]), "image").keys()
    (mine[1] / "README.md").unlink()
    assert not verify(Cache(mine[1]), deep=True).faults
    assert Snapshot(Cache(mine[1]), ["text", "image"]).digest == snapshot
    assert features(Cache(mine[1]), "image").keys() == held
    write_card(Cache(mine[1]), Origin())
    assert "# Pictures, encoded for Kandinsky 2.2" in card(mine[1])


def test_copies_take_name_and_licence_over(carded: tuple[Path, Path], tmp_path: Path) -> None:
    done(kcache("convert", carded[1], tmp_path / "h5", "--format", "h5"))
    assert read_origin(Cache(tmp_path / "h5")) == Origin("fruit & foxes", "cc-by-4.0")
    write_card(Cache(tmp_path / "h5"), Origin("more", "mit"))
    done(kcache("merge", carded[1], tmp_path / "h5", tmp_path / "both"))
    assert read_origin(Cache(tmp_path / "both")) == Origin("fruit & foxes and more", None)


def test_a_licence_that_the_hub_does_not_take_is_refused(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    said = refused(encode(pictures, tmp_path / "cache", "--license", "Ask me first"), code=2)
    assert said.startswith("--license 'Ask me first' is no identifier of a licence; give one as the hub lists them")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("user/dataset", "user/dataset"),
        ("/home/someone/photos", "photos"),
        ("photos/", "photos"),
        ("/data/tars/{00000..00099}.tar", "tars"),
        ("/data/tables/train.parquet", "train.parquet"),
    ],
)
def test_a_dataset_is_named_without_the_folders_that_it_lies_in(name: str, public: str) -> None:
    assert public_name(name) == public


def test_markup_in_a_name_does_not_get_into_the_card(tar_cache: Cache) -> None:
    for _ in range(2):  # what was written is read again
        write_card(tar_cache, Origin("a --> <script>`b`</script>\n[c](d)"))
        assert "# a -- script b /script c (d), encoded for Kandinsky 2.2\n" in card(tar_cache.root)
        assert card(tar_cache.root).count("-->") == 2
    assert read_origin(tar_cache).dataset == "a -- script b /script c (d)"


@pytest.mark.parametrize("text", ["", "---\nlicense: mit\n", "---\nlicense: mit\n---\n" + "x" * 5000, "\x00\xff"])
def test_a_card_that_is_none_is_left_as_it_is(tar_cache: Cache, text: str) -> None:
    (tar_cache.root / "README.md").write_text(text, "utf-8")
    write_card(tar_cache, Origin("name"))
    assert card(tar_cache.root) == text or not text
