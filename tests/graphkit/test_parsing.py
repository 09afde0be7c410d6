"""From names, files and flags to a complete configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from graphkit import recipes
from graphkit.config import RunConfig
from graphkit.errors import UserError
from graphkit.parsing import read_yaml, recipe_config, resolve
from graphkit.recipes import Recipe, find_recipe, matching_recipes, parse_recipe


def test_configuration_is_complete_without_file_or_flags() -> None:
    config = resolve("ncnc", "digits")
    assert (config.model_name, config.dataset_name, config.task_name) == ("ncnc", "digits", "link")
    assert config.model["depth"] == 1
    assert config.data["k"] == 8
    assert config.task["remove_targets"] is True
    assert config.seed == 0


def test_a_task_has_portions_of_its_own_until_a_recipe_file_or_flag_says_others(tmp_path: Path) -> None:
    def portions(*args: Any, **options: Any) -> tuple[int, int]:
        train = resolve(*args, **options).train
        return train.batch_size, train.eval_batch_size

    assert find_recipe("grit", "proteins") is None
    assert portions("grit", "proteins") == (32, 128)
    assert portions("grit", "zinc-full") == (256, 256)  # its recipe's
    assert portions("ncn", "digits", ["--train.batch_size", "7"])[0] == 7
    file = tmp_path / "run.yaml"
    file.write_text("train: {batch_size: 5}\n")
    assert portions("grit", "proteins", file=file) == (5, 128)


def test_what_the_data_and_the_run_decide_is_no_option() -> None:
    config = resolve("ncn", "digits")
    assert {"in_channels", "num_nodes"}.isdisjoint(config.model)
    assert {"root", "task", "seed"}.isdisjoint(config.data)
    assert {"benchmark", "seed", "batch_size", "eval_batch_size", "device"}.isdisjoint(config.task)


def test_data_set_without_a_name_is_that_of_the_first_recipe() -> None:
    assert resolve("ncn", None).dataset_name == recipes.default_recipe("ncn").dataset_name


def test_model_without_a_recipe_needs_a_data_set() -> None:
    with pytest.raises(UserError, match="'ncn-ablation' has no recipe, so name a data set with --dataset"):
        resolve("ncn-ablation", None)
    assert resolve("ncn-ablation", "digits").model["variant"] == "gae-cn"


def test_file_may_name_model_data_set_and_seed(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model_name: gae\ndataset_name: digits\nseed: 5\n")
    config = resolve(None, None, file=file)
    assert (config.model_name, config.dataset_name, config.seed) == ("gae", "digits", 5)
    config = resolve("ncn", "cora", file=file, seed=0)
    assert (config.model_name, config.dataset_name, config.seed) == ("ncn", "cora", 0)


def test_floats_may_be_written_as_people_do(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optim: {lr: 1e-3, weight_decay: 5e-4}\n")
    config = resolve("ncn", "digits", file=file)
    assert (config.optim.lr, config.optim.weight_decay) == (1e-3, 5e-4)
    assert resolve("ncn", "digits", ["--optim.lr", "2e-3"]).optim.lr == 2e-3


@pytest.mark.parametrize("flags", [["--optim.lr", "0.1"], ["--optim.lr=0.1"]])
def test_value_of_a_flag_stands_after_a_blank_or_an_equals_sign(flags: list[str]) -> None:
    assert resolve("ncn", "digits", flags).optim.lr == 0.1


def test_items_of_a_dictionary_are_set_one_by_one() -> None:
    recipe = find_recipe("ncnc", "cora").values["optim"]["group_lr"]
    config = resolve("ncnc", "cora", ["--optim.group_lr.encoder", "0.1"])
    assert config.optim.group_lr == {**recipe, "encoder": 0.1}
    config = resolve("ncnc", "digits", ["--optim.group_lr.encoder", "0.1"])
    assert config.optim.group_lr == {"encoder": 0.1}


def test_dictionary_may_be_given_whole() -> None:
    config = resolve("ncnc", "digits", ["--optim.group_lr", "{encoder: 0.1, predictor: 0.2}"])
    assert config.optim.group_lr == {"encoder": 0.1, "predictor": 0.2}


def test_item_of_a_dictionary_has_the_dictionarys_type() -> None:
    with pytest.raises(UserError, match="group_lr"):
        resolve("ncnc", "digits", ["--optim.group_lr.encoder", "fast"])


def test_optional_value_of_a_file_may_be_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: {patience: 3}\n")
    assert resolve("ncn", "digits", file=file).train.patience == 3
    assert resolve("ncn", "digits", ["--train.patience", "null"], file=file).train.patience is None


def test_resolved_configuration_resolves_to_itself(tmp_path: Path) -> None:
    config = resolve("ncnc", "cora", ["--optim.group_lr.encoder", "0.1", "--optim.clip_norm", "1"], seed=4)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert resolve(None, None, file=file) == config
    assert RunConfig.from_dict(config.to_dict()).hash() == config.hash()


def test_hash_tells_configurations_apart() -> None:
    first, other = resolve("ncn", "digits"), resolve("ncn", "digits", seed=1)
    assert first.hash() != other.hash()
    assert len(first.hash()) == 12


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.hiden_channels", "8"], "unknown option '--model.hiden_channels'; did you mean"),
        (["--model.hidden_channels", "wide"], "model.hidden_channels is 'wide'; it must be an integer"),
        (["--model.conv", "gat"], "model.conv is .*gat.*; it must be one of 'gcn'"),
        (["--model.jumping", "maybe"], "model.jumping is .*maybe.*; it must be true or false"),
        (["--optim.lr", "fast"], "optim.lr is 'fast'; it must be a number"),
        (["--optim.lr", "-1"], "optim.lr is -1.0; it must be at least 0"),
        (["--train.keep", "1"], "train.keep is 1; it must be at least 2"),
        (["--optim.momentum", "1"], r"optim.momentum is 1.0; it must be in \[0, 1\)"),
        (["--train.max_minutes", "0"], "train.max_minutes is 0.*; it must be positive"),
    ],
)
def test_bad_flag_is_named_with_its_value_and_what_is_allowed(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve("ncn", "digits", flags)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model": {"hiden_channels": 8}},
            "recipe ncn/digits: unknown key 'model.hiden_channels'; did you mean",
        ),
        ({"model": {"hidden_channels": "wide"}}, "recipe ncn/digits: model.hidden_channels is 'wide'"),
        ({"model": 8}, "recipe ncn/digits: 'model' must be a mapping, not 8"),
    ],
)
def test_bad_recipe_is_named(monkeypatch: pytest.MonkeyPatch, values: Any, message: str) -> None:
    recipe = Recipe("ncn", "digits", values)
    monkeypatch.setattr("graphkit.parsing.find_recipe", lambda model, dataset: recipe)
    with pytest.raises(UserError, match=message):
        recipe_config(recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {a: [", "recipe m/d is no valid YAML"),
        ("- a", "recipe m/d must be a mapping"),
        ("modell: {}", "recipe m/d: unknown key 'modell'; did you mean 'model'?"),
    ],
)
def test_recipe_that_is_no_recipe_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_recipe("m", "d", text)


def test_recipe_text_becomes_a_recipe() -> None:
    recipe = parse_recipe("m", "d", "default: true\nmodel: {a: 1}\ntrain:\nparameters: 7\nseeds: 3\n")
    assert recipe == Recipe("m", "d", {"model": {"a": 1}, "train": {}}, default=True, parameters=7, seeds=3)
    assert recipe.name == "m/d"
    assert parse_recipe("m", "d", "") == Recipe("m", "d", {})


def test_recipes_are_chosen_by_model_name_or_pattern() -> None:
    assert {recipe.model_name for recipe in matching_recipes(["ncn"])} == {"ncn"}
    assert [recipe.name for recipe in matching_recipes(["nc*/cora", "ncnc/cora"])] == [
        "ncn/cora",
        "ncnc/cora",
    ]
    with pytest.raises(UserError, match=r"no recipe 'ncn/corra'; did you mean 'ncn/cora'\?"):
        matching_recipes(["ncn/corra"])


# --- Groups of options inside a section --------------------------------------------------------------------


def embedding(file: Path | None = None, *flags: str, model: str = "tt-gnn", dataset: str = "digits") -> Any:
    return resolve(model, dataset, flags, file=file).model["embedding"]


def test_group_is_complete_without_file_or_flags() -> None:
    values = embedding(model="gcn")
    assert (values["kind"], values["dim"], values["rank"], values["row_factors"]) == ("dense", None, 16, None)
    values = embedding()  # of the recipe
    assert (values["kind"], values["dim"], values["rank"]) == ("tensor_train", 64, 8)


def test_flags_of_a_group_win_over_the_file_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {embedding: {dim: 32, std: 2e-1, row_factors: [13, 14, 10]}}\n")
    values = embedding(file, "--model.embedding.dim", "16", "--model.embedding.order=random")
    assert values["dim"] == 16  # flag over file
    assert values["std"] == 0.2  # file over recipe
    assert values["row_factors"] == [13, 14, 10]
    assert values["order"] == "random"
    assert values["rank"] == 8  # recipe over default
    assert values["num_cores"] == 3  # default
    assert resolve("tt-gnn", "digits", file=file).model["hidden_channels"] == 32  # beside the group


def test_optional_value_of_a_group_may_be_taken_back() -> None:
    assert embedding(None, "--model.embedding.std", "null")["std"] is None


@pytest.mark.parametrize(("text", "value"), [("4", 4), ("[4, 8]", [4, 8])])
def test_value_of_a_group_may_be_one_of_several_types(text: str, value: Any) -> None:
    assert embedding(None, "--model.embedding.rank", text)["rank"] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {embedding: {knd: dense}}",
            "unknown key 'model.embedding.knd'; did you mean 'model.embedding.kind'?",
        ),
        ("model: {embeding: {kind: dense}}", "unknown key 'model.embeding'; did you mean 'model.embedding"),
        ("model: {embedding: dense}", "unknown key 'model.embedding'"),
        (
            "model: {embedding: {kind: tensortrain}}",
            "model.embedding.kind is 'tensortrain'; it must be one of",
        ),
        ("model: {embedding: {dim: wide}}", "model.embedding.dim is 'wide'; it must be an integer or null"),
        ("model: {embedding: {kind: {a: 1}}}", "model.embedding.kind"),
    ],
)
def test_bad_value_of_a_group_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        embedding(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.embedding.knd", "dense"], "unknown option '--model.embedding.knd'; did you mean"),
        (["--model.embedding", "dense"], "unknown option '--model.embedding'"),
        (["--model.embedding.kind", "full"], "model.embedding.kind is 'full'; it must be one of 'dense'"),
        (["--model.embedding.dim", "wide"], "model.embedding.dim is 'wide'; it must be an integer or null"),
        (["--model.embedding.rank", "wide"], "rank is 'wide'; it must be an integer or a list of integers"),
        (["--model.embedding.row_factors", "[1.5]"], r"is '\[1.5\]'; it must be a list of integers or null"),
        (["--task.fanouts", "3"], "task.fanouts is '3'; it must be a list"),
    ],
)
def test_bad_flag_of_a_group_is_named(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        embedding(None, *flags)


def test_configuration_with_a_group_resolves_to_itself(tmp_path: Path) -> None:
    flags = ["--model.embedding.rank", "[4, 8]", "--model.embedding.order_seed", "3"]
    config = resolve("tt-gnn", "digits", flags, seed=2)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert resolve(None, None, file=file) == config
    assert RunConfig.from_dict(config.to_dict()).hash() == config.hash()


def test_link_models_have_the_group_too() -> None:
    values = embedding(None, "--model.embedding.kind", "hash", model="ncn")
    assert (values["kind"], values["dim"]) == ("hash", None)


def test_folder_in_place_of_a_configuration_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't read configuration file"):
        read_yaml(tmp_path)


def test_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="can't read configuration file"):
        read_yaml(tmp_path / "run.yaml")
