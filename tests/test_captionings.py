"""Captionings: templates around captions, columns of their own, captions that are equal or too long."""

import re
from typing import Any

import pytest
import torch

from kcache.checkpoints import Checkpoint
from kcache.encoding.columns import make_encoders
from kcache.encoding.config import EncodeConfig
from kcache.encoding.encoders import Features, Models, Precision
from kcache.encoding.templates import CaptionTemplate
from kcache.encoding.text_column import TextColumn
from kcache.shards import UsageError
from kcache.text_features import begin_captions


@pytest.fixture
def text(tiny_prior: Any) -> TextColumn:
    """Captions as they are."""
    return text_column(tiny_prior)


def text_column(prior: Any, template: str | None = None) -> TextColumn:
    precision = Precision("fp32", "fp32", torch.device("cpu"))
    parsed = CaptionTemplate.parse(template) if template else None
    return TextColumn("text-1" if template else "text", Checkpoint(str(prior)), precision, Models(), parsed)


def as_bytes(features: Features) -> dict[str, bytes]:
    return {field: array.tobytes() for field, array in features.items()}


def test_captions_that_are_equal_are_encoded_once(text: TextColumn, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = [["a fox"], ["a hen", "a fox"], ["a hen"], ["a cow", "a cow"], ["a fox"]]
    expected = [as_bytes(next(text.features([one], 1))()) for one in captions[:1] + captions[2:3]]
    encoded: list[str] = []

    def counted(model: Any, tokenizer: Any, batch: Any, *more: Any) -> Any:
        encoded.extend(batch)
        return begin_captions(model, tokenizer, batch, *more)

    monkeypatch.setattr("kcache.encoding.text_column.begin_captions", counted)
    found = [wait() for wait in text.features(captions, 1)]
    assert encoded == ["a fox", "a hen", "a cow"]
    assert [one["lengths"].tolist() for one in found] == [[4], [4, 4], [4], [4, 4], [4]]
    assert [as_bytes(found[i]) for i in (0, 2, 4)] == [expected[0], expected[1], expected[0]]
    for field in ("text_embeds", "hidden_states"):
        both = found[1][field].tobytes()
        assert both == found[2][field].tobytes() + found[0][field].tobytes()


def test_captions_that_are_cut_are_told_with_their_lengths(text: TextColumn) -> None:
    long = "fox " * 76
    assert text.cut_captions(["a fox", long, "fox " * 75, long]) == [(long, 78), (long, 78)]
    assert text.token_counts(["a fox", long]) == [4, 77]
    assert text.cut_captions([]) == text.token_counts([]) == []


def test_the_words_of_a_template_count(tiny_prior: Any) -> None:
    templated = text_column(tiny_prior, "a photo of {text}")
    assert templated.cut_captions(["fox " * 72, "fox " * 73]) == [("fox " * 73, 78)]
    assert templated.token_counts(["a fox"]) == [7]


@pytest.mark.parametrize(
    ("template", "caption", "column"),
    [
        ("a photo of sks {text}", "a photo of sks fox", "text-a-photo-of-sks"),
        ("{text}, Oil Painting", "fox, Oil Painting", "text-oil-painting"),
        ("{{sks}} {text}!", "{sks} fox!", "text-sks"),
    ],
)
def test_a_template_puts_words_around_a_caption_and_names_its_column(template: str, caption: str, column: str) -> None:
    parsed = CaptionTemplate.parse(template)
    assert (parsed("fox"), parsed.column) == (caption, column)


@pytest.mark.parametrize(("words", "name"), [("《", "text-"), ("a long, long template " * 3, "text-a-long-")])
def test_names_that_leave_words_out_end_with_a_digest(words: str, name: str) -> None:
    one, other = (CaptionTemplate.parse(f"{words}{{text}}{end}") for end in ("", "?"))
    assert re.fullmatch(rf"{name}[a-z-]*[0-9a-f]{{8}}", one.column)
    assert one.column != other.column
    assert len(one.column) <= 40


def test_a_caption_with_braces_is_not_read_as_a_template() -> None:
    assert CaptionTemplate.parse("sks {text}")("{0} {text} }{") == "sks {0} {text} }{"


@pytest.mark.parametrize(
    "template",
    ["a photo", "{text} {text}", "{text} {x}", "{}", "{0}", "{text!r}", "{text:>9}", "{text.x}", "{text", "}"],
)
def test_a_template_without_one_text_is_refused_with_an_example(template: str) -> None:
    with pytest.raises(UsageError, match=r"as in 'a photo of sks \{text\}'"):
        CaptionTemplate.parse(template)


@pytest.mark.parametrize("name", ["text", "sks", "text-", "text-Sks", "image", "text-" + "x" * 60])
def test_a_column_of_templated_captions_has_a_name_of_its_own(tiny_prior: Any, name: str) -> None:
    config = EncodeConfig(dataset="", cache="", text_column=name, caption_template="sks {text}", columns=("text",))
    with pytest.raises(UsageError, match=f"--text-column {name} cannot name a column of templated captions"):
        make_encoders(config, None)


def test_a_new_text_column_needs_a_template(tiny_prior: Any) -> None:
    config = EncodeConfig(
        dataset="",
        cache="",
        text_column="text-sks",
        columns=("text",),
        device="cpu",
        pretrained_prior_model_name_or_path=str(tiny_prior),
    )
    with pytest.raises(UsageError, match="say what it holds with --text-column text-sks --caption-template 'a photo"):
        make_encoders(config, None)


def test_two_templates_that_would_share_a_name_are_told_apart(tiny_prior: Any, encoded: Any) -> None:
    cache = encoded(columns=("text",), caption_template="oil painting: {text}")
    config = EncodeConfig(dataset="", cache="", device="cpu", caption_template="{text}, oil painting")
    with pytest.raises(UsageError, match=r"has a column 'text-oil-painting' with the template 'oil painting: "):
        make_encoders(config, cache)
