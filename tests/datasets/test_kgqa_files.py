"""Questions in the published form: both ways of writing a line, and what goes wrong with files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphkit.datasets.kgqa_files import load_cwq, load_webqsp, read_names, read_questions
from graphkit.errors import UserError
from graphkit.questions import QuestionSet

ENTITIES = ["m.0", "m.1", "m.2", "Blue", "1999"]
RELATIONS = ["film.film.directed_by", "people.person.born"]
ROW: dict[str, Any] = {
    "id": "q0",
    "question": "who  made blue?",
    "entities": [3],
    "answers": [{"kb_id": "m.1", "text": "Ann"}, {"kb_id": "1999", "text": ""}],
    "subgraph": {"entities": [0, 3, 1], "tuples": [[3, 0, 1], [1, 1, 0], [3, 0, 1]]},
}


def in_texts(row: dict[str, Any]) -> dict[str, Any]:
    """The same line in GraftNet's way."""

    def entity(number: int) -> dict[str, str]:
        return {"kb_id": ENTITIES[number], "text": ENTITIES[number]}

    facts = [
        [entity(head), {"rel_id": RELATIONS[relation], "text": RELATIONS[relation]}, entity(tail)]
        for head, relation, tail in row["subgraph"]["tuples"]
    ]
    inside = [entity(number) for number in row["subgraph"]["entities"]]
    return row | {
        "entities": [entity(number) for number in row["entities"]],
        "subgraph": {"entities": inside, "tuples": facts},
    }


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes all files of a data set; its three parts are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "entities.txt").write_text("".join(f"{name}\n" for name in ENTITIES))
    (folder / "relations.txt").write_text("".join(f"{name}\n" for name in RELATIONS))
    content = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("train.json", "dev.json", "test.json"):
        (folder / name).write_text(content)
    return folder


def read(folder: Path) -> tuple[QuestionSet, list[str], int]:
    names = (read_names(folder / name) for name in ("entities.txt", "relations.txt"))
    return read_questions(folder / "test.json", *names)


@pytest.mark.parametrize("texts", [False, True])
def test_ids_and_texts_are_read_alike(tmp_path: Path, texts: bool) -> None:
    row = in_texts(ROW) if texts else ROW
    questions, words, dropped = read(write(tmp_path, [row, ROW | {"entities": []}]))
    assert (words, dropped) == (["who made blue?"], 1)
    batch = questions.batch(torch.tensor([0]))
    assert batch.entity.tolist() == [3, 0, 1]  # the seed first
    assert batch.seed.tolist() == [0]
    assert batch.edge_index.tolist() == [[0, 2, 0], [2, 1, 2]]
    assert batch.edge_type.tolist() == [0, 1, 0]
    assert batch.answer.tolist() == [False, False, True]
    assert questions.answers(torch.tensor([0]))[0].tolist() == [1, 4]  # one is outside


