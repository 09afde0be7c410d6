"""Fingerprints and boosted trees: what they read of molecules, what they learn, and what they refuse."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from graphkit.errors import UserError
from graphkit.models.fingerprint import Fingerprint, fingerprints
from graphkit.registry import MODELS

pytest.importorskip("rdkit")

ENDS = ("", "O", "N", "Cl", "(=O)O", "(C)C", "C#N", "OC")
# chains of 1 to 9 atoms of carbon, with a ring or without, and one of eight ends
MOLECULES = [f"{ring}{'C' * n}{end}" for ring in ("C", "c1ccccc1") for n in range(1, 10) for end in ENDS]
SMALL: dict[str, Any] = {"bits": 256, "trees": 40, "min_leaf": 3}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tables gain nothing from threads, of which scikit-learn uses as many as torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def carbons(smiles: list[str]) -> Tensor:
    return torch.tensor([[float(len(re.findall("C(?!l)|c", text)))] for text in smiles])


def oxygens(smiles: list[str]) -> Tensor:
    return torch.tensor([float("O" in text) for text in smiles])[:, None]


def build(targets: int = 1, seed: int = 0, **options: Any) -> Fingerprint:
    torch.manual_seed(seed)
    return Fingerprint(None, targets, **{**SMALL, **options})


TRAIN, TEST = [s for k, s in enumerate(MOLECULES) if k % 5 != 3], MOLECULES[3::5]


# --- Fingerprints ------------------------------------------------------------------------------------------


def test_counts_grow_with_fragments_and_bits_do_not() -> None:
    short, long = "CCO", "CCCCCCCCO"
    counts, bits = fingerprints([short, long]), fingerprints([short, long], counts=False)
    assert counts.dtype == bits.dtype == np.uint8
    assert counts.shape == bits.shape == (2, 2048)
    assert counts[1].max() > 3
    assert bits.max() == 1
    assert ((counts > 0) == bits).all()


def test_a_radius_of_zero_sees_atoms_alone() -> None:
    assert np.count_nonzero(fingerprints(["CCCCO"], radius=0)) == 3  # CH3, CH2 and OH
    assert np.count_nonzero(fingerprints(["CCCCO"], radius=2)) > 3


def test_a_molecule_gives_the_same_however_it_is_written() -> None:
    options = {"atom_pairs": True, "torsions": True, "paths": True}
    assert (fingerprints(["OCC(C)C#N"], **options) == fingerprints(["N#CC(C)CO"], **options)).all()


def test_further_fingerprints_and_descriptors_follow_the_first() -> None:
    smiles, plain = ["CCO", "c1ccccc1O"], fingerprints(["CCO", "c1ccccc1O"], bits=64)
    width = 64
    for name in ("atom_pairs", "torsions", "paths"):
        more = fingerprints(smiles, bits=64, **{name: True})
        assert more.shape == (2, 128)
        assert (more[:, :width] == plain).all()
    table = fingerprints(smiles, bits=64, descriptors=True)
    assert table.dtype == np.float32
    assert table.shape[1] > 200
    assert (table[:, :width] == plain).all()
    assert not np.isinf(table).any()


def test_molecules_of_old_data_sets_are_read_despite_their_valences() -> None:
    odd = "O=C1O[Al]23(OC1=O)(OC(=O)C(=O)O2)OC(=O)C(=O)O3"
    assert np.count_nonzero(fingerprints([odd], atom_pairs=True, torsions=True, paths=True)) > 10
    assert np.isfinite(fingerprints([odd], descriptors=True)[:, :2048]).all()


def test_what_is_no_molecule_is_refused() -> None:
    for text in ("C(", "", "not a molecule"):
        with pytest.raises(UserError):
            fingerprints(["CCO", text])


# --- Learning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error"])
def test_the_number_of_carbons_is_learnt(loss: str) -> None:
    model = build(loss=loss)
    assert not model.fitted
    model.fit(TRAIN, carbons(TRAIN), "regression")
    assert model.fitted
    predicted = model.predict(TEST)
    assert predicted.dtype == torch.float32
    assert predicted.shape == (len(TEST), 1)
    assert (predicted - carbons(TEST)).abs().mean() < 0.7


def test_labels_are_learnt_as_logits() -> None:
    model = build(2)
    y = torch.cat([oxygens(TRAIN), 1 - oxygens(TRAIN)], 1)
    model.fit(TRAIN, y, "binary")
    logits = model.predict(TEST)
    assert logits.shape == (len(TEST), 2)
    assert ((logits > 0) == torch.cat([oxygens(TEST), 1 - oxygens(TEST)], 1).bool()).float().mean() > 0.95
    torch.testing.assert_close(logits[:, 0], -logits[:, 1], atol=0.5, rtol=0.2)


def test_classes_are_learnt_and_those_not_seen_get_the_least_score() -> None:
    def classes(smiles: list[str]) -> Tensor:
        return torch.tensor([3 if "Cl" in s else 2 if "N" in s else 0 for s in smiles])

    model = build(5)
    model.fit(TRAIN, classes(TRAIN), "classes")
    scores = model.predict(TEST)
    assert scores.shape == (len(TEST), 5)
    assert (scores.argmax(1) == classes(TEST)).float().mean() > 0.95
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(len(TEST)))
    assert (scores[:, [1, 4]] < -20).all()


def test_two_classes_are_scored_like_many() -> None:
    model = build(2)
    model.fit(TRAIN, oxygens(TRAIN)[:, 0].long(), "classes")
    assert (model.predict(TEST).argmax(1) == oxygens(TEST)[:, 0]).float().mean() > 0.95


def test_unknown_labels_and_values_are_left_out() -> None:
    known = torch.arange(len(TRAIN)) % 3 > 0
    for kind, target in (("regression", carbons), ("binary", oxygens)):
        y = target(TRAIN)
        y[~known] = math.nan
        partial, without = build(), build()
        partial.fit(TRAIN, y, kind)
        without.fit([s for s, k in zip(TRAIN, known, strict=True) if k], y[known], kind)
        assert torch.isfinite(partial.predict(TEST)).all()
        torch.testing.assert_close(partial.predict(TEST), without.predict(TEST), atol=1e-4, rtol=1e-4)


def test_a_constant_target_is_predicted_as_it_is() -> None:
    model = build(2)
    model.fit(TRAIN, torch.cat([torch.full((len(TRAIN), 1), 2.5), carbons(TRAIN)], 1), "regression")
    assert (model.predict(TEST)[:, 0] == 2.5).all()
    assert model.predict(TEST)[:, 1].std() > 1


def test_a_constant_label_gets_the_logit_of_the_rule_of_succession() -> None:
    n, model = len(TRAIN), build(3)
    nothing = torch.full((n,), math.nan)
    model.fit(TRAIN, torch.stack([torch.zeros(n), torch.ones(n), nothing], 1), "binary")
    wanted = torch.tensor([-math.log(n + 1), math.log(n + 1), 0.0])
    torch.testing.assert_close(model.predict(TEST), wanted.expand(len(TEST), 3))


def test_a_single_class_is_predicted() -> None:
    model = build(3)
    model.fit(TRAIN, torch.ones(len(TRAIN), dtype=torch.int64), "classes")
    assert (model.predict(TEST).argmax(1) == 1).all()


def test_molecules_without_a_difference_give_the_mean() -> None:
    model = build()
    model.fit(["CCO"] * 6, torch.arange(6.0)[:, None], "regression")
    torch.testing.assert_close(model.predict(["CCO", "C"]), torch.full((2, 1), 2.5))


def test_columns_that_no_tree_can_split_change_nothing() -> None:
    model, y = build(), carbons(TRAIN)
    model.fit(TRAIN, y, "regression")
    assert 0 < model._kept.size < SMALL["bits"]
    from sklearn.ensemble import HistGradientBoostingRegressor

    trees = HistGradientBoostingRegressor(**model.boosting)
    trees.fit(fingerprints(TRAIN, bits=SMALL["bits"]), y[:, 0].numpy())
    wanted = trees.predict(fingerprints(TEST, bits=SMALL["bits"]))
    np.testing.assert_allclose(model.predict(TEST)[:, 0].numpy(), wanted, rtol=1e-5)


def test_the_seed_decides() -> None:
    def outcome(seed: int) -> Tensor:
        model = build(seed=seed, columns=0.3)
        model.fit(TRAIN, carbons(TRAIN), "regression")
        return model.predict(TEST)

    assert torch.equal(outcome(0), outcome(0))
    assert not torch.equal(outcome(0), outcome(1))


def test_fitting_and_predicting_draw_no_random_numbers() -> None:
    model, before = build(columns=0.3), torch.get_rng_state()
    model.fit(TRAIN, carbons(TRAIN), "regression")
    model(TEST)
    assert torch.equal(before, torch.get_rng_state())


def test_every_option_can_be_used() -> None:
    options = {
        "radius": 1,
        "counts": False,
        "atom_pairs": True,
        "torsions": True,
        "paths": True,
        "descriptors": True,
        "learning_rate": 0.3,
        "leaves": 4,
        "l2": 1.0,
        "columns": 0.5,
        "early_stopping": True,
        "trees": 5,
    }
    model = build(**options)
    model.fit(TRAIN, carbons(TRAIN), "regression")
    assert model.predict(TEST).std() > 0.5
    assert model.predict([]).shape == (0, 1)


# --- The rest ----------------------------------------------------------------------------------------------


def test_it_is_registered_for_graphs_and_has_nothing_to_train() -> None:
    assert MODELS.get("fingerprint").target is Fingerprint
    model = build()
    assert model.wants_smiles
    assert list(model.parameters()) == []
    assert model.state_dict() == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out_channels": None}, "no graph targets"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"radius": -1}, "radius is -1"),
        ({"bits": 0}, "bits is 0"),
        ({"trees": 0}, "trees is 0"),
        ({"min_leaf": 0}, "min_leaf is 0"),
        ({"leaves": 1}, "leaves is 1; it must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"l2": -1.0}, "l2 is -1.0"),
        ({"columns": 0.0}, r"columns is 0.0; it must lie in \(0, 1\]"),
        ({"loss": "huber"}, "loss is 'huber'; it must be one of squared_error, absolute_error"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fingerprint(**{"out_channels": 1, **options})


@pytest.mark.parametrize(
    ("y", "kind", "words"),
    [
        (torch.zeros(2, 1), "ranking", "kind is 'ranking'; it must be one of regression, binary, classes"),
        (torch.zeros(3, 1), "regression", r"y has shape \(3, 1\) for 2 molecules; it must be \(2, 1\)"),
        (torch.zeros(2, 1), "classes", r"it must be \(2,\)"),
        (torch.tensor([0, 4]), "classes", "y holds classes 0 to 4; known are 0 to 0"),
    ],
)
def test_targets_that_do_not_fit_are_refused(y: Tensor, kind: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build().fit(["C", "CC"], y, kind)


def test_prediction_needs_a_fit() -> None:
    with pytest.raises(UserError, match="must be fitted"):
        build().predict(["C"])
