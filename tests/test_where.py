"""``--where``: what it takes, what null means in it, and what it answers to what it does not take."""

import pytest

from kcache.shards.errors import KcacheError, UsageError
from kcache.where import Where

ROW = {
    "width": 640,
    "height": 480,
    "lang": "en",
    "text": "a black cat",
    "tags": ["pet", "cat"],
    "nsfw": None,
    "ok": True,
}


@pytest.mark.parametrize(
    "expression",
    [
        'width >= 512 and lang == "en" and "cat" in text',
        "512 <= width < 1024",
        "width / height > 1.3 and width % 64 == 0",
        "width * height - 1 == 307199 and width + height == 1120",
        'lang in ("en", "de") and lang not in ["fr"]',
        '"cat" in tags and "dog" not in tags',
        "not (width < height) or False",
        "nsfw is None and lang is not None",
        "ok and -width < 0",
        "  (width\n >= 512)".replace("\n", ""),
    ],
)
def test_what_holds_for_the_row_keeps_it_and_its_opposite_does_not(expression: str) -> None:
    assert Where(expression).keeps(ROW, "row 1")
    assert not Where(f"not ({expression.strip()})").keeps(ROW, "row 1")


@pytest.mark.parametrize(
    "expression",
    [
        "nsfw < 0.5",
        "nsfw >= 0",
        "missing > 1",
        '"x" in nsfw',
        "nsfw in text",
        "width / nsfw > 0",
        "-nsfw < 5",
        "1 < nsfw < 3",
        "nsfw",
        "nsfw == 0",
    ],
)
def test_null_and_missing_fields_are_less_and_more_than_nothing(expression: str) -> None:
    assert not Where(expression).keeps(ROW, "row 1")


def test_null_is_unequal_to_every_value_and_in_a_list_that_has_it() -> None:
    assert Where('nsfw != 0 and nsfw not in (0, 1) and nsfw in (0, None) and "x" not in nsfw').keeps(ROW, "row 1")


def test_a_name_with_a_dash_or_space_is_put_in_backticks_and_a_string_may_hold_them() -> None:
    where = Where("`aesthetic-score` > 5 and `a b` == 'a `quoted` word'")
    assert where.names == {"aesthetic-score", "a b"}
    assert where.keeps({"aesthetic-score": 6, "a b": "a `quoted` word"}, "row 1")


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "is not understood"),
        ("width >", "is not understood (invalid syntax)"),
        ("width = 5", "is not understood"),
        ("len(text) > 5", "'len(text)' is not among what it takes"),
        ("text.upper() == 'A'", "'text.upper()' is not among what it takes"),
        ("__import__('os').system('ls')", "is not among what it takes"),
        ("tags[0] == 'pet'", "'tags[0]' is not among what it takes"),
        ("2 ** 9 ** 9", "'2 ** 9 ** 9' is not among what it takes"),
        ("(lambda: 1)()", "is not among what it takes"),
        ("[x for x in tags]", "is not among what it takes"),
        ("f'{text}' == 'a'", "is not among what it takes"),
        ("`a b`() == 1", "'`a b`()' is not among what it takes"),
        ("b'a' == text", "is not among what it takes"),
        ("width is 5", "'is' takes None only; write == for other values"),
        ("not " * 5000 + "ok", "is not understood"),
        ("(" * 5000 + "ok" + ")" * 5000, "is not understood"),
    ],
)
def test_what_is_no_condition_is_refused_when_it_is_read(expression: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        Where(expression)
    assert said in str(error.value)
    assert "it takes names of columns, numbers, text, ==" in str(error.value)


def test_an_unknown_name_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(UsageError) as error:
        Where("widht > 5").check(["width", "height"], "dataset emoji")
    said = "--where names 'widht', which dataset emoji does not have (it has: height, width); did you mean 'width'?"
    assert str(error.value) == said
    Where("width > 5").check(["width", "height"], "dataset emoji")


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("lang > 5", "(lang = 'en'): '>' not supported between instances of 'str' and 'int'"),
        ("5 in lang", "(lang = 'en'): 'in <string>' requires string"),
        ("text % 5 == 0", "(text = 'a black cat'): '%' takes numbers, not str"),
        ("lang * width == 0", "(lang = 'en', width = 640): '*' takes numbers, not str"),
        ("width / (height - 480) > 1", "(height = 480, width = 640): division by zero"),
        ("1 in width", "(width = 640): argument of type 'int' is not"),
    ],
)
def test_values_that_do_not_compare_are_named_with_their_row(expression: str, said: str) -> None:
    with pytest.raises(KcacheError) as error:
        Where(expression).keeps(ROW, "a.csv:7")
    assert str(error.value).startswith(f"--where '{expression}' has no answer for a.csv:7 {said}")
