"""Run folders: where a run keeps its configuration, log, checkpoints and result.

``runs/<model>-<dataset>/<YYYYmmdd-HHMMSS>-<seed>/`` holds::

    config.yaml      the complete configuration
    place.json       where the data lay and how many ranks there were; no part of the configuration
    metrics.jsonl    one line for each logged step, epoch and evaluation
    checkpoints/     see graphkit.train.checkpoint
    result.json      written once, at the end
    failures/        dumps of steps whose loss or gradient wasn't finite
    predictions/, curves.png
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml

from graphkit.config import RunConfig
from graphkit.environment import rank_and_world
from graphkit.errors import UserError
from graphkit.files import atomic_write, lock

__all__ = ["MAY_CHANGE", "Run", "check_same", "refuse_extension"]

MAY_CHANGE = (
    "train.epochs",
    "train.max_minutes",
    "train.checkpoint_every",
    "train.checkpoint_steps",
    "train.keep",
)
"""Keys that a stopped run may set anew; they decide how long it trains and what it keeps."""

_log = logging.getLogger("graphkit")


class Run:
    """One run's folder.

    Args:
        folder: The folder itself.
        config: The stored configuration.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.config = config

    @classmethod
    def create(
        cls,
        root: str | Path,
        config: RunConfig,
        data_root: str | Path | None = None,
        *,
        launch: Mapping[str, Any] | None = None,
    ) -> Run:
        """Makes a new folder under ``root`` and stores the configuration in it.

        Args:
            root: Folder of all runs.
            config: Complete.
            data_root: Folder of the data sets, for :attr:`data_root`; not stored if absent.
            launch: What tells it from runs of other jobs and of the same one, for :meth:`of_launch`.

        Raises:
            UserError: The folder can't be made.
        """
        parent = _parent(root, config)
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.seed}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for attempt in range(1000):
                folder = parent / (f"{stem}.{attempt}" if attempt else stem)
                try:
                    folder.mkdir()
                except FileExistsError:  # another run of the same second and seed
                    continue
                break
            else:
                raise UserError(f"no free name for a run in {parent}")
            run = cls(folder, config)
            run._write_config(config)
            data = None if data_root is None else str(Path(data_root).absolute())
            place = {"data_root": data, "launch": launch, "ranks": rank_and_world()[1]}
            atomic_write(folder / "place.json", json.dumps(place) + "\n")
        except OSError as error:
            raise UserError(f"can't make a run folder in {parent}: {error}") from error
        return run

    @classmethod
    def of_launch(cls, root: str | Path, config: RunConfig, launch: Mapping[str, Any]) -> Run | None:
        """Returns the run of this model, data set and ``launch`` that was made before, if any."""
        for place in sorted(_parent(root, config).glob("*/place.json"), reverse=True):
            try:
                if json.loads(place.read_text()).get("launch") == dict(launch):
                    return cls.open(place.parent)
            except (OSError, ValueError, AttributeError) as error:
                _log.warning("%s can't be read (%s)", place, error)
        return None

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Opens a run folder; given ``<model>-<dataset>``, the newest run in it.

        Raises:
            UserError: No run is there, or its configuration can't be read.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(f"{folder} is no run folder: it doesn't exist")
        if not (folder / "config.yaml").is_file():
            runs = [child for child in folder.iterdir() if (child / "config.yaml").is_file()]
            if not runs:
                raise UserError(f"{folder} is no run folder: it has no config.yaml, and no run is in it")
            newest = max(runs, key=lambda run: (run.name.split("-")[:2], run.stat().st_mtime_ns))
            _log.info("%s holds %d run(s); taking the newest, %s", folder, len(runs), newest.name)
            folder = newest
        return cls(folder, _read_config(folder / "config.yaml"))

    @property
    def name(self) -> str:
        """``<model>-<dataset>/<time>-<seed>``."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def data_root(self) -> Path | None:
        """The folder of the data sets that the run was made with; ``None`` where that wasn't stored.

        Raises:
            UserError: ``place.json`` can't be read.
        """
        place = self._place()
        root = place.get("data_root")
        return None if root is None else Path(root)

    @property
    def ranks(self) -> int:
        """The number of processes that it was begun with, which decides how large a global batch is.

        Raises:
            UserError: ``place.json`` can't be read.
        """
        return int(self._place().get("ranks", 1))

    def _place(self) -> dict[str, Any]:
        path = self.folder / "place.json"
        if not path.exists():
            return {}
        try:
            place: dict[str, Any] = json.loads(path.read_text())
            int(place.get("ranks", 1))
            Path(place.get("data_root") or "")
            return place
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"can't read {path} ({error}); delete it and name the data's folder") from error

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def failures(self) -> Path:
        return self.folder / "failures"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the log; a last line cut off by a crash is left out."""
        if not self.metrics_path.is_file():
            return []
        lines = []
        for line in self.metrics_path.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        return lines

    @property
    def result(self) -> dict[str, Any] | None:
        """The stored result, ``None`` while there is none.

        Raises:
            UserError: ``result.json`` can't be read.
        """
        path = self.folder / "result.json"
        if not path.exists():
            return None
        try:
            result: dict[str, Any] = json.loads(path.read_text())
            return result
        except (OSError, ValueError) as error:
            raise UserError(f"can't read {path} ({error}); delete it and resume the run") from error

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Stores the result, whole or not at all."""
        atomic_write(self.folder / "result.json", json.dumps(_jsonable(result), indent=1) + "\n")

    def check_same(self, config: RunConfig) -> None:
        """Refuses a configuration that contradicts the stored one.

        Raises:
            UserError: Names the first key that differs and both values.
        """
        check_same(self.config.to_dict(), config.to_dict(), str(self.folder))

    def adopt(self, config: RunConfig) -> None:
        """Stores what a resumed run sets anew, e.g. more epochs; the next resume finds it.

        A finished run keeps its configuration: nothing of :data:`MAY_CHANGE` could take effect any more.

        Raises:
            UserError: As :meth:`check_same`, or a finished run would have to go on.
        """
        self.check_same(config)
        if config == self.config:
            return
        before, now = self.config.train.epochs, config.train.epochs
        if self.result is not None:
            if before != now:
                refuse_extension(str(self.folder), self.result.get("epochs", before), now)
            return
        if before != now and config.optim.schedule != "constant":
            _log.warning(
                "train.epochs goes from %d to %d: the rest of the %s schedule is stretched over them",
                before,
                now,
                config.optim.schedule,
            )
        self._write_config(config)
        self.config = config

    def discard_if_empty(self) -> bool:
        """Removes the folder of a run that failed before it left anything: no log line, checkpoint or dump.

        For who made the run, after the failure. The folder above goes too if this was its only run.

        Returns:
            Whether it was removed.
        """
        try:
            with self.lock():
                if any(map(_worth_keeping, self.folder.iterdir())):
                    return False
                shutil.rmtree(self.folder)
        except (OSError, UserError) as error:
            _log.warning("%s was left: %s", self.folder, error)
            return False
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()
        return True

    def _write_config(self, config: RunConfig) -> None:
        text = yaml.safe_dump(_jsonable(config.to_dict()), sort_keys=False, allow_unicode=True)
        atomic_write(self.folder / "config.yaml", text)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for one process; the lock of a dead process counts for nothing.

        Raises:
            UserError: Another process uses the folder; names its id.
        """
        path = self.folder / "run.lock"
        with ExitStack() as stack:
            try:
                stack.enter_context(lock(path, timeout=0.0))
            except UserError as error:
                if "still holds" in str(error):
                    holder = path.read_text().strip() or "unknown"
                    message = f"run {self.folder} is in use by process {holder}; wait for it or end it"
                    raise UserError(message) from None
                if "cannot" in str(error):
                    raise
                _log.warning("%s; nothing keeps a second process out of this run", error)
            yield


