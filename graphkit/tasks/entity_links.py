"""Entities that a question names: found by name, exactly, else by the names most like its words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from graphkit.errors import UserError
from graphkit.text import words_of

__all__ = ["COMMON", "EntityIndex", "Mention", "reworded"]

COMMON = frozenset(
    words_of(
        "a about after all also am an and any are as at be been before being but by can could describe "
        "did do does during each every find for from get give given had has have he her him his how i "
        "if in into is it its list many me most much my name named no not of on one only or other our "
        "out over say s she show some such tell than that the their them then there these they this "
        "those through to under up us was we well were what what's whats when where which who whom "
        "whose why will with within would you your"
    )
)
"""Words that alone name nothing and ask for nothing."""
_LIKE = 0.75  # how like a name must be to be taken for it
_LEVEL = 0.04  # names that much less like it are like it as well
_PART = 0.82  # how like a name is the part of it that some words spell: less than with a slip in ten letters
_LONGEST = 6  # words of a misspelt name
_SHORT = 4  # letters: names of fewer, such as .fr and USA, must be written with their signs and capitals
_SHOWN = 5


class Mention(NamedTuple):
    """An entity that a question names.

    Attributes:
        text: As the question has it.
        entity: Its id.
        name: Its own name.
        exact: Whether the text is the name, but for capitals, accents and signs; not another name of it.
    """

    text: str
    entity: int
    name: str
    exact: bool


class _Word(NamedTuple):
    key: str
    start: int
    end: int
    big: bool  # has a capital or a digit


class EntityIndex:
    """Names of entities, made ready to be looked up.

    Args:
        names: Of each entity, by id.
        common: Words that name no entity by themselves: those of the relations.
        describe: Says a few words on an entity, to tell it from others of its name.
        aliases: Other names, with the entity of each; a name of an entity's own comes before.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        common: Iterable[str] = (),
        describe: Callable[[int], str] = lambda entity: "",
        aliases: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._names, self._describe = names, describe
        self._common = COMMON | set(common)
        self._ids: dict[str, list[int]] = {}
        for entity, name in enumerate(names):
            self._ids.setdefault(_key(name), []).append(entity)
        for alias, entity in aliases:
            found = self._ids.get(_key(alias), [])
            # "Congo" isn't one country's other name while another has the word in its name
            others = [e for name in self.holding(_key(alias)) for e in self._ids[name] if e != entity]
            if not others and all(_key(names[e]) != _key(alias) or _signed(names[e]) for e in found):
                self._ids[_key(alias)] = [*found, entity] if entity not in found else found
        self.__dict__.pop("_having", None)  # what it has is without the aliases
        self._spelt_so: dict[str, list[int]] = {}
        self._codes: dict[str, set[str]] = {}
        for text, entity in (*((name, number) for number, name in enumerate(names)), *aliases):
            self._spelt_so.setdefault(text.strip(), []).append(entity)
            if len(_key(text)) < _SHORT:
                self._codes.setdefault(_key(text), set()).add(text.strip())
        self._longest = max((key.count(" ") + 1 for key in self._ids), default=1)

    def named(self, name: str) -> Mention:
        """Returns the entity of a name, or of ``#123``, its id.

        Raises:
            UserError: No such entity, or several.
        """
        if re.fullmatch(r"#\d+", name.strip()):
            entity = int(name.strip()[1:])
            if entity >= len(self._names):
                raise UserError(f"there is no entity {name.strip()}; ids go up to #{len(self._names) - 1}")
            return Mention(name, entity, self._names[entity], True)
        found = self._ids.get(_key(name)) if name.strip() else None
        if found:
            return self._choose(name, found, exact=True)
        return self._alike([name], f"there is no entity '{name}'")

    def mentions(self, question: str) -> list[Mention]:
        """Returns the entities that a question names, each once.

        Names in brackets or quotation marks are taken if there are any. Otherwise the longest names that its
        words spell: those written with a capital if there are any, and none that is a common word. Where
        there is no such name, the one that some of its words are a part of or most like.

        Raises:
            UserError: An empty question, no entity, or several that a name may mean.
        """
        if not words_of(question):
            raise UserError("the question is empty; ask in words and name an entity that the graph has")
        marked = re.findall(r"\[([^\[\]]+)\]|\"([^\"]+)\"|“([^”]+)”", question)
        if marked:
            return _once(self.named("".join(parts)) for parts in marked)
        words = _words(question)
        spans = self._spelt(question, words)
        if spans:
            texts = [self._name_at(question, words[i:j]) or "" for i, j in spans]
            return _once(self._choose(text, self._ids[_key(text)], exact=True) for text in texts)
        tried = [question[words[i].start : words[j - 1].end] for i, j in self._candidates(words)]
        return [self._alike(tried, f"the question names no entity that the graph has: '{question.strip()}'")]

    # Exact

    def _spelt(self, question: str, words: Sequence[_Word]) -> list[tuple[int, int]]:
        """Returns the spans of words that spell names, the longest ones, best kind only."""
        found, at = [], 0
        while at < len(words):
            reach = range(min(len(words), at + self._longest), at, -1)
            end = next((j for j in reach if self._name_at(question, words[at:j])), at)
            if end > at and not all(w.key in COMMON for w in words[at:end]):
                found.append((at, end))
                at = end
            else:
                at += 1
        big = [(i, j) for i, j in found if self._is_big(words, i, j)]
        if big:
            return big
        found = [(i, j) for i, j in found if not all(w.key in self._common for w in words[i:j])]
        most = max((j - i for i, j in found), default=0)
        return [(i, j) for i, j in found if j - i == most]

    def _name_at(self, question: str, words: Sequence[_Word]) -> str | None:
        """Returns some words of the question if they are a name.

        A short one must have its signs beside it, and capitals if it is written in them.
        """
        key, start, end = " ".join(word.key for word in words), words[0].start, words[-1].end
        if key not in self._codes:
            return question[start:end] if key in self._ids else None
        for text in sorted(self._codes[key]):
            lead = len(text) - len(text.lstrip(_SIGNS))
            there = question[max(0, start - lead) : start - lead + len(text)]
            if there == text or (not text.isupper() and there.casefold() == text.casefold()):
                return text
        return None

    def _is_big(self, words: Sequence[_Word], start: int, end: int) -> bool:
        """Whether words are written as a name: a common one that begins the question isn't."""
        own = words[start:end]
        return any(w.big for w in (own[1:] if start == 0 and own[0].key in self._common else own))

    def _choose(self, text: str, entities: Sequence[int], *, exact: bool) -> Mention:
        """Returns the entity of a text, the one that is spelt just so if there are several."""
        if len(entities) > 1:
            same = [entity for entity in entities if entity in self._spelt_so.get(text.strip(), ())]
            if len(same) != 1:
                raise UserError(f"'{text.strip()}' may be {self._listed(same or entities)}; {_ADVICE}")
            entities = same
        name = self._names[entities[0]]
        return Mention(text, entities[0], name, exact and _key(name) == _key(text))

    def _listed(self, entities: Sequence[int]) -> str:
        shown = []
        for entity in entities[:_SHOWN]:
            words = self._describe(entity)
            shown.append(f"{self._names[entity]} (#{entity}{', ' if words else ''}{words})")
        more = f" or {len(entities) - _SHOWN} others" if len(entities) > _SHOWN else ""
        return " or ".join(shown) + more

    # Alike

    def _candidates(self, words: Sequence[_Word]) -> list[tuple[int, int]]:
        """Returns spans that may be a misspelt name, with its numbers: with capitals if there are any."""
        number = [False, *(word.key.isdigit() for word in words), False]
        made = [
            (i, j)
            for i in range(len(words))
            for j in range(i + 1, min(len(words), i + _LONGEST) + 1)
            if words[i].key not in self._common and words[j - 1].key not in COMMON
            if not number[i] and not number[j + 1]
        ]
        big = [(i, j) for i, j in made if self._is_big(words, i, j)]
        return big or made

    def _alike(self, texts: Sequence[str], complaint: str) -> Mention:
        """Returns the entity whose name some text is most like.

        Raises:
            UserError: None is like it, or several are equally.
        """
        found = sorted(
            ((ratio, text, key) for text in texts for key, ratio in self._near(_key(text))),
            key=lambda entry: (-entry[0], -len(entry[1]), entry[2]),
        )
        if not found or found[0][0] < _LIKE:
            names = list(
                dict.fromkeys(self._names[self._ids[key][0]] for ratio, _, key in found if ratio > 0.6)
            )
            hint = f"; like it are {', '.join(names[:_SHOWN])}" if names else ""
            raise UserError(f"{complaint}{hint}; {_ADVICE}")
        best, text, key = found[0]
        others = [k for ratio, t, k in found if t == text and ratio > best - _LEVEL]
        entities = list(dict.fromkeys(entity for k in others for entity in self._ids[k]))
        if len(entities) > 1:
            raise UserError(f"'{text.strip()}' may be {self._listed(entities)}; {_ADVICE}")
        return Mention(text, self._ids[key][0], self._names[self._ids[key][0]], False)

    def _near(self, key: str) -> list[tuple[str, float]]:
        """Returns the names that words are a part of; if there are none, those most like, numbers equal."""
        held = [(name, _PART) for name in self.holding(key)]
        if held or len(key) < _SHORT:
            return held
        numbers = re.findall(r"\d+", key)
        return [(k, ratio) for k, ratio in self.closest(key) if re.findall(r"\d+", k) == numbers]

    def holding(self, key: str) -> list[str]:
        """Returns the names, as keys, that have some words side by side among others."""
        own = key.split()
        least = min((self._having.get(word, []) for word in own), key=len, default=[])
        return [name for name in least if name != key and f" {key} " in f" {name} "]

    @cached_property
    def _having(self) -> dict[str, list[str]]:
        """The names, as keys, that have a word."""
        made: dict[str, list[str]] = {}
        for name in self._ids:
            for word in dict.fromkeys(name.split()):
                made.setdefault(word, []).append(name)
        return made

    def closest(self, key: str, count: int = 8) -> list[tuple[str, float]]:
        """Returns the names most like some words, as keys, with a likeness up to 1.

        The names that share most of their runs of three letters are compared letter by letter.
        """
        codes, owners, sizes, keys = self._grams
        own, _ = _runs([key])
        if not own.size or not codes.size:
            return []
        own = np.unique(own)
        low, high = np.searchsorted(codes, own, "left"), np.searchsorted(codes, own, "right")
        hits = np.concatenate([owners[a:b] for a, b in zip(low, high, strict=True)])
        shared = np.bincount(hits, minlength=len(keys))
        dice = 2 * shared / (sizes + own.size)
        some = np.flatnonzero(shared)
        near = some[np.argsort(-dice[some], kind="stable")][: 4 * count]
        ratios = [(keys[k], difflib.SequenceMatcher(None, key, keys[k]).ratio()) for k in near]
        return sorted(ratios, key=lambda entry: (-entry[1], entry[0]))[:count]

    @cached_property
    def _grams(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], list[str]]:
        """Runs of three letters, ascending, the key that each is from, how many a key has, and the keys."""
        keys = list(self._ids)
        codes, owners = _runs(keys)
        order = np.lexsort((owners, codes))
        codes, owners = codes[order], owners[order]
        if codes.size:
            first = np.r_[True, (np.diff(codes) != 0) | (np.diff(owners) != 0)]
            codes, owners = codes[first], owners[first]
        return codes, owners, np.bincount(owners, minlength=len(keys)), keys