def test_names_and_ids_of_other_variants(tmp_path: Path) -> None:
    bare = ROW | {"entities": ["Blue"], "answers": ["m.1"]}
    bare["subgraph"] = {"entities": ["Blue", "m.1"], "tuples": [["Blue", RELATIONS[0], "m.1"]]}
    numbered = ROW | {"entities": [], "entities_cid": [3], "answers": [], "answers_cid": [1]}
    metaqa = ROW | {"answers": [{"kb_id": 7, "text": "m.2"}]}
    questions, _, dropped = read(write(tmp_path, [bare, numbered, metaqa]))
    assert dropped == 0
    assert [questions.answers(torch.tensor([i]))[0].tolist() for i in range(3)] == [[1], [1], [2]]
    assert questions.batch(torch.tensor([1])).entity.tolist() == [3, 0, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answers": [{"kb_id": "m.9", "text": ""}]}, "test.json, line 2: lacks or doesn't know 'm.9'"),
        (
            {"subgraph": {"entities": [0], "tuples": [[3, 0, 1]]}},
            "line 2: a fact is on entity 1, which isn't of",
        ),
        ({"subgraph": {"entities": [5], "tuples": []}}, "line 2: id 5 is out of range: there are 5 names"),
        (
            {"subgraph": {"entities": [1], "tuples": [[3, 2, 1]]}},
            "line 2: a fact has relation 2; there are 2",
        ),
        ({"subgraph": {"entities": []}}, "line 2: lacks or doesn't know 'tuples'"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    folder = write(tmp_path, [ROW, ROW | row])
    with pytest.raises(UserError) as caught:
        read(folder)
    assert message in str(caught.value)


def test_what_is_no_json_or_shifts_ids_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, [ROW])
    (folder / "test.json").write_text("{")
    with pytest.raises(UserError, match="line 1 isn't JSON"):
        read(folder)
    (folder / "entities.txt").write_text("a\nb\na\n")
    with pytest.raises(UserError, match="line 3: 'a' is there before; ids would shift"):
        read(folder)
    (folder / "entities.txt").write_text("a\n\nb\n")
    with pytest.raises(UserError, match="line before line 3 is empty"):
        read(folder)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_data_set_is_loaded_from_its_folder(tmp_path: Path, zipped: bool) -> None:
    folder = write(tmp_path / "webqsp", [ROW, in_texts(ROW)])
    (folder / "entities_names.json").write_text(json.dumps({"m.1": "Ann"}))
    if zipped:
        path = folder / "train.json"
        path.with_suffix(".json.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    for _ in range(2):  # the second time from the cache
        made = load_webqsp(root=tmp_path, num_train=1)
        assert made.task == "kgqa"
        assert made.spec.num_relations == 2
        assert made.node_names == ["m.0", "Ann", "m.2", "Blue", "1999"]
        assert made.target_names == RELATIONS
        assert made.questions == ["who made blue?"] * 6
        assert [part["index"].numel() for part in made.splits.values()] == [1, 2, 2]
        assert made.info["published_counts"] is False
        assert QuestionSet.of(made.data).batch(made.splits["test"]["index"]).entity.tolist() == [3, 0, 1] * 2
    halved = load_cwq(root=tmp_path, path=str(folder), incomplete=0.5, incomplete_scope="published")
    assert QuestionSet.of(halved.data).batch(torch.tensor([0])).edge_type.tolist() == [1]
    assert halved.info["incomplete"] == {"rate": 0.5, "seed": 0, "scope": "published"}


def test_missing_files_are_listed_with_their_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cwq lacks train\.json, dev\.json, .* unpack the archive of cwq"):
        load_cwq(root=tmp_path)


def test_the_reference_reads_the_same(golden_dir: Path) -> None:
    folders = sorted((golden_dir / "rearev" / "json").glob("*"))
    if not folders:
        pytest.skip("needs the golden arrays of rearev")
    for folder in folders:
        expected = np.load(golden_dir / "rearev" / f"{folder.name}.npz")
        questions, _, _ = read(folder)
        batch = questions.batch(torch.arange(len(questions)))
        count, width = expected["in.local_entity"].shape
        owner = np.repeat(np.arange(count), np.diff(batch.ptr))
        slot = owner * width + np.arange(len(owner)) - batch.ptr.numpy()[owner]
        assert np.diff(batch.ptr).tolist() == expected["in.num_local_entity"].tolist()
        for name, where in (("in.query_entities", batch.seed), ("in.answer_dist", batch.answer)):
            marked = np.zeros(count * width)
            marked[slot[where.numpy()]] = 1
            assert marked.tolist() == expected[name].ravel().tolist()
        real = expected["in.fact_rel"] < len(read_names(folder / "relations.txt"))
        theirs = zip(
            *(expected[f"in.fact_{name}"][real].tolist() for name in ("head", "rel", "tail")), strict=True
        )
        ends = slot[batch.edge_index.numpy()].tolist()
        assert sorted(theirs) == sorted(zip(ends[0], batch.edge_type.tolist(), ends[1], strict=True))
