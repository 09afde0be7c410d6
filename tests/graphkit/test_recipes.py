"""Recipes and their variants: what a file says, what it takes over, and how one is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from graphkit import recipes
from graphkit.errors import UserError
from graphkit.parsing import recipe_config, resolve
from graphkit.recipes import (
    Recipe,
    all_recipes,
    default_recipe,
    find_recipe,
    matching_recipes,
    parse_recipe,
    recipe_file,
)

BASE = """
task_name: node
default: true
model: {conv: gcn, embedding: {kind: tensor_train, rank: 8}}
task: {fanouts: [4, 4]}
train: {epochs: 100}
seeds: 10
parameters: 7
expected: {metric: accuracy}
"""


# --- A variant lies over its data set's recipe -------------------------------------------------------------


def test_variant_differs_from_its_base_in_what_it_names() -> None:
    text = "model: {embedding: {rank: 16}}\ntask: {fanouts: [2]}\nparameters: 9\n"
    made = parse_recipe("m", "d@small", text, BASE)
    assert made == Recipe(
        "m",
        "d",
        {
            "model": {"conv": "gcn", "embedding": {"kind": "tensor_train", "rank": 16}},
            "task": {"fanouts": [2]},  # a list isn't merged
            "train": {"epochs": 100},
        },
        task_name="node",
        seeds=10,
        parameters=9,
        variant="small",
    )


def test_results_and_rank_of_a_base_are_its_own() -> None:
    made = parse_recipe("m", "d@same", "", BASE)
    assert (made.default, made.parameters, made.expected) == (False, None, {})
    assert made.values == parse_recipe("m", "d", BASE).values


def test_variant_may_add_sections_and_replace_a_mapping_by_a_value() -> None:
    made = parse_recipe("m", "d@x", "data: {k: 3}\nmodel: {embedding: null}\n", BASE)
    assert made.values["data"] == {"k": 3}
    assert made.values["model"] == {"conv": "gcn", "embedding": None}


def test_base_is_not_changed_by_its_variants() -> None:
    before = parse_recipe("m", "d", BASE)
    parse_recipe("m", "d@x", "model: {embedding: {rank: 1}}", BASE)
    assert parse_recipe("m", "d", BASE) == before


def test_name_of_a_variant_is_that_of_its_file() -> None:
    made = parse_recipe("m", "d@x", "", BASE)
    assert (made.name, made.dataset_name, made.variant) == ("m/d@x", "d", "x")
    assert parse_recipe("m", "d", BASE).name == "m/d"


def test_variant_without_a_base_is_refused() -> None:
    with pytest.raises(UserError, match="recipe m/d@x is a variant, and there is no recipe m/d"):
        parse_recipe("m", "d@x", "model: {}")


@pytest.mark.parametrize(
    ("text", "base", "message"),
    [
        ("modell: {}", BASE, "recipe m/d@x: unknown key 'modell'; did you mean 'model'?"),
        ("model: {}", "seed: 3", "recipe m/d: unknown key 'seed'; did you mean 'seeds'?"),
        ("- a", BASE, "recipe m/d@x must be a mapping"),
        ("model: {}", "- a", "recipe m/d must be a mapping"),
        ("model: {a: [", BASE, "recipe m/d@x is no valid YAML"),
    ],
)
def test_bad_file_is_named_be_it_the_variant_or_its_base(text: str, base: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe("m", "d@x", text, base)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Finding one -------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of recipes of its own."""
    for name, text in {
        "gcn/apple.yaml": "train: {epochs: 1}",
        "gcn/apple@big.yaml": "default: true\nmodel: {hidden_channels: 512}",
        "gcn/pear.yaml": "default: true",
        "gcn/notes.txt": "no recipe",
        "sage/apple.yaml": "",
        "sage/apple@a.b.yaml": "",
        "readme.yaml": "",
    }.items():
        (tmp_path / "recipes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "recipes" / name).write_text(text)
    monkeypatch.setattr(recipes.resources, "files", lambda package: tmp_path)
    all_recipes.cache_clear()
    yield tmp_path / "recipes"
    all_recipes.cache_clear()


def names(found: list[Recipe] | tuple[Recipe, ...]) -> list[str]:
    return [recipe.name for recipe in found]


def test_every_file_in_a_models_folder_is_a_recipe(shelf: Path) -> None:
    assert names(all_recipes()) == ["gcn/apple", "gcn/apple@big", "gcn/pear", "sage/apple", "sage/apple@a.b"]


def test_recipe_is_found_by_model_and_data_set(shelf: Path) -> None:
    assert find_recipe("gcn", "apple").values == {"train": {"epochs": 1}}
    assert find_recipe("gcn", "apple@big").values == {
        "train": {"epochs": 1},
        "model": {"hidden_channels": 512},
    }
    assert find_recipe("gcn", "plum") is None
    assert find_recipe("gcn", "pear@big") is None
    assert find_recipe("mlp", "apple") is None


def test_default_is_the_marked_one_or_the_first_and_never_a_variant(shelf: Path) -> None:
    assert default_recipe("gcn").name == "gcn/pear"
    assert default_recipe("sage").name == "sage/apple"
    assert default_recipe("mlp") is None


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["gcn"], ["gcn/apple", "gcn/apple@big", "gcn/pear"]),
        (["gcn/apple"], ["gcn/apple"]),
        (["gcn/apple@big"], ["gcn/apple@big"]),
        (["*/apple*"], ["gcn/apple", "gcn/apple@big", "sage/apple", "sage/apple@a.b"]),
        (["*/*@*"], ["gcn/apple@big", "sage/apple@a.b"]),
        (["gcn/pear", "gcn"], ["gcn/pear", "gcn/apple", "gcn/apple@big"]),
    ],
)
def test_patterns_choose_variants_too(shelf: Path, patterns: list[str], expected: list[str]) -> None:
    assert names(matching_recipes(patterns)) == expected


