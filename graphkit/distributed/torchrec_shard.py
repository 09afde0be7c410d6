"""TorchRec and FBGEMM, imported where they are used, and a table sharded by them."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from graphkit.distributed.ranks import same_everywhere
from graphkit.errors import UserError

__all__ = ["RULES", "import_torchrec", "require_torchrec", "shard_table"]

RULES = {
    "sgd": ("EXACT_SGD", 0.0),
    "adagrad": ("EXACT_ADAGRAD", 1e-10),
    "rowwise_adagrad": ("EXACT_ROWWISE_ADAGRAD", 1e-8),
}
"""FBGEMM's name of each update rule, and the epsilon that graphkit's own has."""

_RESERVED = 0.15  # of the memory, for what isn't a table
_INSTALL = (
    "with torch 2.13, pip install --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0 (fbgemm-gpu for CUDA) and "
    "pip install tensordict torchmetrics==1.0.3 pyre-extensions tqdm"
)


def require_torchrec() -> None:
    """Raises unless TorchRec is there; it isn't imported.

    Raises:
        UserError: It isn't installed.
    """
    missing = [name for name in ("torchrec", "fbgemm_gpu") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"embedding.engine torchrec needs {' and '.join(missing)}: {_INSTALL}")


@cache
def import_torchrec() -> SimpleNamespace:
    """Imports TorchRec, which takes seconds, and returns what is used of it.

    Raises:
        UserError: It can't be imported; FBGEMM's libraries are made for one version of torch.
    """
    require_torchrec()
    names = {
        "fbgemm_gpu.split_embedding_configs": ["EmbOptimType"],
        "torchrec.distributed.comm_ops": ["set_gradient_division"],
        "torchrec.distributed.embedding": ["EmbeddingCollectionSharder"],
        "torchrec.distributed.planner": ["EmbeddingShardingPlanner", "ParameterConstraints", "Topology"],
        "torchrec.distributed.planner.storage_reservations": ["FixedPercentageStorageReservation"],
        "torchrec.distributed.planner.types": ["PlannerError"],
        "torchrec.distributed.types": ["ShardingEnv"],
        "torchrec.modules.embedding_configs": ["EmbeddingConfig"],
        "torchrec.modules.embedding_modules": ["EmbeddingCollection"],
        "torchrec.sparse.jagged_tensor": ["KeyedJaggedTensor"],
    }
    found: dict[str, Any] = {}
    with _quiet():
        try:
            for module, wanted in names.items():
                found |= {name: getattr(import_module(module), name) for name in wanted}
        except (ImportError, OSError, AttributeError) as error:
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"embedding.engine torchrec can't be imported ({told}): {_INSTALL}") from error
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    return SimpleNamespace(**found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps imports from warning of kernels that a build lacks, and from giving the root logger a handler."""
    root = logging.getLogger()
    before = list(root.handlers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            root.handlers[:] = before


def shard_table(
    rows: int,
    width: int,
    sharding: str,
    rule: str,
    device: torch.device,
    group: dist.ProcessGroup | None,
    widths: list[int],
) -> tuple[Any, str]:
    """Plans a table with TorchRec's planner and makes it, without values.

    Args:
        rows: Of the table.
        width: Likewise.
        sharding: ``row_wise``, whose rows must be a multiple of the ranks, ``column_wise`` or ``table_wise``.
        rule: See :data:`RULES`.
        device: Where its parts are held, or looked up from the host's memory.
        group: Of all ranks, which call this together.
        widths: How many columns each rank holds.

    Returns:
        The ``ShardedEmbeddingCollection``, with the one feature ``ids``, and its plan in words.

    Raises:
        UserError: The planner finds no room for it.
        RuntimeError: The planner's layout isn't the one that is known here before: rank by rank, in order.
    """
    tr, world = import_torchrec(), len(widths)
    tr.set_gradient_division(False)
    name, epsilon = RULES[rule]
    config = tr.EmbeddingConfig(name="table", embedding_dim=width, num_embeddings=rows, feature_names=["ids"])
    table = tr.EmbeddingCollection(tables=[config], device=torch.device("meta"))
    fused = {"optimizer": tr.EmbOptimType[name], "learning_rate": 0.0, "eps": epsilon}
    sharder = tr.EmbeddingCollectionSharder(fused_params=fused)
    kernels = ["fused"] if device.type == "cpu" else ["fused", "fused_uvm"]
    limits = {"sharding_types": [sharding], "compute_kernels": kernels, "min_partition": widths[0]}
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    with _quiet():
        planner = tr.EmbeddingShardingPlanner(
            topology=tr.Topology(
                world_size=world,
                compute_device=device.type,
                local_world_size=here,
                hbm_cap=torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0,
                ddr_cap=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // here,
            ),
            constraints={"table": tr.ParameterConstraints(**limits)},
            storage_reservation=tr.FixedPercentageStorageReservation(_RESERVED),
        )
        plan = None
        if dist.get_rank() == 0:
            with suppress(tr.PlannerError):
                plan = planner.plan(table, [sharder])
        plan = same_everywhere(plan)
        if plan is None:
            told = f"a table of {rows} x {width} has no room on {world} ranks, {sharding}"
            raise UserError(f"torchrec's planner: {told}")
        env = tr.ShardingEnv.from_process_group(group)
        chosen = plan.get_plan_for_module("")
        sharded = sharder.shard(table, chosen, env, device)
    places = [(part.placement.rank(), *part.shard_offsets) for part in chosen["table"].sharding_spec.shards]
    known = [(rank, 0, sum(widths[:rank])) for rank, columns in enumerate(widths) if columns]
    if sharding == "row_wise":
        known = [(rank, rank * (rows // world), 0) for rank in range(world)]
    if places != known:
        raise RuntimeError(f"TorchRec's planner put parts of the table at {places}, not {known}")
    return sharded, str(plan)
