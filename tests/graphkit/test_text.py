"""Texts as states: words, word vectors, a language model from wherever it lies, and what is kept on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from graphkit import sentences, text
from graphkit.errors import UserError
from graphkit.sentences import Bert, SentenceEncoder, WordPiece, find_model
from graphkit.text import (
    TextEncoder,
    TokenStates,
    encoded,
    make_encoder,
    relation_text,
    reversed_text,
    words_of,
)

# --- Words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("people.person.place_of_birth", "person place of birth"),
        ("written_by", "written by"),
        ("borders", "borders"),
        ("http://example.org/terms#bornIn", "born In"),
        ("has-part", "has part"),
        ("...", "..."),
    ],
)
def test_a_relation_has_the_words_of_its_name(name: str, words: str) -> None:
    assert relation_text(name) == words


def test_words_have_neither_capitals_nor_accents_nor_signs() -> None:
    assert words_of("Who's in Côte d'Ivoire?") == ["who", "s", "in", "cote", "d", "ivoire"]
    assert reversed_text("person place of birth") == "birth of place person"


def likeness(encoder: TextEncoder, a: str, b: str) -> float:
    states = encoder.encode([a, b]).hidden[:, 0]
    return float(torch.cosine_similarity(states[0], states[1], dim=0))


def test_hashed_words_are_alike_when_their_stems_are() -> None:
    encoder = make_encoder("hash")
    assert encoder.width == 256
    assert likeness(encoder, "language", "Language!") == pytest.approx(1)
    assert likeness(encoder, "language", "languages") > 0.4
    assert abs(likeness(encoder, "language", "border")) < 0.3
    assert likeness(encoder, "the capital of France", "France: capital") > 0.5


def test_first_token_of_hashed_words_is_their_mean() -> None:
    states = make_encoder("hash:32").encode(["who borders France", ""])
    assert states.mask.tolist() == [[True] * 4, [True] + [False] * 3]
    mean = states.hidden[0, 1:].mean(0)
    assert float(torch.cosine_similarity(states.hidden[0, 0], mean, dim=0)) == pytest.approx(1, abs=1e-5)
    assert not states.hidden[1].any()


@pytest.mark.parametrize("name", ["hash:24", "hash:7"])
def test_states_do_not_depend_on_the_texts_beside(name: str) -> None:
    encoder = make_encoder(name)
    alone = encoder.encode(["who borders it"])
    beside = encoder.encode(["a very long question about nothing", "who borders it"])
    assert torch.equal(alone.hidden[0], beside.hidden[1, :4])
    assert beside.mask[1].sum() == 4
    assert make_encoder(name).encode(["who borders it"]).hidden.equal(alone.hidden)


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    np.save(tmp_path / "word_emb.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    (tmp_path / "vocab.txt").write_text("who\nborders\ns\nfrance\n")
    return tmp_path / "word_emb.npy"


def test_word_vectors_mask_what_the_vocabulary_lacks(vectors: Path) -> None:
    encoder = make_encoder(f"words:{vectors}")
    states = encoder.encode(["Who borders France's (France)?", "nobody"])
    # "(france)?" loses its first sign only, as in the reference, and is then unknown
    assert states.mask.tolist() == [[True, True, True, True, False], [True] + [False] * 4]
    assert states.hidden[0, :, 0].tolist() == [0, 3, 9, 6, 0]
    assert not states.hidden[1].any()


def test_word_vectors_need_their_vocabulary(vectors: Path) -> None:
    (vectors.parent / "vocab.txt").write_text("who\n")
    with pytest.raises(UserError, match=r"shape \[4, 3\], and vocab.txt 1 words"):
        make_encoder(f"words:{vectors}")
    (vectors.parent / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"no vocabulary beside it: word_emb.txt or vocab.txt"):
        make_encoder(f"words:{vectors}")


@pytest.mark.parametrize("name", ["hsah", "hash:0", "hash:x", "words:", "sentence:"])
def test_an_unknown_encoder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="text encoder"):
        make_encoder(name)


# --- What is kept -----------------------------------------------------------------------------------------


class Counting:
    """An encoder of whole texts that counts what it is asked for."""

    name, width, identity = "counting", 2, "1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> TokenStates:
        self.asked += texts
        length = torch.tensor([len(t) for t in texts])
        mask = torch.arange(int(length.max())) < length[:, None]
        place = torch.arange(mask.size(1)).expand_as(mask)
        hidden = torch.stack([place, length[:, None].expand_as(mask)], -1) * mask[..., None]
        return TokenStates(hidden.float(), mask)


TEXTS = ["abc", "a", "abcde", "ab", "abcd", "x", "xy"]


def test_states_of_a_language_model_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_CHUNK", 3)
    encoder = Counting()
    for texts, fresh in ((TEXTS, TEXTS), (TEXTS, []), ([*TEXTS[:6], "new"], ["new"]), (["a"], ["a"])):
        encoder.asked.clear()
        made = encoded(encoder, texts, tmp_path)
        assert encoder.asked == fresh
        assert len(made) == len(texts)
    other = Counting()
    other.identity = "2"
    encoded(other, TEXTS, tmp_path)
    assert other.asked == TEXTS


@pytest.mark.parametrize("kept", [False, True])
def test_batches_are_what_the_encoder_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    monkeypatch.setattr(text, "_CHUNK", 3)
    for encoder in (Counting(), make_encoder("hash:8")):
        states = encoded(encoder, TEXTS, tmp_path if kept else None)
        for ids in ([6, 0, 2, 2], [1], [5, 1]):
            mine, plain = states.batch(torch.tensor(ids)), encoder.encode([TEXTS[i] for i in ids])
            assert torch.equal(mine.mask, plain.mask)
            torch.testing.assert_close(mine.hidden, plain.hidden, rtol=1e-3, atol=1e-3)
        assert states.batch(torch.zeros(0, dtype=torch.int64)).hidden.shape == (0, 1, encoder.width)


@pytest.mark.parametrize("name", ["counting", "hash:8"])
def test_equal_texts_are_encoded_and_held_once(tmp_path: Path, name: str) -> None:
    encoder: Any = Counting() if name == "counting" else make_encoder(name)
    texts = [*TEXTS, *TEXTS[::-1]] * 50
    states = encoded(encoder, texts, tmp_path)
    assert len(states) == len(texts)
    assert states.num_different == len(TEXTS)
    assert name != "counting" or encoder.asked == TEXTS
    assert states.nbytes == encoded(encoder, TEXTS).nbytes + 4 * len(texts)
    ids = torch.tensor([8, 0, 13, 699])
    mine, plain = states.batch(ids), encoder.encode([texts[i] for i in ids.tolist()])
    assert torch.equal(mine.mask, plain.mask)
    torch.testing.assert_close(mine.hidden, plain.hidden, rtol=1e-3, atol=1e-3)
    assert torch.equal(states.lengths(ids), plain.mask.sum(1))


# --- BERT -------------------------------------------------------------------------------------------------

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "un",
    "##aff",
    "##able",
    "want",
    "##ed",
    ",",
    "?",
    "cafe",
    "##s",
]
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 16,
    "vocab_size": len(PIECES),
    "type_vocab_size": 2,
}


def published_weights() -> dict[str, Tensor]:
    """Random weights under the names of the published files, those included that aren't used."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.5 * torch.randn(*shape, generator=generator)

    d, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    sizes = {"word": len(PIECES), "position": 16, "token_type": 2}
    made = {f"embeddings.{name}_embeddings.weight": draw(rows, d) for name, rows in sizes.items()}
    maps = {"embeddings.LayerNorm": (d,), "pooler.dense": (d, d)}
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        maps |= {f"{at}.attention.self.{part}": (d, d) for part in ("query", "key", "value")}
        maps |= {f"{at}.attention.output.dense": (d, d), f"{at}.attention.output.LayerNorm": (d,)}
        maps |= {f"{at}.intermediate.dense": (inner, d), f"{at}.output.dense": (d, inner)}
        maps |= {f"{at}.output.LayerNorm": (d,)}
    for name, shape in maps.items():
        made |= {f"{name}.weight": draw(*shape), f"{name}.bias": draw(shape[0])}
    return made | {"embeddings.position_ids": torch.arange(16)[None]}


