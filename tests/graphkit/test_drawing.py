"""Pictures of molecules: which pairs are drawn, and how boldly."""

from __future__ import annotations

import re
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphkit import chem
from graphkit.chem import import_rdkit, read_smiles
from graphkit.drawing import draw_molecule, strongest_pairs
from graphkit.errors import UserError

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def numbers(path: Path) -> list[tuple[float, float, float]]:
    """Where the numbers of an SVG are, and their values."""
    root = ElementTree.fromstring(path.read_text())
    texts = [node for node in root.iter() if node.get("class") == "strength"]
    return [(float(t.get("x", "")), float(t.get("y", "")), float(t.text or "")) for t in texts]


def arcs(path: Path) -> list[dict[str, str]]:
    """The arcs of an SVG, which must be well-formed."""
    root = ElementTree.fromstring(path.read_text())
    return [dict(node.attrib) for node in root.iter() if node.get("class") == "attention"]


@given(n=st.integers(1, 7), top=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_strength_of_a_pair_is_its_mean_attention_in_both_directions(n: int, top: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n)).t()
    pairs = pairs[:, torch.randperm(n * n, generator=draw)]
    alpha = torch.rand(2, n * n, 3, generator=draw)
    naive: dict[tuple[int, int], float] = {}
    for (i, j), weight in zip(pairs.t().tolist(), alpha.mean(dim=(0, 2)).tolist(), strict=True):
        if i != j:
            naive[min(i, j), max(i, j)] = naive.get((min(i, j), max(i, j)), 0) + weight
    found, strength = strongest_pairs(pairs, alpha, top)
    best = sorted(naive.values(), reverse=True)[:top]
    assert strength.tolist() == pytest.approx(best)
    assert [naive[i, j] for i, j in found.t().tolist()] == pytest.approx(best)


def test_number_of_pairs_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="top is 0; it must be at least 1"):
        strongest_pairs(torch.zeros(2, 1).long(), torch.ones(1, 1, 1), 0)


BONDS = (
    torch.tensor([[1, 10, 3, 10, 4, 8, 1], [2, 11, 4, 12, 5, 9, 3]]),
    torch.tensor([0.2386, 0.2272, 0.2257, 0.2099, 0.2028, 0.2017, 0.1911]),
)


def three() -> tuple[Tensor, Tensor]:
    return torch.tensor([[0, 3, 7], [12, 5, 8]]), torch.tensor([0.9, 0.45, 0.0])


def test_svg_has_an_arc_for_each_pair_bolder_where_stronger(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    draw_molecule(tmp_path / "a.svg", ASPIRIN, *three())
    found = arcs(tmp_path / "a.svg")
    for name in ("stroke-width", "stroke-opacity"):
        strong, middle, weak = (float(arc[name]) for arc in found)
        assert strong > middle > weak > 0
    ends = [re.findall(r"[\d.]+,[\d.]+", arc["d"]) for arc in found]
    assert all(len(set(points)) == 3 for points in ends)  # from, bend, to


def test_arcs_differ_however_near_their_strengths_are(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    pairs = three()[0]
    for name, strength in (("far", [0.9, 0.45, 0.0]), ("near", [0.202, 0.201, 0.2]), ("same", [0.2] * 3)):
        draw_molecule(tmp_path / f"{name}.svg", ASPIRIN, pairs, torch.tensor(strength))
    widths = {
        path.stem: [float(arc["stroke-width"]) for arc in arcs(path)] for path in tmp_path.glob("*.svg")
    }
    assert widths["near"] == pytest.approx(widths["far"], abs=0.02)
    assert widths["near"][0] > 2 * widths["near"][2]
    assert widths["same"] == [widths["far"][0]] * 3


def test_each_arc_has_its_strength_beside_it_and_numbers_are_apart(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    draw_molecule(tmp_path / "a.svg", ASPIRIN, *BONDS)
    found, drawn = numbers(tmp_path / "a.svg"), arcs(tmp_path / "a.svg")
    assert [value for _, _, value in found] == [0.239, 0.227, 0.226, 0.21, 0.203, 0.202, 0.191]
    for (x, y, _), arc in zip(found, drawn, strict=True):
        points = [tuple(map(float, p.split(","))) for p in re.findall(r"[\d.]+,[\d.]+", arc["d"])]
        assert min(abs(x - u) + abs(y - v) for u, v in points) < 60
    for (x, y, _), (u, v, _) in combinations(found, 2):
        assert abs(x - u) > 36 or abs(y - v) > 13
    assert all(0 < x < 600 and 0 < y < 450 for x, y, _ in found)


@pytest.mark.parametrize(("strongest", "text"), [(0.2389, "0.239"), (0.00417, "0.00417"), (1.5, "1.50")])
def test_strengths_have_three_digits_of_the_strongest(tmp_path: Path, strongest: float, text: str) -> None:
    pytest.importorskip("rdkit")
    draw_molecule(tmp_path / "a.svg", ASPIRIN, torch.tensor([[0], [5]]), torch.tensor([strongest]))
    assert f">{text}</text>" in (tmp_path / "a.svg").read_text()


def test_png_shows_the_arcs(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    draw_molecule(tmp_path / "plain.png", ASPIRIN, legend="value 3.2")
    draw_molecule(tmp_path / "pairs.PNG", ASPIRIN, *three(), legend="value 3.2")
    plain, pairs = ((tmp_path / name).read_bytes() for name in ("plain.png", "pairs.PNG"))
    assert plain.startswith(b"\x89PNG")
    assert pairs.startswith(b"\x89PNG")
    assert plain != pairs


@pytest.mark.parametrize("smiles", ["C", "[Na+].[Cl-]", "C1CC1"])
def test_small_molecules_are_drawn(tmp_path: Path, smiles: str) -> None:
    pytest.importorskip("rdkit")
    atoms = read_smiles(smiles).GetNumAtoms()
    pairs = torch.combinations(torch.arange(atoms)).t()
    draw_molecule(tmp_path / "a.svg", smiles, pairs, torch.zeros(pairs.size(1)))
    assert len(arcs(tmp_path / "a.svg")) == pairs.size(1)


def test_bad_picture_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    with pytest.raises(UserError, match=r"its name must end in .svg or .png"):
        draw_molecule(tmp_path / "a.pdf", "C")
    with pytest.raises(UserError, match=r"'C\(' is no SMILES of a molecule"):
        draw_molecule(tmp_path / "a.svg", "C(")
    with pytest.raises(UserError, match="'' is a molecule without atoms"):
        draw_molecule(tmp_path / "a.svg", "")
    with pytest.raises(UserError, match="'CC' has 2 atoms, and atom 4 is to be drawn"):
        draw_molecule(tmp_path / "a.svg", "CC", torch.tensor([[0], [4]]), torch.ones(1))
    assert list(tmp_path.iterdir()) == []


def test_missing_rdkit_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "rdkit"]:
        monkeypatch.delitem(sys.modules, name)

    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name="rdkit")

    monkeypatch.setattr(chem.importlib, "import_module", absent)
    with pytest.raises(UserError) as caught:
        read_smiles("C")
    assert str(caught.value) == 'rdkit is not installed; pip install "graphkit[chem]"'
    with pytest.raises(ValueError, match="module is 'numpy'; it must be rdkit or one of its modules"):
        import_rdkit("numpy")