def refuse_extension(where: str, epochs: int, wanted: int | None = None) -> NoReturn:
    """Refuses more or fewer epochs for a finished run: its test split has been looked at.

    Raises:
        UserError: Always.
    """
    now = f"; train.epochs can't become {wanted}" if wanted is not None else ""
    raise UserError(
        f"{where} is finished after {epochs} epochs, and test, which is looked at once, was looked at{now}: "
        "start a new run"
    )


def check_same(stored: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Compares two configurations in their plain form, :data:`MAY_CHANGE` left out.

    Args:
        stored: The configuration that counts.
        given: The one to compare.
        where: Whose configuration ``stored`` is, for the message.

    Raises:
        UserError: Names the first key that differs and both values.
    """
    ours, theirs = dict(_flat(_jsonable(stored))), dict(_flat(_jsonable(given)))
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        a, b = ours.get(key, "absent"), theirs.get(key, "absent")
        if a != b and key not in MAY_CHANGE:
            raise UserError(f"{key} is {a!r} in {where} and can't become {b!r}: start a new run for that")


def _worth_keeping(path: Path) -> bool:
    """Whether a part of a run's folder is more than what every run begins with."""
    if path.name in ("config.yaml", "place.json", "run.lock") or path.name.startswith("."):
        return False
    if path.name == "metrics.jsonl":
        return path.stat().st_size > 0
    if path.name == "checkpoints":
        return any(not child.name.startswith(".") for child in path.iterdir())
    return path.name != "tensorboard"  # it repeats the log


def _read_config(path: Path) -> RunConfig:
    try:
        values = yaml.safe_load(path.read_text())
        if not isinstance(values, dict):
            raise UserError("it holds no mapping")
        return RunConfig.from_dict(values)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"can't read the run's configuration {path}: {reason}") from error


def _jsonable(value: Any) -> Any:
    """What JSON makes of a value: tuples become lists, paths and the like strings."""
    return json.loads(json.dumps(value, default=str))


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not prefix):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _parent(root: str | Path, config: RunConfig) -> Path:
    """The folder of all runs of a model on a data set."""
    return Path(root) / f"{_plain(config.model_name)}-{_plain(config.dataset_name)}"


def _plain(name: str) -> str:
    """A registered name as part of a path."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