def naive_bert(weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """BERT as its paper has it, one text, one head after the other, in float64."""
    w = {name: value.double() for name, value in weights.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].t() + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    tables = [w[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")]
    x = norm(tables[0][ids] + tables[1][: len(ids)] + tables[2][0], "embeddings.LayerNorm")
    width = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q, k, v = (linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
        heads = []
        for h in range(CONFIG["num_attention_heads"]):
            part = slice(h * width, (h + 1) * width)
            alpha = (q[:, part] @ k[:, part].t() / math.sqrt(width)).softmax(-1)
            heads.append(alpha @ v[:, part])
        mixed = linear(torch.cat(heads, 1), f"{at}.attention.output.dense")
        x = norm(x + mixed, f"{at}.attention.output.LayerNorm")
        inner = linear(x, f"{at}.intermediate.dense")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return x


def write_model(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    save_file(published_weights(), folder / "model.safetensors")
    return folder


def test_words_are_cut_into_the_longest_pieces() -> None:
    cut = WordPiece({piece: number for number, piece in enumerate(PIECES)})

    def pieces(words: str, limit: int = 16) -> list[str]:
        return [PIECES[i] for i in cut(words, limit)]

    assert pieces("Unaffable, wanted?") == [
        "[CLS]",
        "un",
        "##aff",
        "##able",
        ",",
        "want",
        "##ed",
        "?",
        "[SEP]",
    ]
    assert pieces("CAFÉS\twant\n") == ["[CLS]", "cafe", "##s", "want", "[SEP]"]
    assert pieces("unaffably") == ["[CLS]", "[UNK]", "[SEP]"]
    assert pieces("want-want") == ["[CLS]", "want", "[UNK]", "want", "[SEP]"]
    assert pieces("want want want", 4) == ["[CLS]", "want", "want", "[SEP]"]
    assert pieces("") == ["[CLS]", "[SEP]"]
    with pytest.raises(UserError, match=r"has no \[CLS\] and no \[SEP\]"):
        WordPiece({"[UNK]": 0, "[PAD]": 1})


def test_states_are_those_of_the_formula(tmp_path: Path) -> None:
    encoder = SentenceEncoder(str(write_model(tmp_path / "tiny")))
    texts = ["Unaffable, wanted?", "wanted", ""]
    states = encoder.encode(texts)
    assert encoder.width == 8
    assert states.mask.sum(1).tolist() == [9, 4, 2]
    token, _ = encoder.tokens(texts)
    for row, length in enumerate(states.mask.sum(1).tolist()):
        expected = naive_bert(published_weights(), token[row, :length].tolist())
        torch.testing.assert_close(states.hidden[row, :length].double(), expected, rtol=1e-5, atol=1e-5)
        assert not states.hidden[row, length:].any()


def test_the_module_takes_no_part_in_training_until_it_is_asked_for(tmp_path: Path) -> None:
    encoder = SentenceEncoder(str(write_model(tmp_path / "tiny")))
    encoder.encode(["wanted"])
    module = encoder.module()
    assert all(p.requires_grad for p in module.parameters())
    assert isinstance(module, Bert)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    before = encoder.encode(["wanted"]).hidden
    assert torch.equal(before, SentenceEncoder(str(tmp_path / "tiny")).encode(["wanted"]).hidden)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"model_type": "mpnet"}, "a model of type mpnet"),
        ({"hidden_act": "swish"}, "activation swish"),
        ({"position_embedding_type": "relative_key"}, "can't be read, only BERT's"),
        ({"hidden_size": None}, "can't read the text encoder"),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any], hint: str) -> None:
    folder = write_model(tmp_path / "tiny", **changes)
    with pytest.raises(UserError, match=hint):
        SentenceEncoder(str(folder))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny", num_hidden_layers=3)
    with pytest.raises(UserError, match="can't use the weights"):
        SentenceEncoder(str(folder)).encode(["wanted"])
    (folder / "model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(UserError, match="can't use the weights"):
        SentenceEncoder(str(folder)).encode(["wanted"])


# --- Where models lie -------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any model."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_is_found_in_a_package_that_ships_it(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = nowhere / "site"
    write_model(site / "some_minilm" / "model")
    record = site / "some_all_tiny_L6_v2-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: some-all-tiny-l6-v2\nVersion: 1.0\n")
    (record / "RECORD").write_text("some_minilm/model/config.json,,\nsome_minilm/model/model.safetensors,,\n")
    assert find_model("all-tiny-L6-v2") is None
    monkeypatch.syspath_prepend(str(site))
    assert find_model("all-tiny-L6-v2") == site / "some_minilm" / "model"
    assert find_model("sentence-transformers/all-tiny-L6-v2") == site / "some_minilm" / "model"


@pytest.mark.parametrize(
    "place", ["hf/hub/models--sentence-transformers--tiny/snapshots/abc", "cache/graphkit/sentences/tiny"]
)
def test_a_model_is_found_in_a_cache(nowhere: Path, place: str) -> None:
    assert find_model("tiny") is None
    folder = write_model(nowhere / place)
    assert find_model("tiny") == folder
    assert make_encoder("sentence:tiny").name == "sentence:tiny"


def test_a_model_that_is_not_here_is_fetched_or_told_where_to_put(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def offline(url: str, path: Path, *, hint: str = "") -> None:
        asked.append(url)
        raise UserError(f"cannot download {url} (no network); put the file at {path} {hint}")

    monkeypatch.setattr(sentences, "fetch", offline)
    with pytest.raises(UserError, match=r"sentences/all-MiniLM-L6-v2/config.json or install .* hash"):
        make_encoder("sentence:all-MiniLM-L6-v2")
    assert asked == ["https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main/config.json"]
