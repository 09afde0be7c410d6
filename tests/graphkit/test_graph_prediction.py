"""Predictions for molecules and graphs: tables, from Python, and by models that are fitted at once."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.chem import SMILES_NAMES
from graphkit.config import RunConfig
from graphkit.data import Benchmark, DataSpec, load_dataset
from graphkit.errors import UserError
from graphkit.evaluation import GraphEvaluator
from graphkit.graphs import collate
from graphkit.inference import Predictor
from graphkit.nn.readout import pool
from graphkit.run import Run
from graphkit.tasks.graph import GraphTask
from graphkit.tasks.graph_prediction import read_molecules
from graphkit.train import Trainer

NAMES = ["C", "CC", "CCO", "N", "NN", "OCO", "CN", "O", "NCN", "CCCC"]
METRIC = {"regression": "mae", "binary": "rocauc", "classes": "accuracy"}
KINDS = list(METRIC)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def as_chain(smiles: str) -> Data:
    """A graph of as many nodes in a row as there are letters."""
    if not smiles.isalpha():
        raise UserError(f"'{smiles}' is no SMILES of a molecule")
    n = len(smiles)
    x = torch.tensor([[ord(c) / 100, 1.0] for c in smiles], dtype=torch.float64)
    return Data(x=x, edge_index=torch.stack([torch.arange(n - 1), torch.arange(1, n)]), num_nodes=n)


def task(kind: str = "regression", width: int = 2, per_node: bool = False, **changes: Any) -> GraphTask:
    """Ten chains, five of them for training."""
    data = collate([as_chain(name) for name in NAMES])
    rows = int(data.num_nodes) if per_node else len(NAMES)
    data.y = torch.arange(rows) % width
    if kind != "classes":
        data.y = (torch.arange(rows * width) // 3 % 2).view(rows, width).double()
        data.y[torch.arange(0, rows, 3), 0] = torch.nan
    splits = {"train": [8, 1, 5, 2, 0], "valid": [9, 3, 4, 5], "test": [7, 6, 2, 1]}
    made = {
        "name": "few",
        "task": "graph",
        "data": data,
        "splits": {name: {"index": torch.tensor(ids)} for name, ids in splits.items()},
        "spec": DataSpec(in_channels=2, out_channels=width),
        "metric": METRIC[kind],
        "maximize": kind != "regression",
        "evaluator": GraphEvaluator(kind, METRIC[kind]),  # type: ignore[arg-type]
        "targets": kind,
    }
    return GraphTask(Benchmark(**{**made, **changes}), 0, batch_size=4, eval_batch_size=3)


def molecules(kind: str = "regression", width: int = 2, **changes: Any) -> GraphTask:
    return task(kind, width, from_smiles=as_chain, smiles=NAMES, **changes)


class SumModel(nn.Module):
    """Adds up the nodes of a graph, or keeps them apart."""

    def __init__(self, width: int = 2, per_node: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.per_node, self.head = per_node, nn.Linear(2, width).double()

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Any, batch: Tensor, sizes: Tensor) -> Tensor:
        out: Tensor = self.head(x if self.per_node else pool(x, batch, sizes.numel()))
        return out


# --- Predictions -------------------------------------------------------------------------------------------


def predicted(graphs: GraphTask, net: nn.Module, *argv: str) -> tuple[list[str], list[list[str]]]:
    parser = argparse.ArgumentParser()
    GraphTask.add_predict_arguments(parser)
    return graphs.predict(net, parser.parse_args(list(argv)))


def opened(graphs: GraphTask, net: nn.Module, folder: Any) -> Predictor:
    config = RunConfig(model_name="sum", dataset_name="few", task_name="graph")
    return Predictor(Run(folder, config), graphs.benchmark, graphs, net)


def test_predictions_are_in_the_targets_unit() -> None:
    graphs, ids = task(), torch.tensor([3, 0, 7])
    assert graphs.standard is not None
    data = graphs.gather(ids)
    raw = SumModel()(data.x, data.edge_index, None, data.batch, data.sizes).detach()
    assert not torch.equal(graphs.outputs(SumModel(), ids), raw)
    torch.testing.assert_close(graphs.standard.apply(graphs.outputs(SumModel(), ids)), raw)
    assert torch.equal(graphs.outputs(SumModel(), ids), graphs.predictions(SumModel(), ids))


def test_output_of_another_shape_is_refused() -> None:
    graphs, nodes = task(), task(per_node=True)
    with pytest.raises(UserError, match=r"SumModel gives \[3, 3\] for 3 graphs of few; \[3, 2\] is needed"):
        graphs.loss(SumModel(3), graphs.batch(0, 0))
    with pytest.raises(UserError, match=r"nodes of few; \[6, 2\] is needed"):
        nodes.evaluate(SumModel(2), "test")


@pytest.mark.parametrize("kind", KINDS)
def test_values_or_probabilities_are_predicted(kind: str) -> None:
    graphs = molecules(kind)
    net = SumModel(graphs.width)
    out, found = graphs.outputs(net, torch.arange(4)), graphs.predictions(net, torch.arange(4))
    how = {"regression": lambda t: t, "binary": torch.sigmoid, "classes": lambda t: t.softmax(-1)}
    torch.testing.assert_close(found, how[kind](out))


def test_loaded_run_predicts_smiles_and_graphs(tmp_path: Any) -> None:
    graphs = molecules()
    predictor = opened(graphs, SumModel(graphs.width), tmp_path)
    several = predictor.predict(["CCO", "N", "CC"])
    assert several.shape == (3, 2)
    torch.testing.assert_close(predictor.predict("N"), several[1:2])
    torch.testing.assert_close(predictor.predict(as_chain("CCO")), several[:1])
    torch.testing.assert_close(predictor.predict([as_chain("CC"), "N"]), several[[2, 1]])
    assert predictor.predict([]).shape == (0, 2)
    with pytest.raises(UserError, match="'C!' is no SMILES"):
        predictor.predict(["C", "C!"])
    with pytest.raises(UserError, match="it can't classify nodes"):
        predictor.classify([0])


def test_table_of_molecules_has_a_column_for_each_target() -> None:
    graphs = molecules(target_names=["size", "colour"])
    net = SumModel(graphs.width)
    header, rows = predicted(graphs, net, "--smiles", "CCO", "N", "--smiles", "C")
    assert header == ["smiles", "size", "colour"]
    assert [row[0] for row in rows] == ["CCO", "N", "C"]
    values = torch.tensor([[float(cell) for cell in row[1:]] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(values, graphs.predictions(net, ["CCO", "N", "C"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "width", "columns"),
    [
        ("regression", 1, ["value"]),
        ("binary", 1, ["probability"]),
        ("binary", 2, ["probability 0", "probability 1"]),
        ("classes", 3, ["class", "0", "1", "2"]),
    ],
)
def test_targets_without_names_are_numbered(kind: str, width: int, columns: list[str]) -> None:
    graphs = molecules(kind, width=width)
    header, rows = predicted(graphs, SumModel(graphs.width), "--smiles", "CO")
    assert header == ["smiles", *columns]
    if kind == "classes":
        best = max(range(3), key=lambda k: float(rows[0][2 + k]))
        assert rows[0][1] == str(best)
        assert sum(map(float, rows[0][2:])) == pytest.approx(1, abs=1e-5)


def test_table_of_a_split_follows_its_order() -> None:
    graphs = molecules()
    net, index = SumModel(graphs.width), graphs.benchmark.splits["test"]["index"]
    header, rows = predicted(graphs, net, "--split", "test")
    assert header == ["graph", "smiles", "value 0", "value 1"]
    assert [int(row[0]) for row in rows] == index.tolist()
    assert [row[1] for row in rows] == [NAMES[k] for k in index.tolist()]
    assert predicted(task(), net, "--split", "valid")[0] == ["graph", "value 0", "value 1"]


def test_table_of_nodes_names_graph_and_node() -> None:
    graphs = task("classes", 3, per_node=True)
    header, rows = predicted(graphs, SumModel(3, True), "--split", "test")
    index = graphs.benchmark.splits["test"]["index"]
    assert header == ["graph", "node", "class", "0", "1", "2"]
    sizes = graphs.graphs.sizes(index).tolist()
    places = [[str(g), str(k)] for g, n in zip(index.tolist(), sizes, strict=True) for k in range(n)]
    assert [row[:2] for row in rows] == places


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("name,SMILES\na,CCO\nb,N\n", []),
        ("what\tname\nCCO\ta\nN\tb\n", ["--smiles-column", "what"]),
        ("smiles\n\nCCO\nN\n", []),
        ("CCO\nN\n", []),
        ("canonical_smiles;smiles\nx;CCO\ny;N\n", []),
        ("structure;name\nCCO;x\nN;y\n", []),
        ("Canonical SMILES,name\nCCO,x\nN,y\n", []),
        ("name,My Drug\na,CCO\nb,N\n", ["--smiles-column", "my-drug"]),
    ],
)
def test_molecules_of_a_table_are_predicted_in_order(tmp_path: Any, text: str, flags: list[str]) -> None:
    (tmp_path / "m.csv").write_text(text)
    _, rows = predicted(molecules(), SumModel(2), "--csv", str(tmp_path / "m.csv"), *flags)
    assert [row[0] for row in rows] == ["CCO", "N"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("smiles,drug\nN,CCO\n", "CCO"),
        ("smiles,Drug\nN,CCO\n", "CCO"),
        ("smiles,name\nN,CCO\n", "N"),
        ("N\nCCO\n", "N"),
    ],
)
def test_column_that_the_run_was_trained_with_comes_first(tmp_path: Any, text: str, found: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    trained = molecules(info={"smiles column": "drug"})
    _, rows = predicted(trained, SumModel(2), "--csv", str(tmp_path / "m.csv"))
    assert rows[0][0] == found


@pytest.mark.parametrize("name", SMILES_NAMES)
def test_training_and_prediction_take_the_same_columns_for_molecules(tmp_path: Any, name: str) -> None:
    pytest.importorskip("rdkit")
    path = tmp_path / "m.csv"
    names = [f"{'C' * n}O" for n in range(12)]
    path.write_text("\n".join([f"y,{name.upper()}", *(f"{n},{text}" for n, text in enumerate(names))]) + "\n")
    benchmark = load_dataset("smiles-csv", root=tmp_path, file=str(path), split="random")
    assert [molecule.smiles for molecule in read_molecules(path)] == list(benchmark.smiles or []) == names


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("smiles,a\nCCO,1\nC!,2\n", [], r"m\.csv, line 3: 'C!' is no SMILES of a molecule"),
        ("a,smiles\n1,CCO\n2,\n", [], r"m\.csv, line 3: there is no molecule in column 2"),
        ("a,b\n1,CCO\n", [], "which column holds SMILES? name one with --smiles-column: a, b"),
        ("smiles,b\nN,CCO\n", ["--smiles-column", "smile"], "has no column 'smile'; did you mean 'smiles'"),
        ("Mol,mol\nN,CCO\n", ["--smiles-column", "MOL"], "has 2 columns 'MOL'"),
        ("smiles\n", [], "holds no molecule"),
        ("", [], "is empty"),
    ],
)
def test_bad_table_of_molecules_is_refused(tmp_path: Any, text: str, flags: list[str], message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        predicted(molecules(), SumModel(2), "--csv", str(tmp_path / "m.csv"), *flags)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give one of --smiles SMILES, --csv FILE and --split SPLIT"),
        (["--smiles", "C", "--split", "test"], "give one of --smiles"),
        (["--smiles", "C", "--smiles-column", "a"], "--smiles-column goes with --csv"),
        (["--split", "tets"], "can't be evaluated on split 'tets'"),
        (["--split", "test", "--draw", "a.svg"], "--draw takes one molecule"),
        (["--smiles", "C", "N", "--draw", "a.svg"], "--draw takes one molecule, and there are 2"),
        (["--smiles", "C", "--draw", "a.svg"], "SumModel has no attention between pairs of nodes to draw"),
        (["--smiles", "C", "--draw", "a.svg", "--draw-pairs", "0"], "--draw-pairs is 0"),
        (["--smiles", "C?"], "--smiles: 'C.' is no SMILES"),
    ],
)
def test_bad_request_for_a_prediction_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        predicted(molecules(), SumModel(2), *argv)


def test_data_set_without_molecules_takes_no_smiles() -> None:
    with pytest.raises(UserError, match="few isn't made of molecules; it takes no SMILES"):
        predicted(task(), SumModel(2), "--smiles", "C")
    with pytest.raises(UserError, match="few has targets of nodes, not of molecules; use --split"):
        predicted(task(per_node=True), SumModel(2, True), "--smiles", "C")


# --- Models that are fitted at once ------------------------------------------------------------------------


class LengthModel(nn.Module):
    """Predicts the mean of the training targets, shifted by the number of letters."""

    wants_smiles = True

    def __init__(self) -> None:
        super().__init__()
        self.fits: list[tuple[list[str], str, float]] = []

    def fit(self, smiles: Sequence[str], y: Tensor, kind: str) -> None:
        self.fits.append((list(smiles), kind, float(torch.rand(()))))
        self.mean = y.nanmean(0) if y.is_floating_point() else torch.zeros(2)

    def predict(self, smiles: Sequence[str]) -> Tensor:
        return torch.stack([self.mean + len(s) for s in smiles])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:all .* scores are")
def test_model_of_smiles_is_fitted_once_to_the_training_split(kind: str) -> None:
    graphs, net = molecules(kind), LengthModel()
    graphs.check(net)
    before = torch.get_rng_state()
    graphs.evaluate(net, "valid")
    graphs.evaluate(net, "test")
    assert torch.equal(before, torch.get_rng_state())
    ((smiles, given_kind, drawn),) = net.fits
    assert given_kind == kind
    assert smiles == [NAMES[k] for k in graphs.train_index.tolist()]
    other = LengthModel()
    graphs.evaluate(other, "test")
    assert other.fits[0][2] == drawn  # its random numbers are the run's


def test_model_of_smiles_predicts_molecules_in_the_targets_unit() -> None:
    pytest.importorskip("rdkit")
    graphs, net = molecules(), LengthModel()
    header, rows = predicted(graphs, net, "--smiles", "CCO", "N")
    assert header == ["smiles", "value 0", "value 1"]
    assert float(rows[0][1]) - float(rows[1][1]) == pytest.approx(2, abs=1e-4)
    assert float(rows[1][1]) == pytest.approx(float(net.mean[0]) + 1, abs=1e-4)
    with pytest.raises(UserError, match=r"--smiles: 'C\(' is no SMILES of a molecule"):
        predicted(graphs, net, "--smiles", "C(")
    with pytest.raises(UserError, match="LengthModel predicts from SMILES alone"):
        graphs.predictions(net, [as_chain("CC")])


def test_model_of_smiles_runs_through_the_trainer() -> None:
    config = RunConfig(model_name="length", dataset_name="few", task_name="graph")
    graphs = molecules()
    result = Trainer(LengthModel(), graphs, config).fit()
    assert (result.parameters, result.epochs) == (0, 0)
    assert result.test == graphs.evaluate(LengthModel(), "test")


def test_model_of_smiles_is_refused_without_them_or_without_its_methods() -> None:
    class Reader(nn.Module):
        wants_smiles = True

    with pytest.raises(UserError, match="LengthModel reads molecules, and few has no SMILES"):
        task().check(LengthModel())
    with pytest.raises(UserError, match="Reader wants SMILES: it must have fit and predict"):
        molecules().check(Reader())
