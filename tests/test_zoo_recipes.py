"""What holds for every recipe, and for every registered model by its signature and documentation."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest
from torch import nn

from graphkit.data import DataSpec
from graphkit.experiment import build_model, sizes_from_data
from graphkit.parsing import recipe_config
from graphkit.recipes import Recipe, all_recipes, default_recipe
from graphkit.registry import DATASETS, MODELS

ATOMS, BONDS = (119, 5, 12, 12, 10, 6, 6, 2, 2), (5, 6, 2)


def molecules(targets: int) -> DataSpec:
    """OGB's features of atoms and bonds."""
    return DataSpec(out_channels=targets, node_categories=ATOMS, edge_categories=BONDS)


SPECS = {
    "cora": DataSpec(num_nodes=2708, in_channels=1433, num_classes=7),
    "citeseer": DataSpec(num_nodes=3327, in_channels=3703, num_classes=6),
    "pubmed": DataSpec(num_nodes=19717, in_channels=500, num_classes=3),
    "digits": DataSpec(num_nodes=1797, in_channels=64, num_classes=10),
    "ogbn-arxiv": DataSpec(num_nodes=169343, in_channels=128, num_classes=40),
    "ogbn-products": DataSpec(num_nodes=2449029, in_channels=100, num_classes=47),
    "ogbn-papers100M": DataSpec(num_nodes=111059956, in_channels=128, num_classes=172),
    "nci-tpsa": molecules(1),
    "ogbg-molesol": molecules(1),
    "ogbg-molfreesolv": molecules(1),
    "ogbg-molhiv": molecules(1),
    "pcqm4mv2": molecules(1),
    "peptides-func": molecules(10),
    "peptides-struct": molecules(11),
    "zinc": DataSpec(out_channels=1, node_categories=(21,), edge_categories=(4,)),
    "zinc-full": DataSpec(out_channels=1, node_categories=(28,), edge_categories=(4,)),
    "csl": DataSpec(out_channels=10),
    "digits-graphs": DataSpec(out_channels=10, in_channels=3, edge_channels=1),
    "mnist-superpixels": DataSpec(out_channels=10, in_channels=3, edge_channels=1),
    "cifar10-superpixels": DataSpec(out_channels=10, in_channels=5, edge_channels=1),
    "pattern": DataSpec(out_channels=1, in_channels=3),
    "cluster": DataSpec(out_channels=6, in_channels=7),
    "rcc8": DataSpec(num_relations=8),
    "interval": DataSpec(num_relations=13),
    "clutrr": DataSpec(num_relations=20),
    "wn18rr-v1": DataSpec(num_relations=9),
    "wn18rr-v2": DataSpec(num_relations=10),
    "fb15k237-v1": DataSpec(num_relations=180),
    "countries": DataSpec(num_relations=8, text_channels=256),
    **{f"metaqa-{hop}": DataSpec(num_relations=9, text_channels=384) for hop in (1, 2, 3)},
}
"""Sizes of the data sets that have recipes; a new one needs a row."""

WITHOUT_RECIPE = {
    "ncn-ablation": "a table of variants of ncn, run with ncn's settings; none is a model to recommend",
}


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda recipe: recipe.name)
def test_recipe_builds_its_model_with_the_stated_number_of_parameters(recipe: Recipe) -> None:
    config = recipe_config(recipe)
    assert (config.model_name, config.dataset_name) == (recipe.model_name, recipe.dataset_name)
    assert recipe.dataset_name in SPECS, f"SPECS has no row for {recipe.dataset_name}"
    model = build_model(config, SPECS[recipe.dataset_name])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == recipe.parameters


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda recipe: recipe.name)
def test_recipe_changes_only_what_it_names(recipe: Recipe) -> None:
    def agrees(found: Any, wanted: Any) -> bool:
        if isinstance(wanted, dict) and isinstance(found, dict):
            return all(agrees(found[key], value) for key, value in wanted.items())
        return bool(found == wanted)

    config = recipe_config(recipe).to_dict()
    for section, values in recipe.values.items():
        for key, value in values.items():
            assert agrees(config[section][key], value), f"{section}.{key}"


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda recipe: recipe.name)
def test_published_result_of_a_recipe_names_its_source(recipe: Recipe) -> None:
    published = recipe.expected.get("paper")
    if published is not None:
        assert recipe.expected["metric"]
        assert published["source"]
        assert published.get("std", 0) >= 0


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda recipe: recipe.name)
def test_recipe_belongs_to_a_registered_model_and_data_set(recipe: Recipe) -> None:
    assert recipe.model_name in MODELS
    assert recipe.dataset_name in DATASETS


@pytest.mark.parametrize("name", MODELS.names())
def test_model_has_a_recipe_or_a_reason_for_having_none(name: str) -> None:
    assert (default_recipe(name) is None) == (name in WITHOUT_RECIPE)


@pytest.mark.parametrize("name", sorted({recipe.model_name for recipe in all_recipes()}))
def test_one_recipe_at_most_is_a_models_default(name: str) -> None:
    assert sum(recipe.default for recipe in all_recipes() if recipe.model_name == name) <= 1


@pytest.mark.parametrize("name", MODELS.names())
def test_docstring_names_the_paper(name: str) -> None:
    entry = MODELS.get(name)
    kind, _, identifier = entry.paper.partition(":")
    assert kind in ("arXiv", "doi")
    text = f"{sys.modules[entry.target.__module__].__doc__} {entry.target.__doc__}"
    assert identifier in text


@pytest.mark.parametrize("name", MODELS.names())
def test_docstring_documents_every_parameter(name: str) -> None:
    target = MODELS.get(name).target
    own = [p for p in inspect.signature(target).parameters.values() if p.kind is not p.VAR_KEYWORD]
    if target.__init__ is nn.Module.__init__:
        own = []
    text = MODELS.get(name).documentation
    assert [p.name for p in own if f"    {p.name}: " not in text and p.name != "args"] == []


@pytest.mark.parametrize("name", MODELS.names())
def test_what_the_data_does_not_decide_is_keyword_only_with_a_default(name: str) -> None:
    entry = MODELS.get(name)
    for parameter in inspect.signature(entry.target).parameters.values():
        if parameter.name in sizes_from_data(entry) or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        assert parameter.kind is parameter.KEYWORD_ONLY, parameter.name
        assert parameter.default is not parameter.empty, parameter.name
