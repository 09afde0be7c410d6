"""Language models of sentence-transformers as text encoders, from a folder, a package or a download.

BERT's encoder (Devlin et al., NAACL 2019, https://arxiv.org/abs/1810.04805) and its WordPiece tokens are at
home here, so that all-MiniLM and its kin need nothing but a file of weights. Other kinds aren't read.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.errors import UserError
from graphkit.files import fetch, sha256
from graphkit.text import TokenStates

__all__ = ["Bert", "SentenceEncoder", "WordPiece", "find_model"]

_FILES = ("config.json", "vocab.txt", "model.safetensors")
_ADVICE = (
    "or install a package that ships it (pip install graphkit[text]), or take --task.encoder hash, which "
    "needs no weights"
)
_TOKENS = 4096  # tokens encoded at once
_LONGEST = 128  # tokens of a text; what is beyond is cut off


# --- Tokens -----------------------------------------------------------------------------------------------


class WordPiece:
    """BERT's tokens: words and signs, each cut into the longest pieces that the vocabulary has.

    Args:
        vocabulary: The id of each piece; those that go on with a word begin with ``##``.
        lower: Whether letters are made small and lose their accents.
    """

    def __init__(self, vocabulary: Mapping[str, int], lower: bool = True) -> None:
        missing = [name for name in ("[CLS]", "[SEP]", "[UNK]", "[PAD]") if name not in vocabulary]
        if missing:
            raise UserError(f"the vocabulary of the text encoder has no {' and no '.join(missing)}")
        self._id, self._lower = vocabulary, lower
        self._longest = max(map(len, vocabulary))

    def __call__(self, text: str, limit: int) -> list[int]:
        """Returns the ids of ``[CLS]``, at most ``limit - 2`` pieces, and ``[SEP]``."""
        pieces = [piece for word in self._words(text) for piece in self._pieces(word)]
        return [self._id["[CLS]"], *pieces[: limit - 2], self._id["[SEP]"]]

    def _words(self, text: str) -> Iterator[str]:
        text = "".join(" " if c.isspace() else c for c in text if c.isspace() or _is_written(c))
        if self._lower:
            parts = unicodedata.normalize("NFD", text.lower())
            text = "".join(c for c in parts if unicodedata.category(c) != "Mn")
        for word in text.split():
            start = 0
            for at, c in enumerate(word):
                if _is_sign(c):
                    if start < at:
                        yield word[start:at]
                    yield c
                    start = at + 1
            if start < len(word):
                yield word[start:]

    def _pieces(self, word: str) -> list[int]:
        if len(word) > 100:
            return [self._id["[UNK]"]]
        found, start = [], 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = word[start:end] if start == 0 else f"##{word[start:end]}"
                if piece in self._id:
                    found.append(self._id[piece])
                    start = end
                    break
            else:
                return [self._id["[UNK]"]]
        return found


def _is_written(c: str) -> bool:
    return c not in ("\0", "\ufffd") and not unicodedata.category(c).startswith("C")


def _is_sign(c: str) -> bool:
    """Whether a character is a word of its own: punctuation, ASCII's symbols, a Chinese character."""
    if c.isascii():
        return not c.isalnum()
    code = ord(c)
    chinese = 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0xF900 <= code <= 0xFAFF
    return chinese or 0x20000 <= code <= 0x2CEAF or unicodedata.category(c).startswith("P")


# --- Model ------------------------------------------------------------------------------------------------


