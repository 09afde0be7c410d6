"""Texts as states of their tokens: hashed words, word vectors, or a language model by name.

A :class:`TextEncoder` turns texts into :class:`TokenStates`; :func:`encoded` does that for many texts, once
for each different one, and keeps the states of a language model on disk, by encoder and content. Every
encoder is frozen and has no dropout, and a text's states don't depend on the texts beside it.

=============================  ==========================================================================
``hash``, ``hash:64``          words hashed to 256 (or 64) numbers; needs nothing, and knows no meaning
``words:FILE.npy``             word vectors ``[V, E]`` with a vocabulary ``FILE.txt`` or ``vocab.txt``
``sentence:all-MiniLM-L6-v2``  a sentence-transformers model, or the folder of one
=============================  ==========================================================================
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graphkit.data import Processed, cached
from graphkit.errors import UserError
from graphkit.files import sha256
from graphkit.graphs import ragged_index

__all__ = [
    "HashEncoder",
    "TextEncoder",
    "TextStates",
    "TokenStates",
    "WordEncoder",
    "WordVectors",
    "encoded",
    "make_encoder",
    "relation_text",
    "reversed_text",
    "words_of",
]

_CHUNK = 8192  # texts of a language model in one file of the cache


class TokenStates(NamedTuple):
    """Texts, padded to the longest of them.

    Attributes:
        hidden: ``[n, L, E]`` float32, zeros where there is no token.
        mask: ``[n, L]`` bool, where there is one; every text has one at least.
    """

    hidden: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> TokenStates:
        return TokenStates(self.hidden.to(device), self.mask.to(device))


class TextEncoder(Protocol):
    """What turns texts into states.

    Attributes:
        name: What :func:`make_encoder` makes it from.
        width: E.
        identity: Says all that its states depend on; part of the cache's keys.
    """

    name: str
    width: int

    @property
    def identity(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> TokenStates:
        """Returns the states of n texts."""
        ...


def make_encoder(name: str, device: torch.device | str = "cpu") -> TextEncoder:
    """Returns the encoder that a name stands for; see the module's table.

    Args:
        name: ``hash``, ``hash:WIDTH``, ``words:FILE.npy``, ``sentence:MODEL`` or ``sentence:FOLDER``.
        device: Where a language model computes; states are returned on the CPU.

    Raises:
        UserError: No such encoder, or what it needs isn't there.
    """
    kind, _, rest = name.partition(":")
    if kind == "hash":
        if rest and not (rest.isdecimal() and int(rest) > 0):
            raise UserError(f"text encoder '{name}': the width must be a positive number, hash:256")
        return HashEncoder(int(rest) if rest else 256)
    if kind == "words" and rest:
        return WordVectors(rest)
    if kind == "sentence" and rest:
        from graphkit.sentences import SentenceEncoder

        return SentenceEncoder(rest, device)
    raise UserError(
        f"unknown text encoder '{name}'; it is hash, hash:WIDTH, words:FILE.npy, or sentence:MODEL such as "
        "sentence:all-MiniLM-L6-v2"
    )


# --- Words ------------------------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    """Returns the words of a text: letters and digits, in lower case, without accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return re.findall(r"[^\W_]+", "".join(c for c in plain if not unicodedata.combining(c)))


def relation_text(name: str) -> str:
    """Returns the words of a relation's name: ``people.person.place_of_birth`` is ``person place of birth``.

    Of names with dots (Freebase's) the last two fields count; underscores, dashes and capitals part words.
    """
    short = re.split(r"[/#]", name.strip("/#"))[-1] or name
    fields = short.split(".")[-2:]
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", " ".join(fields))
    return " ".join(re.sub(r"[_\-\s]+", " ", spaced).split()) or name


def reversed_text(text: str) -> str:
    """Returns the words in reverse order, by which ReaRev names a relation's inverse."""
    return " ".join(reversed(text.split()))


class WordEncoder(ABC):
    """An encoder whose state of a word depends on the word alone."""

    name: str
    width: int

    @property
    @abstractmethod
    def identity(self) -> str:
        """Says all that the states depend on."""

    @abstractmethod
    def words(self, text: str) -> list[str]:
        """Returns the tokens of a text."""

    @abstractmethod
    def vectors(self, words: Sequence[str]) -> Tensor:
        """Returns the vectors of some words ``[U, E]`` float32, NaN throughout for an unknown word."""

    def encode(self, texts: Sequence[str]) -> TokenStates:
        """Returns the states of n texts; an unknown word is a zero that is masked."""
        return TextStates(self.chunks(texts), self.width).batch(torch.arange(len(texts)))

    def chunks(self, texts: Sequence[str]) -> list[_Chunk]:
        """Returns the states of n texts, a table of words and what each text takes from it."""
        number: dict[str, int] = {}
        split = [self.words(text) for text in texts]
        token = [number.setdefault(word, len(number)) for words in split for word in words]
        ptr = torch.zeros(len(split) + 1, dtype=torch.int64)
        torch.cumsum(torch.tensor([len(words) for words in split], dtype=torch.int64), 0, out=ptr[1:])
        table = self.vectors(list(number)) if number else torch.zeros(0, self.width)
        return [_Chunk(table, torch.tensor(token, dtype=torch.int32), ptr)]


