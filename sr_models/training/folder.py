"""The folder of a training run: whose it is, which settings made it, and what may change when it goes on."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

import invflow
from sr_models.io.files import remove_leftovers, write_text
from sr_models.training.checkpoints import Checkpoints
from sr_models.training.config import TrainingConfig
from sr_models.training.lock import FolderLock

__all__ = ["RESUME", "RunFolder"]

#: Values of ``resume``.
RESUME = ("auto", "never", "other_data")
#: Version of training.json.
FORMAT = 1

#: Settings that may change when a run goes on. All others make it another run.
FREE = {entry.name for entry in fields(TrainingConfig) if entry.metadata.get("resume") == "free"}
#: Settings that are paths of data. Another spelling of the same path is no change.
_DATA_PATHS = {"images", "val_images", "lr_images", "val_lr_images"}
#: Settings that are files of weights, read when a run begins. They may have moved, but not been renamed.
_WEIGHT_FILES = {"encoder", "init_from"}


class RunFolder:
    """A folder that belongs to one training run, and to this process until it is closed.

    Use it in a ``with`` block. Nothing is written but a lock until :meth:`record` is called, which must happen before
    the first checkpoint. If it is never called, a folder that was made here is removed again.

    Args:
        output: the folder, made if needed; ``~`` is the home folder.
        config: settings of the run.
        fingerprint: of the training images.
        resume: ``auto`` begins a run, or goes on with the one in the folder. ``never`` refuses a folder with a run.
            ``other_data`` is ``auto``, but accepts images that are not those with which the run began.
        data: one line about the images, shown if they are not those with which the run began.
        placement: further facts that may change a result in its last bits, such as the device.

    Attributes:
        path: the folder, absolute.
        notes: what the user should be told.
        checkpoints: those of the run; their notes are in ``notes``.

    Raises:
        BlockingIOError: another process has the folder.
        FileExistsError: a run is in the folder and ``resume`` is ``never``.
        ValueError: another run is in the folder, or files that are damaged or missing.
        OSError: the folder cannot be made or written.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        config: TrainingConfig,
        *,
        fingerprint: str,
        resume: str = "auto",
        data: str = "",
        placement: Mapping[str, Any] | None = None,
    ) -> None:
        if resume not in RESUME:
            raise ValueError(f"resume must be one of {', '.join(map(repr, RESUME))}, got {resume!r}")
        self.path = _absolute(output)
        self._record_path = self.path / "training.json"
        self.checkpoints = Checkpoints(self.path / "checkpoints")
        self.notes = self.checkpoints.notes
        # through JSON, so that what is compared is what is stored
        self._settings = json.loads(json.dumps(config.settings()))
        self._data = {"fingerprint": fingerprint, "summary": data}
        self._where = {**_versions(), "threads": torch.get_num_threads(), **(placement or {})}
        self._changes: dict[str, list[Any]] = {}
        self._history: list[dict[str, Any]] = []
        self._made = _make(self.path)
        try:
            self._lock: FolderLock | None = FolderLock(self.path)
        except BaseException:
            self._unmake()
            raise
        try:
            self.notes += self._lock.notes
            self._open(resume)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes into the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            self._unmake()

    def record(self, step: int) -> None:
        """Write training.json: settings, data, and a line of history with versions and what has changed.

        A copy goes to the folder of the checkpoints.

        Args:
            step: finished training steps.
        """
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        self._history.append({"step": step, "time": time, **self._where, "changes": self._changes})
        self._changes = {}
        content = {"format": FORMAT, "settings": self._settings, "data": self._data, "history": self._history}
        text = json.dumps(content, indent=2)
        write_text(self._record_path, text)
        self._made = []
        self._copy.parent.mkdir(exist_ok=True)
        write_text(self._copy, text)

    @property
    def _copy(self) -> Path:
        return self.checkpoints.last.parent / "training.json"

    def _open(self, resume: str) -> None:
        """Compare the run in the folder with the one that is to go on."""
        models = [name for name in ("model.safetensors", "best.safetensors") if (self.path / name).exists()]
        traces = [*(["checkpoints"] if self.checkpoints.exist() else []), *models]
        if resume == "never" and (traces or self._record_path.exists()):
            raise FileExistsError(
                f"folder {self.path} holds a run and resume is 'never'; choose another folder, or go on with the run "
                "by resume 'auto'"
            )
        if self._record_path.exists():
            stored = self._read(bool(traces))
            self._history = stored["history"]
            self._compare_settings(stored["settings"])
            self._compare_data(stored["data"], resume)
            self._compare_versions()
            if "checkpoints" not in traces:
                self._begin_again(models)
        elif traces:
            raise ValueError(f"{self._record_path} is missing beside {traces[0]}; {self._remedy(bool(traces))}")
        if size := remove_leftovers(self.path) + remove_leftovers(self.checkpoints.last.parent):
            self.notes.append(f"removed {size} bytes that a killed process left unfinished in {self.path}")

    def _begin_again(self, models: list[str]) -> None:
        """Say that a run without checkpoints begins again, or raise if it has had some."""
        # the best weights may be older than the first checkpoint, but not than the copy of the record
        if "model.safetensors" in models or (models and not self._copy.exists()):
            raise ValueError(
                f"the checkpoints of the run in {self.path} are gone, so it cannot go on; choose another folder, "
                f"or begin anew here after moving {models[0]} and training.json elsewhere"
            )
        self.notes.append(f"the run in {self.path} has no checkpoint yet, so it begins at step 0")

    def _read(self, traces: bool) -> dict[str, Any]:
        try:
            stored = json.loads(self._record_path.read_bytes())
            if not isinstance(stored, dict):
                raise ValueError("no settings in it")
        except ValueError as error:
            reason = str(error) if self._record_path.stat().st_size else "it is empty"
            raise ValueError(f"{self._record_path} is damaged ({reason}); {self._remedy(traces)}") from error
        if "format" not in stored and "model" in stored:
            raise ValueError(
                f"folder {self.path} holds a run of an earlier version of sr_models, which this version cannot go on "
                "with; choose another folder, or finish the run with the version that began it"
            )
        if stored.get("format", FORMAT) != FORMAT:
            raise ValueError(
                f"{self._record_path} has format {stored['format']!r} and this version of sr_models reads {FORMAT}; go "
                "on with the version that wrote it"
            )
        for name, kind in (("settings", dict), ("data", dict), ("history", list)):
            if not isinstance(stored.get(name), kind):
                raise ValueError(f"{self._record_path} is damaged (no {name} in it); {self._remedy(traces)}")
        return stored

    def _remedy(self, traces: bool) -> str:
        if self._copy.exists():
            return f"put its copy in its place (cp {self._copy} {self._record_path}), or choose another folder"
        if traces:
            return "restore it from a backup, or choose another folder"
        return "delete it to begin anew, or choose another folder"

    def _compare_settings(self, former: dict[str, Any]) -> None:
        # a setting that came with a later version has had its default so far
        defaults = {
            entry.name: entry.default for entry in fields(TrainingConfig) if entry.default not in (None, MISSING)
        }
        given = self._settings
        former = {**{name: defaults.get(name, value) for name, value in given.items()}, **former}
        self._changes = {
            name: [value, given.get(name)]
            for name, value in former.items()
            if name not in given or not _same(name, value, given[name])
        }
        for name in _WEIGHT_FILES & set(self._changes):
            was, now = self._changes[name]
            if was and now and Path(was).name == Path(now).name:
                self.notes.append(f"{name} is now {now}, which is not read: the run began with {was}")
                given[name] = was
                del self._changes[name]
        refused = [name for name, change in self._changes.items() if not _may_change(name, change)]
        if refused:
            raise ValueError(
                f"folder {self.path} holds a run with other settings ({_listed(self._changes, refused)}); choose "
                "another folder, or give the settings of the run"
            )
        if self._changes:
            self.notes.append(f"the run goes on with other settings: {_listed(self._changes, list(self._changes))}")

    def _compare_data(self, former: dict[str, Any], resume: str) -> None:
        if former.get("fingerprint") == self._data["fingerprint"]:
            return
        difference = "names or sizes of files differ"
        if former.get("summary") and former["summary"] != self._data["summary"]:
            difference = f"{former['summary']} then, {self._data['summary']} now"
        if resume != "other_data":
            raise ValueError(
                f"the training images are not those with which the run in {self.path} began ({difference}); restore "
                "them, or go on with the new ones by resume 'other_data', or choose another folder"
            )
        self._changes["fingerprint"] = [former.get("fingerprint"), self._data["fingerprint"]]
        self.notes.append(f"the run goes on with other images ({difference}), so it no longer equals an unbroken one")

    def _compare_versions(self) -> None:
        former = self._history[-1] if self._history and isinstance(self._history[-1], dict) else {}
        moved = {name: [former[name], value] for name, value in self._where.items() if former.get(name, value) != value}
        if moved:
            self.notes.append(
                f"{_listed(moved, list(moved))}: results may differ in the last bits from those of an unbroken run"
            )

    def _unmake(self) -> None:
        """Remove the folders that were made here, as long as they are empty."""
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _absolute(output: str | os.PathLike[str]) -> Path:
    expanded = os.path.expanduser(output)
    if expanded.startswith("~"):
        raise ValueError(f"output {os.fspath(output)} begins with an unknown user; write ./{expanded} for such a name")
    return Path(os.path.abspath(expanded))


def _make(folder: Path) -> list[Path]:
    """Make a folder and return which ones had to be made, the innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(path for path in (folder, *folder.parents) if path.exists())
        raise NotADirectoryError(f"output {folder} cannot be a folder: {file} is a file") from None
    return made


def _versions() -> dict[str, str]:
    return {"invflow": invflow.__version__, "torch": torch.__version__, "python": platform.python_version()}


def _may_change(name: str, change: list[Any]) -> bool:
    # with low-resolution images, or without them, the data are others
    return name in FREE and not (name == "lr_images" and None in change)


def _same(name: str, former: Any, given: Any) -> bool:
    if former == given or not (isinstance(former, str) and isinstance(given, str)):
        return former == given
    paths = name in _DATA_PATHS | _WEIGHT_FILES
    return paths and _absolute(former).resolve() == _absolute(given).resolve()


def _listed(changes: Mapping[str, list[Any]], names: list[str]) -> str:
    return ", ".join(f"{name} was {changes[name][0]!r}, now {changes[name][1]!r}" for name in names)