class _Layer(nn.Module):
    """One block of BERT: attention and two linear maps, each added to its input and normalised."""

    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.mix_norm, self.out_norm = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.inner, self.out = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (
            part(x).view(n, length, self.heads, width // self.heads).transpose(1, 2)  # [n, H, L, c]
            for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = self.mix_norm(x + self.mix(mixed.transpose(1, 2).reshape(n, length, width)))
        return self.out_norm(x + self.out(F.gelu(self.inner(x))))


class Bert(nn.Module):
    """BERT's encoder without dropout: ids ``[n, L]`` and mask ``[n, L]`` to states ``[n, L, E]``.

    Args:
        config: ``config.json`` of a model of type ``bert``.

    Raises:
        UserError: A model of another kind.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        _check_kind(config)
        width, eps = config["hidden_size"], config.get("layer_norm_eps", 1e-12)
        self.word = nn.Embedding(config["vocab_size"], width)
        self.position = nn.Embedding(config["max_position_embeddings"], width)
        self.kind = nn.Embedding(config.get("type_vocab_size", 2), width)
        self.norm = nn.LayerNorm(width, eps)
        sizes = (width, config["num_attention_heads"], config["intermediate_size"], eps)
        self.layers = nn.ModuleList([_Layer(*sizes) for _ in range(config["num_hidden_layers"])])

    def forward(self, token: Tensor, mask: Tensor) -> Tensor:
        place = torch.arange(token.size(1), device=token.device)
        x = self.norm(self.word(token) + self.position(place) + self.kind.weight[0])
        for layer in self.layers:
            x = layer(x, mask)
        return x

    @staticmethod
    def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns published weights under the names of this module; the pooler isn't used."""
        made = {}
        for name, value in weights.items():
            new = re.sub(r"^(bert|model)\.", "", name)
            for old, ours in _NAMES:
                new = new.replace(old, ours)
            if not new.startswith(("pooler.", "cls.")) and not new.endswith("position_ids"):
                made[new] = value.float()
        return made


def _check_kind(config: Mapping[str, Any]) -> None:
    kind = (config.get("model_type"), config.get("hidden_act", "gelu"))
    if kind != ("bert", "gelu") or config.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"text encoder: a model of type {kind[0]} with activation {kind[1]} can't be read, only BERT's; "
            "take sentence:all-MiniLM-L6-v2"
        )


_NAMES = (
    ("embeddings.word_embeddings", "word"),
    ("embeddings.position_embeddings", "position"),
    ("embeddings.token_type_embeddings", "kind"),
    ("embeddings.LayerNorm", "norm"),
    ("encoder.layer.", "layers."),
    ("attention.self.", ""),
    ("attention.output.dense", "mix"),
    ("attention.output.LayerNorm", "mix_norm"),
    ("intermediate.dense", "inner"),
    ("output.dense", "out"),
    ("output.LayerNorm", "out_norm"),
)


# --- Where it is ------------------------------------------------------------------------------------------


def find_model(name: str) -> Path | None:
    """Returns the folder of a model that is on this machine, with ``config.json`` and ``model.safetensors``.

    Looked for in turn: a folder of that name, an installed package whose name has the model's in it, the
    cache of Hugging Face's tools, and our own.
    """
    if _complete(Path(name).expanduser()):
        return Path(name).expanduser()
    plain = name.rpartition("/")[2]
    short = re.sub(r"[-_.]+", "-", plain).lower()
    for package in metadata.distributions():
        title = re.sub(r"[-_.]+", "-", str(package.metadata["Name"] or "")).lower()
        if short and short in title:
            for file in package.files or ():
                folder = Path(str(package.locate_file(file))).parent
                if file.name == "config.json" and _complete(folder):
                    return folder
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    owner = name if "/" in name else f"sentence-transformers/{name}"
    snapshots = home / "hub" / f"models--{owner.replace('/', '--')}" / "snapshots"
    places = [*sorted(snapshots.glob("*")), _own_folder(name)]
    return next((folder for folder in places if _complete(folder)), None)


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors"))


def _own_folder(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "graphkit" / "sentences" / name.rpartition("/")[2]


def _fetched(name: str) -> Path:
    """Downloads a model into our own folder.

    Raises:
        UserError: No network, or no such model.
    """
    owner, folder = name if "/" in name else f"sentence-transformers/{name}", _own_folder(name)
    for file in _FILES:
        fetch(f"https://huggingface.co/{owner}/resolve/main/{file}", folder / file, hint=_ADVICE)
    return folder


class SentenceEncoder:
    """The last layer's states of a frozen sentence-transformers model, padding masked.

    Weights are read at the first :meth:`encode`.

    Args:
        model: Its name, with or without ``sentence-transformers/``, or its folder.
        device: Where it computes.

    Raises:
        UserError: The model is neither here nor to be had, or of a kind that isn't known.
    """

    def __init__(self, model: str, device: torch.device | str = "cpu") -> None:
        self.name = f"sentence:{model}"
        self.folder = find_model(model) or _fetched(model)
        self.device = torch.device(device)
        try:
            self.config: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
            self.width = int(self.config["hidden_size"])
            lower, vocabulary = _vocabulary(self.folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"can't read the text encoder in {self.folder}: {error!r}") from error
        self._tokens = WordPiece(vocabulary, lower)
        self._pad = vocabulary["[PAD]"]
        _check_kind(self.config)
        self._module: nn.Module | None = None
        self._hash = ""

    @property
    def identity(self) -> str:
        self._hash = self._hash or sha256(self.folder / "model.safetensors")
        return f"bert/{_LONGEST}/{self._hash}"

    def module(self) -> nn.Module:
        """Returns a fresh copy of the model with its published weights, in evaluation mode.

        Raises:
            UserError: Damaged weights, or those of another model.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            made = Bert(self.config)
            made.load_state_dict(Bert.renamed(load_file(self.folder / "model.safetensors")))
        except (OSError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"can't use the weights in {self.folder}: {reason}") from error
        return made.eval()

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns ids ``[n, L]`` int64 and their mask ``[n, L]``, padded to the longest."""
        limit = min(_LONGEST, int(self.config["max_position_embeddings"]))
        rows = [torch.tensor(self._tokens(text, limit)) for text in texts]
        token = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._pad)
        length = torch.tensor([row.numel() for row in rows])
        return token, torch.arange(token.size(1)) < length[:, None]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TokenStates:
        """Returns the states of n texts, on the CPU; texts of about the same length are computed together."""
        if not texts:
            return TokenStates(torch.zeros(0, 1, self.width), torch.zeros(0, 1, dtype=torch.bool))
        if self._module is None:
            self._module = self.module().to(self.device).requires_grad_(False)
        token, mask = self.tokens(texts)
        hidden = torch.zeros(*token.shape, self.width)
        length = mask.sum(1)
        order, start = length.argsort(stable=True), 0
        while start < len(texts):
            longest = int(length[order[start : start + _TOKENS]].max())
            rows = order[start : start + max(1, _TOKENS // max(longest, 1))]
            longest = int(length[rows].max())
            part = (token[rows, :longest].to(self.device), mask[rows, :longest].to(self.device))
            hidden[rows, :longest] = self._module(*part).float().cpu() * mask[rows, :longest, None]
            start += rows.numel()
        return TokenStates(hidden, mask)


def _vocabulary(folder: Path) -> tuple[bool, dict[str, int]]:
    """Returns whether letters are made small, and the pieces."""
    settings = folder / "tokenizer_config.json"
    lower = json.loads(settings.read_text()).get("do_lower_case", True) if settings.is_file() else True
    if (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        return bool(lower), {line: number for number, line in enumerate(lines) if line}
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return bool(lower), dict(content["model"]["vocab"])