def reworded(question: str, mentions: Sequence[Mention], mask: str | None = None) -> str:
    """Returns a question as models read it: without the signs that mark names, ``mask`` in place of these."""
    texts = {part for mention in mentions for part in (mention.text.strip(), mention.name)}
    ordered = sorted(texts - {""}, key=lambda text: (-len(text), text))
    for text in ordered:  # all signs first: a mask put in for one spelling would keep those of another
        own = re.escape(text)
        question = re.sub(rf'\[\s*({own})\s*\]|"({own})"|“({own})”', r"\1\2\3", question)
    if mask is not None:
        put = mask.replace("\\", r"\\")
        for text in ordered:
            question = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", put, question, flags=re.IGNORECASE)
    return question


def _signed(name: str) -> bool:
    """Whether a short name has a sign that tells it from another of its letters: ``.uk``."""
    return len(_key(name)) < _SHORT and name.strip()[:1] in _SIGNS


_SIGNS = "".join(chr(code) for code in range(33, 127) if not chr(code).isalnum())
_ADVICE = "name it with --entity NAME or --entity '#ID' (in Python entities=[NAME])"


def _key(name: str) -> str:
    """Returns what a name is looked up by: its words, or all of it if it has none."""
    return " ".join(words_of(name)) or name.strip().casefold()


def _words(question: str) -> list[_Word]:
    """Returns the words of a question, with their places."""
    made = []
    for match in re.finditer(r"[^\W_]+", question):
        key = "".join(words_of(match[0]))
        if key:
            big = any(c.isupper() or c.isdigit() for c in match[0])
            made.append(_Word(key, match.start(), match.end(), big))
    return made


def _once(mentions: Iterable[Mention]) -> list[Mention]:
    return list({mention.entity: mention for mention in mentions}.values())


def _runs(keys: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the runs of three letters of framed keys as numbers, and whose each is."""
    framed = [f" {key} " for key in keys]
    letters = np.frombuffer("".join(framed).encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
    owner = np.repeat(np.arange(len(keys)), [len(key) for key in framed])
    if letters.size < 3:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    codes = letters[:-2] | letters[1:-1] << 21 | letters[2:] << 42
    whole = owner[:-2] == owner[2:]
    return codes[whole], owner[:-2][whole]
