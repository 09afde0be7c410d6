"""Entities named in questions: exactly, by words like their names, or not at all."""

from __future__ import annotations

import difflib
import random

import pytest

from graphkit.errors import UserError
from graphkit.tasks.entity_links import EntityIndex, reworded

NAMES = [
    "France",
    "Germany",
    "French",
    "Language",
    "Côte d'Ivoire",
    "Tom Hanks",
    "Who",
    "The Movie",
    "Austria",
    "Australia",
    "Georgia",
    "georgia",
    "1984",
    "Ivoire",
    "!!!",
]
INDEX = EntityIndex(NAMES, common={"language", "languages", "spoken"}, describe=lambda e: f"fact {e}")


def linked(question: str) -> list[str]:
    return [mention.name for mention in INDEX.mentions(question)]


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("Which languages are spoken in the neighbours of France?", ["France"]),
        ("languages spoken in france and germany", ["France", "Germany"]),
        ("who starred with tom hanks", ["Tom Hanks"]),
        ("what is the capital of cote d'ivoire", ["Côte d'Ivoire"]),
        ("France and Germany and FRANCE", ["France", "Germany"]),
        ("Is French a language?", ["French"]),
        ("who wrote 1984", ["1984"]),
        ("who directed [The Movie]", ["The Movie"]),
        ('who directed "the movie" with Tom Hanks', ["The Movie"]),
        ("what borders [who]", ["Who"]),
    ],
)
def test_names_are_found_whatever_their_capitals_accents_and_neighbours(
    question: str, names: list[str]
) -> None:
    assert linked(question) == names
    assert all(mention.exact for mention in INDEX.mentions(question))


@pytest.mark.parametrize(
    ("question", "text", "name"),
    [
        ("who borders Frnace?", "Frnace", "France"),
        ("what about germny", "germny", "Germany"),
        ("films with Tom Hnaks", "Tom Hnaks", "Tom Hanks"),
        ("the capital of the Cote d'Ivory", "Cote d'Ivory", "Côte d'Ivoire"),
    ],
)
def test_a_misspelt_name_is_found(question: str, text: str, name: str) -> None:
    (mention,) = INDEX.mentions(question)
    assert (mention.text, mention.name, mention.exact) == (text, name, False)


def test_spelling_decides_between_equal_names() -> None:
    assert INDEX.named("georgia").entity == 11
    assert INDEX.named("Georgia").entity == 10
    with pytest.raises(
        UserError, match=r"'GEORGIA' may be Georgia \(#10, fact 10\) or georgia \(#11, fact 11\)"
    ):
        INDEX.named("GEORGIA")
    assert INDEX.named("#11").name == "georgia"


def test_several_that_a_misspelt_name_may_mean_are_shown() -> None:
    index = EntityIndex(["Marta Silva", "Maria Silva", "Lisbon"])
    with pytest.raises(UserError, match=r"may be Maria Silva \(#1\) or Marta Silva \(#0\); name it with"):
        index.mentions("who is Marya Silva")


def test_part_of_a_name_comes_before_a_name_of_other_letters() -> None:
    index = EntityIndex(["Kongo", "DR Congo", "Congo Basin Forest", "Bosnian", "Bosnia and Herzegovina"])
    with pytest.raises(UserError, match=r"'Congo' may be Congo Basin Forest \(#2\) or DR Congo \(#1\); name"):
        index.mentions("what is the capital of Congo?")
    (mention,) = index.mentions("who borders Bosnia")
    assert (mention.text, mention.name, mention.exact) == ("Bosnia", "Bosnia and Herzegovina", False)
    (mention,) = index.mentions("who borders Bosnia and Hercegovina")
    assert mention.text == "Bosnia and Hercegovina"
    assert index.holding("bosn") == []


ALIASES = EntityIndex(
    ["United Kingdom", ".uk", "DR Congo", "Republic of the Congo", "Person 9", "Netherlands", ".st"],
    aliases=[("UK", 0), ("Britain", 0), ("Congo", 3), ("Holland", 5), ("Person 9", 5)],
)


@pytest.mark.parametrize(
    ("question", "name", "exact"),
    [
        ("capital of the UK", "United Kingdom", False),
        ("who uses .uk", ".uk", True),
        ("who uses .UK", ".uk", True),
        ("capital of britain", "United Kingdom", False),
        ("capital of Hollnd", "Netherlands", False),
        ("who is Person 9", "Person 9", True),  # its own name comes before another's
    ],
)
def test_another_name_stands_for_its_entity(question: str, name: str, exact: bool) -> None:
    (mention,) = ALIASES.mentions(question)
    assert (mention.name, mention.exact) == (name, exact)


@pytest.mark.parametrize(
    ("question", "hint"),
    [
        ("capital of uk", "names no entity"),  # a code is written in capitals
        ("capital of St Lucia", "names no entity"),  # .st has a dot
        ("who is Person 99", "names no entity"),  # another number is another name
        ("capital of Congo", r"may be DR Congo \(#2\) or Republic of the Congo \(#3\)"),
        ("how is stx", "names no entity"),
    ],
)
def test_short_names_and_numbers_are_not_guessed(question: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        ALIASES.mentions(question)


def test_a_name_without_letters_is_found_by_itself() -> None:
    assert INDEX.named("!!!").entity == 14


@pytest.mark.parametrize(
    ("question", "hint"),
    [
        ("", "the question is empty"),
        ("?!", "the question is empty"),
        (
            "who borders Mordor",
            "names no entity that the graph has: 'who borders Mordor'; name it with --entity",
        ),
        ("who is it", "names no entity that the graph has"),
        ("who borders [Mordor]", "there is no entity 'Mordor'"),
        ("who borders Franconia", "like it are France"),
    ],
)
def test_what_names_no_entity_is_refused(question: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint.replace("(", r"\(")):
        INDEX.mentions(question)


def test_the_closest_name_is_that_of_a_plain_search() -> None:
    draw = random.Random(0)
    names = sorted({"".join(draw.choices("abcde", k=draw.randint(4, 9))) for _ in range(300)})
    index = EntityIndex(names)
    for name in draw.sample(names, 40):
        at = draw.randrange(1, len(name))
        typed = name[:at] + draw.choice("xyz") + name[at:]  # one letter too many
        plain = max(difflib.SequenceMatcher(None, typed, other).ratio() for other in names)
        assert index.closest(typed)[0][1] == pytest.approx(plain)


def test_an_empty_graph_names_nothing() -> None:
    with pytest.raises(UserError, match="names no entity"):
        EntityIndex([]).mentions("who borders France")


@pytest.mark.parametrize(
    ("question", "plain", "masked"),
    [
        ("who borders Frnace?", "who borders Frnace?", "who borders NE?"),
        ("who directed [The Movie]", "who directed The Movie", "who directed NE"),
        ('who directed "the movie"', "who directed the movie", "who directed NE"),
        ("France: what does France border?", "France: what does France border?", "NE: what does NE border?"),
        ("Is French spoken in France", "Is French spoken in France", "Is NE spoken in NE"),
    ],
)
def test_models_read_a_mask_in_place_of_names(question: str, plain: str, masked: str) -> None:
    mentions = INDEX.mentions(question)
    assert reworded(question, mentions) == plain
    assert reworded(question, mentions, "NE") == masked


def test_a_name_that_was_given_is_masked_where_it_stands() -> None:
    assert reworded("who borders france", [INDEX.named("#0")], "NE") == "who borders NE"
    assert reworded("who borders it", [INDEX.named("#0")], "NE") == "who borders it"
