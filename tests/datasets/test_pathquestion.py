"""PathQuestion: lines with answers and paths, splits by lines or by questions, damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graphkit.data import Benchmark, load_dataset
from graphkit.errors import UserError
from graphkit.questions import QuestionSet

TOPICS = range(12)


def written(root: Path) -> Path:
    """Writes parents with two children each, of whom one has a profession."""
    folder = root / "pathquestion"
    folder.mkdir()
    facts, lines = [], []
    for k in TOPICS:
        facts += [f"p{k}\tchildren\ta{k}", f"p{k}\tchildren\tb{k}", f"a{k}\tprofession\tpoet"]
        facts += [f"b{k}\tprofession\tbaker"] if k % 2 else []
        both = "poet/baker/" if k % 2 else "poet/"
        for words in ("what does p{} 's child do ?", " the job of p{} 's child ?"):
            lines.append(f"{words.format(k)}\tpoet({both})\tp{k}#children#a{k}#profession#poet#<end>#poet")
    (folder / "2H-kb.txt").write_text("\n".join(facts) + "\n")
    (folder / "PQ-2H.txt").write_text("\n".join(lines) + "\n")
    return folder


def topics_of(made: Benchmark, part: str) -> set[int]:
    batch = QuestionSet.of(made.data).batch(made.splits[part]["index"])
    return set(batch.entity[batch.seed].tolist())


def test_lines_become_questions_with_all_answers(tmp_path: Path) -> None:
    written(tmp_path)
    for _ in range(2):  # the second time from the cache
        made = load_dataset("pathquestion", root=tmp_path)
        questions, names = QuestionSet.of(made.data), made.node_names or ()
        assert (made.questions or ())[2:4] == ["what does p1 's child do ?", "the job of p1 's child ?"]
        assert (made.question_texts or ())[3] == "the job of NE 's child ?"
        gold, _ = questions.answers(torch.tensor([2]))
        assert {names[e] for e in gold.tolist()} == {"poet", "baker"}
        assert questions.hop.unique().tolist() == [2]
        assert made.target_names == ["children", "profession"]
    sizes = [part["index"].numel() for part in made.splits.values()]
    assert sizes == [20, 2, 2]


def test_wordings_of_a_question_can_be_kept_together(tmp_path: Path) -> None:
    written(tmp_path)
    made = load_dataset("pathquestion", root=tmp_path, splitting="questions")
    parts = [topics_of(made, part) for part in ("train", "valid", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(TOPICS)
    assert sum(part["index"].numel() for part in made.splits.values()) == 2 * len(TOPICS)
    other = load_dataset("pathquestion", root=tmp_path, splitting="questions", split_seed=1)
    assert topics_of(other, "test") != parts[2]


def test_facts_can_be_missing(tmp_path: Path) -> None:
    written(tmp_path)
    thin = load_dataset("pathquestion", root=tmp_path, incomplete=0.5)
    assert 0 < thin.data.kg_edge_type.numel() < 3 * len(TOPICS)
    assert thin.info["incomplete"]["rate"] == 0.5


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks PQ-2H\.txt or 2H-kb\.txt; .* countries"):
        load_dataset("pathquestion", root=tmp_path)
    folder = written(tmp_path)
    with pytest.raises(UserError, match="hops is 4; PathQuestion has 2 and 3"):
        load_dataset("pathquestion", root=tmp_path, hops=4)
    with pytest.raises(UserError, match="splitting is 'none'; it is one of: lines, questions"):
        load_dataset("pathquestion", root=tmp_path, splitting="none")
    for line, hint in (
        ("who ?\tpoet(poet/)", "words, answers and topic#relation#entity were expected"),
        ("who ?\tpoet(poet/)\tp0#children", "words, answers and topic#relation#entity were expected"),
        ("who ?\tbaker(baker/)\tp0#children#a0", r"the answers must be a0\(\.\.\.\)"),
        ("who ?\ta0(a0/nobody/)\tp0#children#a0", "no fact is about 'nobody'"),
        ("", "holds no questions"),
    ):
        (folder / "PQ-2H.txt").write_text(f"{line}\n")
        with pytest.raises(UserError, match=hint):
            load_dataset("pathquestion", root=tmp_path)


@pytest.mark.parametrize(("large", "counts"), [(False, (1908, 1056, 13)), (True, (1594, 5034, 363))])
def test_the_real_files(test_data: Path, tmp_path: Path, large: bool, counts: tuple[int, int, int]) -> None:
    made = load_dataset("pathquestion", root=tmp_path, path=str(test_data / "pathquestion"), large=large)
    found = (made.info["questions"], made.info["entities"], made.info["relations"])
    assert found == counts
    questions = QuestionSet.of(made.data)
    ids = torch.arange(len(questions))
    inside = int(questions.batch(ids).answer.sum())
    assert inside > 0.99 * questions.answers(ids)[0].numel()
