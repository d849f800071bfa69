"""`kcache preview`: neighbours, duplicates and outliers with known answers, what the page holds, and refusals."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import done, kcache, refused
from preview_cache import EVIL, make_preview_cache

from kcache.preview import PreviewConfig, preview
from kcache.preview_near import almost_equal, groups, neighbours, outliers
from kcache.shards import Cache, KcacheError

CPU = torch.device("cpu")


def data_of(page: Path) -> dict[str, Any]:
    """What the page's script is given."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    return dict(json.loads(found))


def written(cache: Cache, page: Path, inside: int = 4000, **options: Any) -> dict[str, Any]:
    preview(PreviewConfig(cache=str(cache.root), output=str(page), device="cpu", **options), inside)
    return data_of(page)


# --- neighbours, duplicates, outliers


def test_neighbours_on_a_circle_are_those_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kcache.preview_near._ROWS", 3)
    monkeypatch.setattr("kcache.preview_near._COLUMNS", 4)
    angles = torch.tensor([0.0, 1, 3, 7, 15, 31]).deg2rad()
    circle = torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, 7)[:, None]  # lengths change nothing
    index, similarity = neighbours(circle, CPU, 2, shown=False)
    assert index.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1], [3, 2], [4, 3]]
    assert similarity[0] == pytest.approx(np.cos(np.deg2rad([1, 3])), abs=1e-6)


def test_blocks_find_what_one_whole_product_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    embeds = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).half()
    whole = neighbours(embeds, CPU, 5, shown=False)
    monkeypatch.setattr("kcache.preview_near._ROWS", 7)
    monkeypatch.setattr("kcache.preview_near._COLUMNS", 11)
    blocks = neighbours(embeds, CPU, 5, shown=False)
    assert np.array_equal(whole[0], blocks[0])
    assert np.allclose(whole[1], blocks[1], atol=1e-6)


def test_few_embeddings_have_few_neighbours_and_a_broken_one_is_similar_to_nothing() -> None:
    assert neighbours(torch.ones(1, 4), CPU, shown=False)[0].shape == (1, 0)
    broken = torch.tensor([[1.0, 0], [1, 0], [torch.nan, 1], [0, 0]])
    index, similarity = neighbours(broken, CPU, shown=False)
    assert index.shape == (4, 3)
    assert index[0, 0] == 1
    assert similarity[3].tolist() == [0, 0, 0]


def test_what_pairs_connect_is_one_group() -> None:
    assert groups([(5, 2), (7, 5), (1, 9)]) == [[1, 9], [2, 5, 7]]
    index, similarity = np.array([[1], [2], [1], [0]]), np.array([[0.99], [0.995], [0.995], [0.5]], np.float32)
    assert almost_equal(index, similarity, 0.985) == [[0, 1, 2]]


def test_norms_out_of_line_are_found_and_equal_ones_are_not() -> None:
    assert outliers(np.array([10, 10.2, 9.9, 10.1, 30, 1, np.nan], np.float32)) == [4, 5, 6]
    assert outliers(np.array([10, 10, 10, 10.001], np.float32)) == []
    assert outliers(np.array([], np.float32)) == []


# --- what the page holds


def test_every_sample_has_its_picture_captions_and_neighbours(encoded: Callable[..., Cache], tmp_path: Path) -> None:
    data = written(encoded(), tmp_path / "page.html")
    assert [row["at"] for row in data["rows"]] == [[0, i] for i in range(10)]
    assert all(len(row["near"]) == 8 and row["captions"] and row["size"] for row in data["rows"])
    assert data["sheets"][0].startswith("data:image/webp;base64,")
    assert not (tmp_path / "page-files").exists()


def test_duplicates_outliers_and_what_was_set_aside_are_marked(tmp_path: Path) -> None:
    rows = written(make_preview_cache(tmp_path / "cache"), tmp_path / "page.html")["rows"]
    assert [i for i, row in enumerate(rows) if "same" in row] == [1, 2]
    assert {1, 2} <= {i for i, row in enumerate(rows) if "almost" in row}
    assert [i for i, row in enumerate(rows) if "outlier" in row] == [3]
    assert {i: row["aside"] for i, row in enumerate(rows) if "aside" in row} == {4: "the file is cut off"}
    assert "near" not in rows[4]
    assert "no latents" in (tmp_path / "page.html").read_text("utf-8")


def test_a_hostile_caption_is_nowhere_markup(tmp_path: Path) -> None:
    cache = make_preview_cache(tmp_path / "cache")
    assert written(cache, tmp_path / "page.html")["rows"][0]["captions"] == [EVIL]
    written(cache, tmp_path / "paged.html", inside=3)
    files = [tmp_path / "page.html", *(tmp_path / "paged-files").iterdir()]
    assert all(EVIL not in file.read_text("utf-8") for file in files)
    assert files[0].read_text("utf-8").count("<script") == 2


def test_many_samples_lie_in_a_folder_that_the_next_page_clears(encoded: Callable[..., Cache], tmp_path: Path) -> None:
    page, folder = tmp_path / "page.html", tmp_path / "page-files"
    data = written(encoded(), page, inside=3)
    names = {path.name for path in folder.iterdir()}
    assert {Path(name).name for name in (*data["parts"], *data["sheets"])} == names
    assert data["rows"] == []
    written(encoded(), page, inside=3, picture_size=16)
    assert len(list(folder.iterdir())) == len(names)
    assert not names & {path.name for path in folder.glob("sheet*")}
    written(encoded(), page)
    assert not folder.exists()


def test_some_rows_are_the_same_ones_each_time(encoded: Callable[..., Cache], tmp_path: Path) -> None:
    ids = [[row["id"] for row in written(encoded(), tmp_path / "page.html", rows=4)["rows"]] for _ in range(2)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 4


# --- the command


def test_the_command_says_what_it_wrote_and_what_to_do(encoded: Callable[..., Cache], tmp_path: Path) -> None:
    said = done(kcache("preview", encoded().root, "-o", tmp_path / "p.html", "--no-pictures", "--device=cpu")).stdout
    assert "(10 samples, 0 pictures" in said
    assert said.endswith(f"Open {tmp_path / 'p.html'} in a browser.\n")


def test_a_file_or_folder_of_somebody_else_is_not_written_over(tmp_path: Path) -> None:
    cache = make_preview_cache(tmp_path / "cache")
    (tmp_path / "mine.html").write_text("mine")
    assert "did not write" in refused(kcache("preview", cache.root, "-o", tmp_path / "mine.html"))
    assert (tmp_path / "mine.html").read_text() == "mine"
    (tmp_path / "page-files").mkdir()
    (tmp_path / "page-files" / "thesis.txt").write_text("mine")
    assert "page-files holds what" in refused(kcache("preview", cache.root, "-o", tmp_path / "page.html"))
    assert "cannot be a page" in refused(kcache("preview", cache.root, "-o", tmp_path))


def test_another_decoder_than_that_of_the_cache_is_refused(
    encoded: Callable[..., Cache], tiny_decoder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = next((tiny_decoder / "movq").glob("*.safetensors"))
    other = tmp_path / "other" / "movq"
    other.mkdir(parents=True)
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, other / weights.name)
    (other / "config.json").write_bytes((tiny_decoder / "movq" / "config.json").read_bytes())
    config = PreviewConfig(
        str(encoded().root), str(tmp_path / "p.html"), pretrained_decoder_model_name_or_path=str(other.parent)
    )
    with pytest.raises(KcacheError, match=r"another movq .* --no-pictures"):
        preview(config)
    assert not (tmp_path / "p.html").exists()