@pytest.mark.parametrize("pattern", ["gcn/apple@bgi", "gcn/appel", "gnc"])
def test_pattern_that_matches_nothing_is_refused(shelf: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=f"no recipe '{pattern}'"):
        matching_recipes(["sage", pattern])


def test_file_of_a_recipe_is_where_it_was_read(shelf: Path) -> None:
    for recipe in all_recipes():
        assert recipe_file(recipe).is_file()
    assert recipe_file(find_recipe("sage", "apple@a.b")) == shelf / "sage" / "apple@a.b.yaml"


# --- The package's own -------------------------------------------------------------------------------------


def test_recipes_have_the_values_of_their_files() -> None:
    for recipe in all_recipes():
        written = yaml.safe_load(recipe_file(recipe).read_text()) or {}
        assert recipe.parameters == written.get("parameters"), recipe.name
        assert recipe.expected == written.get("expected", {}), recipe.name
        assert find_recipe(recipe.model_name, recipe_file(recipe).stem) is recipe


@pytest.mark.parametrize("name", ["tt-gnn/cora@dense", "tt-gnn/ogbn-products@gat"])
def test_variant_is_resolved_by_its_name(name: str) -> None:
    (recipe,) = matching_recipes([name])
    config, plain = recipe_config(recipe), recipe_config(find_recipe("tt-gnn", recipe.dataset_name))
    assert (config.dataset_name, config.task_name) == (plain.dataset_name, plain.task_name)
    assert config.hash() != plain.hash()


def test_flags_lie_over_a_variant() -> None:
    config = resolve("tt-gnn", "cora@random", ["--model.embedding.rank", "3"])
    embedding = config.model["embedding"]
    assert (config.dataset_name, embedding["order"], embedding["rank"]) == ("cora", "random", 3)
    assert resolve("tt-gnn", "cora").model["embedding"]["order"] == "hierarchical"


def test_variant_may_stand_in_a_file_and_its_configuration_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model_name: tt-gnn\ndataset_name: cora@random\n")
    config = resolve(None, None, file=file)
    assert config == resolve("tt-gnn", "cora@random")
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert resolve(None, None, file=file) == config


@pytest.mark.parametrize("asked", ["cora@randm", "digits@nothing", "nothing@random"])
def test_variant_that_does_not_exist_is_refused(asked: str) -> None:
    with pytest.raises(UserError, match=f"model 'tt-gnn' has no recipe '{asked}'"):
        resolve("tt-gnn", asked)