class HashEncoder(WordEncoder):
    """Words as sums of signs that hashes of the word and of its parts give; a first token is their mean.

    Words with a stem in common (``language``, ``languages``) are alike because their parts of four letters
    are; nothing else is known of meaning.

    Args:
        width: E.
    """

    def __init__(self, width: int = 256) -> None:
        if width < 1:
            raise ValueError(f"width is {width}; it must be at least 1")
        self.width = width
        self.name = f"hash:{width}"

    @property
    def identity(self) -> str:
        return f"{self.name}/1"

    def words(self, text: str) -> list[str]:
        found = words_of(text)
        return [" ".join(sorted(found)), *found]

    def vectors(self, words: Sequence[str]) -> Tensor:
        made = np.empty((len(words), self.width), dtype=np.float32)
        known: dict[str, npt.NDArray[np.float32]] = {}
        for row, entry in enumerate(words):
            parts = entry.split()
            for word in parts:
                if word not in known:
                    known[word] = self._word(word)
            made[row] = self._long(np.sum([known[word] for word in parts], axis=0) if parts else 0.0)
        return torch.from_numpy(made)

    def _word(self, word: str) -> npt.NDArray[np.float32]:
        framed = f"<{word}>"
        parts = [framed, framed, *(framed[i : i + 4] for i in range(len(framed) - 3))]
        return self._long(np.sum([self._signs(part) for part in parts], axis=0))

    def _long(self, vector: Any) -> npt.NDArray[np.float32]:
        """Makes a vector as long as one of signs, a zero excepted."""
        scaled: npt.NDArray[np.float32] = vector * self.width**0.5 / max(np.linalg.norm(vector), 1e-6)
        return scaled

    def _signs(self, part: str) -> npt.NDArray[np.float32]:
        drawn = hashlib.shake_256(part.encode()).digest(-(-self.width // 8))
        bits = np.unpackbits(np.frombuffer(drawn, dtype=np.uint8))[: self.width]
        return 2 * bits.astype(np.float32) - 1


class WordVectors(WordEncoder):
    """Word vectors from a file, for an LSTM over them; tokens as ReaRev's loader makes them.

    Lower case, ``'s`` is a word, and of each word one leading or trailing sign that is no letter or digit is
    dropped. A word that isn't in the vocabulary is masked.

    Args:
        file: ``[V, E]`` numbers, .npy; beside it the vocabulary, one word a line: ``FILE.txt``, ``vocab.txt``
            or ``vocab_new.txt``.

    Raises:
        UserError: A file is missing, damaged, or of another length.
    """

    def __init__(self, file: str | Path) -> None:
        path = Path(file)
        names = [path.with_suffix(".txt"), path.with_name("vocab.txt"), path.with_name("vocab_new.txt")]
        vocabulary = next((name for name in names if name.is_file()), None)
        if vocabulary is None:
            raise UserError(f"{path} has no vocabulary beside it: {' or '.join(n.name for n in names)}")
        try:
            self._table = torch.from_numpy(np.load(path, allow_pickle=False)).float()
            words = vocabulary.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"can't read word vectors from {path}: {error}") from error
        if self._table.dim() != 2 or not len(words) <= self._table.size(0) <= len(words) + 1:
            raise UserError(
                f"{path} has shape {list(self._table.shape)}, and {vocabulary.name} {len(words)} words"
            )
        self._row = {word.strip(): row for row, word in enumerate(words)}
        self.width = self._table.size(1)
        self.name = f"words:{file}"
        self._hash = f"{sha256(path)}/{sha256(vocabulary)}"

    @property
    def identity(self) -> str:
        return f"words/{self._hash}"

    def words(self, text: str) -> list[str]:
        found = []
        for word in text.lower().replace("'s", " s").split():
            if not word[0].isalnum():
                word = word[1:]
            elif not word[-1].isalnum():
                word = word[:-1]
            found += [word] if word else []
        return found

    def vectors(self, words: Sequence[str]) -> Tensor:
        rows = torch.tensor([self._row.get(word, -1) for word in words], dtype=torch.int64)
        made = self._table[rows.clamp(min=0)]
        made[rows < 0] = float("nan")
        return made


# --- States of many texts ---------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    table: Tensor  # [U, E]
    token: Tensor | None  # [M] rows of the table; None where there is a row for each token
    ptr: Tensor  # [n + 1]


class TextStates:
    """The states of n texts, without padding; batches are gathered from them.

    Args:
        chunks: Portions of the m different texts, all but the last of the same number.
        width: E.
        row: ``[n]`` integers, which of the different texts each one is; None where all n differ.
    """

    def __init__(self, chunks: Sequence[_Chunk], width: int, row: Tensor | None = None) -> None:
        self._chunks, self.width, self._row = list(chunks), width, row
        self._size = max(1, chunks[0].ptr.numel() - 1) if chunks else 1

    def __len__(self) -> int:
        return self.num_different if self._row is None else self._row.numel()

    @property
    def num_different(self) -> int:
        """m, the texts whose states are held."""
        return sum(chunk.ptr.numel() - 1 for chunk in self._chunks)

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        held = sum(t.nbytes for chunk in self._chunks for t in chunk if t is not None)
        return held if self._row is None else held + self._row.nbytes

    def lengths(self, ids: Tensor) -> Tensor:
        """Returns the number of tokens of some texts, ``[B]`` int64."""
        return self._lengths(ids if self._row is None else self._row[ids].long())

    def _lengths(self, ids: Tensor) -> Tensor:
        length = torch.zeros_like(ids)
        for number, chunk in enumerate(self._chunks):
            mine = ids // self._size == number
            length[mine] = chunk.ptr.diff()[ids[mine] - number * self._size]
        return length

    def batch(self, ids: Tensor) -> TokenStates:
        """Returns some texts ``[B]`` int64, padded to the longest of them; one token at least."""
        ids = ids if self._row is None else self._row[ids].long()
        length = self._lengths(ids)
        longest = max(1, int(length.max())) if ids.numel() else 1
        hidden = torch.zeros(ids.numel(), longest, self.width)
        mask = torch.zeros(ids.numel(), longest, dtype=torch.bool)
        for number, chunk in enumerate(self._chunks):
            row = (ids // self._size == number).nonzero().squeeze(1)
            items, begin = ragged_index(chunk.ptr, ids[row] - number * self._size)
            counts = begin.diff()
            row = torch.repeat_interleave(row, counts)
            place = torch.arange(items.numel()) - torch.repeat_interleave(begin[:-1], counts)
            rows = items if chunk.token is None else chunk.token[items].long()
            values = chunk.table[rows].float()
            known = ~values[:, :1].isnan().squeeze(1)
            hidden[row[known], place[known]] = values[known]
            mask[row[known], place[known]] = True
        mask[:, 0] |= ~mask.any(1)  # a text without a known word is one zero
        return TokenStates(hidden, mask)


def encoded(encoder: TextEncoder, texts: Sequence[str], folder: str | Path | None = None) -> TextStates:
    """Returns the states of texts; equal ones share theirs, and those of a language model are computed once.

    They are kept as float16, in portions of 8,192 texts, so that an interrupted encoding goes on. States of
    words are quicker made than read, and aren't kept.

    Args:
        encoder: A frozen encoder.
        texts: n of them.
        folder: Where states are kept; nowhere by default.
    """
    number: dict[str, int] = {}
    place = [number.setdefault(text, len(number)) for text in texts]
    different = list(number)
    row = torch.tensor(place, dtype=torch.int32) if len(different) < len(texts) else None
    if isinstance(encoder, WordEncoder):
        return TextStates(encoder.chunks(different), encoder.width, row)
    chunks = []
    for first in range(0, len(different), _CHUNK):
        part = different[first : first + _CHUNK]

        def build(part: list[str] = part) -> Processed:
            states = encoder.encode(part)
            ptr = torch.zeros(len(part) + 1, dtype=torch.int64)
            torch.cumsum(states.mask.sum(1), 0, out=ptr[1:])
            return Processed({"hidden": states.hidden[states.mask].half(), "ptr": ptr}, {})

        digest = hashlib.sha256("\0".join(part).encode()).hexdigest()
        key = f"{encoder.name}/{encoder.identity}/{len(part)}/{digest}"
        made = (build() if folder is None else cached(folder, key, build)).tensors
        chunks.append(_Chunk(made["hidden"], None, made["ptr"]))
    return TextStates(chunks, encoder.width, row)
