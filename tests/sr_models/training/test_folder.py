"""A run folder belongs to one run, which may go on only as itself, and never begins anew unasked."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import FAILED, KILLED, count_calls, run_with_fault

from sr_models.training.config import TrainingConfig
from sr_models.training.folder import RunFolder

MakeConfig = Callable[..., TrainingConfig]


def content(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"w": torch.ones(3)}, "average": None, "optimizer": {}}


def start(output: Path | str, config: TrainingConfig, *, write: bool = True, **settings: Any) -> tuple[int, list[str]]:
    """Begin or go on for one step, as the training loop does; return the step and what the user is told."""
    with RunFolder(output, config, **{"fingerprint": "abc", **settings}) as folder:
        former = folder.checkpoints.newest()
        step = former["step"] if former else 0
        folder.record(step)
        if write:
            folder.checkpoints.write(content(step + 1))
        return step, folder.notes


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class TestGoingOn:
    def test_the_same_run_goes_on_without_a_word(self, config: MakeConfig, tmp_path: Path) -> None:
        assert [start(tmp_path / "a" / "run", config()) for _ in range(3)] == [(0, []), (1, []), (2, [])]
        assert set(files(tmp_path / "a" / "run")) == {
            *("training.json", "checkpoints/training.json", "checkpoints/last.ckpt", "checkpoints/previous.ckpt")
        }

    def test_the_record_tells_what_determined_the_run(self, config: MakeConfig, tmp_path: Path) -> None:
        start(tmp_path, config(), placement={"device": "cpu"}, data="3 images")
        start(tmp_path, config(lr=0.5), placement={"device": "cpu"}, data="3 images")
        record = json.loads((tmp_path / "training.json").read_text())
        assert record["settings"] == json.loads(json.dumps(config(lr=0.5).settings()))
        assert record["data"] == {"fingerprint": "abc", "summary": "3 images"}
        assert [entry["step"] for entry in record["history"]] == [0, 1]
        assert [entry["changes"] for entry in record["history"]] == [{}, {"lr": [1e-3, 0.5]}]
        assert {"time", "invflow", "torch", "python", "threads", "device"} <= set(record["history"][0])
        assert record["history"][0]["torch"] == torch.__version__
        assert (tmp_path / "training.json").read_bytes() == (tmp_path / "checkpoints" / "training.json").read_bytes()

    @pytest.mark.parametrize(
        ("name", "value"), [("lr", 0.5), ("steps", 20), ("save_every", 7), ("val_every", 9), ("gradient_clip", 1.5)]
    )
    def test_some_settings_may_change(self, config: MakeConfig, tmp_path: Path, name: str, value: float) -> None:
        start(tmp_path, config())
        former = config().settings()[name]
        note = f"the run goes on with other settings: {name} was {former!r}, now {value!r}"
        assert start(tmp_path, config(**{name: value})) == (1, [note])
        assert start(tmp_path, config(**{name: value})) == (2, [])

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("seed", 11),
            ("crop", 32),
            ("batch_size", 4),
            ("noise_std", 0.0),
            ("model", "srflow-da-s"),
            ("overrides", {}),
        ],
    )
    def test_the_others_make_it_another_run(self, config: MakeConfig, tmp_path: Path, name: str, value: Any) -> None:
        start(tmp_path, config())
        before = files(tmp_path)
        message = (
            rf"holds a run with other settings \(.*{name} was .*, now {re.escape(repr(value))}.*\); choose another"
        )
        with pytest.raises(ValueError, match=message):
            start(tmp_path, config(**{name: value}))
        assert files(tmp_path) == before

    def test_a_setting_of_a_later_version_had_its_default(self, config: MakeConfig, tmp_path: Path) -> None:
        start(tmp_path, config())
        record = json.loads((tmp_path / "training.json").read_text())
        del record["settings"]["seed"]
        (tmp_path / "training.json").write_text(json.dumps(record))
        assert start(tmp_path, config()) == (1, [])
        (tmp_path / "training.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match="seed was 10, now 11"):
            start(tmp_path, config(seed=11))
        record["settings"]["bygone"] = 3
        (tmp_path / "training.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match="bygone was 3, now None"):
            start(tmp_path, config())

    def test_versions_and_places_are_compared(self, config: MakeConfig, tmp_path: Path) -> None:
        start(tmp_path, config(), placement={"device": "cpu"})
        record = json.loads((tmp_path / "training.json").read_text())
        record["history"][-1]["torch"] = "1.0"
        (tmp_path / "training.json").write_text(json.dumps(record))
        step, (note,) = start(tmp_path, config(), placement={"device": "cuda"})
        assert step == 1
        assert note == (
            f"torch was '1.0', now {torch.__version__!r}, device was 'cpu', now 'cuda': results may differ in the last "
            "bits from those of an unbroken run"
        )
        assert start(tmp_path, config(), placement={"device": "cuda"}) == (2, [])


class TestPaths:
    def test_paths_of_data_may_change(self, config: MakeConfig, tmp_path: Path) -> None:
        start(tmp_path / "run", config(images="/a/b", val_images=None))
        step, (note,) = start(tmp_path / "run", config(images="/c", val_images="/d"))
        assert step == 1
        assert note == (
            "the run goes on with other settings: images was '/a/b', now '/c', val_images was None, now '/d'"
        )

    def test_another_spelling_is_no_change(
        self, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "link").symlink_to("in", target_is_directory=True)
        (tmp_path / "in").mkdir()
        spellings = [str(tmp_path / "in"), "in", "./in/", "~/in", "link", "in/../in"]
        for step, images in enumerate(spellings):
            assert start("run", config(images=images)) == (step, [])

    def test_a_file_of_weights_may_have_moved(self, config: MakeConfig, tmp_path: Path) -> None:
        start(tmp_path, config(encoder="/a/x.safetensors"))
        note = "encoder is now /b/x.safetensors, which is not read: the run began with /a/x.safetensors"
        assert start(tmp_path, config(encoder="/b/x.safetensors")) == (1, [note])
        assert start(tmp_path, config(encoder="/b/../a/x.safetensors")) == (2, [])
        for other in ("/b/y.safetensors", None):
            with pytest.raises(ValueError, match=r"encoder was '/\S+x.safetensors', now "):
                start(tmp_path, config(encoder=other))

    def test_the_home_folder_and_relative_paths(
        self, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "home").mkdir()
        monkeypatch.chdir(tmp_path)
        with RunFolder("~/runs/x", config(), fingerprint="abc") as folder:
            assert folder.path == tmp_path / "home" / "runs" / "x"
        with RunFolder("runs/../y", config(), fingerprint="abc") as folder:
            assert folder.path == tmp_path / "y"
            monkeypatch.chdir("/")
            folder.record(0)
        assert (tmp_path / "y" / "training.json").exists()
        with pytest.raises(ValueError, match=r"output ~nonesuch/x begins with an unknown user; write \./~nonesuch/x"):
            RunFolder("~nonesuch/x", config(), fingerprint="abc")

    def test_a_run_that_moves_goes_on(self, config: MakeConfig, tmp_path: Path) -> None:
        start(tmp_path / "a", config())
        shutil.move(tmp_path / "a", tmp_path / "b")
        assert start(tmp_path / "b", config()) == (1, [])

    @pytest.mark.parametrize("output", ["file", "file/run", "file/a/run"])
    def test_a_file_is_no_folder(self, config: MakeConfig, tmp_path: Path, output: str) -> None:
        (tmp_path / "file").write_text("")
        message = f"output {tmp_path / output} cannot be a folder: {tmp_path / 'file'} is a file"
        with pytest.raises(NotADirectoryError, match=message):
            start(tmp_path / output, config())


class TestData:
    def test_other_images_are_refused_and_the_difference_is_told(self, config: MakeConfig, tmp_path: Path) -> None:
        start(tmp_path, config(), data="3 images")
        before = files(tmp_path)
        for data, difference in (("4 images", "3 images then, 4 images now"), ("3 images", "names or sizes of files")):
            with pytest.raises(
                ValueError, match=rf"not those with which the run in .* began \({difference}.*other_data"
            ):
                start(tmp_path, config(), fingerprint="xyz", data=data)
        assert files(tmp_path) == before

    def test_they_are_accepted_by_a_word(self, config: MakeConfig, tmp_path: Path) -> None:
        start(tmp_path, config())
        step, (note,) = start(tmp_path, config(), fingerprint="xyz", resume="other_data")
        assert step == 1
        assert "the run goes on with other images" in note
        assert start(tmp_path, config(), fingerprint="xyz") == (2, [])
        with pytest.raises(ValueError, match="not those with which"):
            start(tmp_path, config())
        history = json.loads((tmp_path / "training.json").read_text())["history"]
        assert history[1]["changes"] == {"fingerprint": ["abc", "xyz"]}


class TestRefusals:
    def test_never_refuses_any_run(self, config: MakeConfig, tmp_path: Path) -> None:
        assert start(tmp_path / "run", config(), resume="never") == (0, [])
        for name in ("training.json", "checkpoints"):
            with pytest.raises(FileExistsError, match=r"holds a run and resume is 'never'; choose another folder"):
                start(tmp_path / "run", config(), resume="never")
            path = tmp_path / "run" / name
            path.unlink() if path.is_file() else shutil.rmtree(path)
        assert start(tmp_path / "run", config(), resume="never") == (0, [])

    def test_another_word_is_refused(self, config: MakeConfig, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="resume must be one of 'auto', 'never', 'other_data', got 'yes'"):
            start(tmp_path / "run", config(), resume="yes")
        assert not (tmp_path / "run").exists()

    def test_a_second_process_is_refused(self, config: MakeConfig, tmp_path: Path) -> None:
        with RunFolder(tmp_path / "run", config(), fingerprint="abc") as folder:
            before = files(folder.path)
            with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()} on"):
                start(tmp_path / "run", config())
            assert files(folder.path) == before
        assert not (tmp_path / "run").exists()

    def test_a_run_of_an_earlier_version(self, config: MakeConfig, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        torch.save({"pytorch-lightning_version": "2.6.6"}, tmp_path / "checkpoints" / "last.ckpt")
        (tmp_path / "training.json").write_text(json.dumps({"model": "srflow-da", "lr": 0.5}))
        with pytest.raises(
            ValueError, match=r"holds a run of an earlier version of sr_models, .* choose another folder"
        ):
            start(tmp_path, config())

    def test_a_run_of_a_later_version(self, config: MakeConfig, tmp_path: Path) -> None:
        start(tmp_path, config())
        (tmp_path / "training.json").write_text('{"format": 2}')
        with pytest.raises(ValueError, match=r"training.json has format 2 and this version of sr_models reads 1"):
            start(tmp_path, config())

    def test_nothing_is_left_of_a_run_that_did_not_begin(self, config: MakeConfig, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "a" / "b", config(), fingerprint="abc"):
            raise ZeroDivisionError
        assert os.listdir(tmp_path) == []
        (tmp_path / "a").mkdir()
        with RunFolder(tmp_path / "a" / "b", config(), fingerprint="abc"):
            pass
        assert os.listdir(tmp_path) == ["a"]
        # what others have put there in the meantime stays
        with RunFolder(tmp_path / "a" / "b", config(), fingerprint="abc") as folder:
            (folder.path / "notes.txt").write_text("mine")
        assert set(files(tmp_path)) == {"a/b/notes.txt"}


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda good: None,
    "empty": lambda good: b"",
    "truncated": lambda good: good[: len(good) // 2],
    "zeros": lambda good: bytes(len(good)),
    "no text": lambda good: b"\xff\xfe\x80",
    "a list": lambda good: b"[1]",
    "no settings": lambda good: good.replace(b'"settings"', b'"sittings"'),
    "odd history": lambda good: good.replace(b'"history"', b'"history": 3, "x"'),
}


class TestDamagedRecord:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_it_is_named_with_what_to_do_and_nothing_begins_anew(
        self, config: MakeConfig, tmp_path: Path, damage: str
    ) -> None:
        start(tmp_path, config())
        record, copy = tmp_path / "training.json", tmp_path / "checkpoints" / "training.json"
        bad = DAMAGES[damage](record.read_bytes())
        for path, remedy in ((record, rf"\(cp {copy} {record}\)"), (copy, "restore it from a backup")):
            path.unlink() if bad is None else path.write_bytes(bad)
            if path == copy and bad is not None:
                copy.unlink()
            before = files(tmp_path)
            with pytest.raises(
                ValueError, match=rf"{record} is (missing|damaged) .*{remedy}.*choose another"
            ) as raised:
                start(tmp_path, config(lr=0.5))
            assert "\n" not in str(raised.value)
            assert files(tmp_path) == before

    def test_the_remedy_works(self, config: MakeConfig, tmp_path: Path) -> None:
        start(tmp_path, config())
        os.truncate(tmp_path / "training.json", 0)
        with pytest.raises(ValueError, match="it is empty") as raised:
            start(tmp_path, config())
        command = re.search(r"\(cp (\S+) (\S+)\)", str(raised.value))
        assert command
        shutil.copy(*command.groups())
        assert start(tmp_path, config()) == (1, [])

    def test_a_damaged_one_alone_may_be_deleted(self, config: MakeConfig, tmp_path: Path) -> None:
        (tmp_path / "training.json").write_text("")
        with pytest.raises(ValueError, match=r"training.json is damaged \(it is empty\); delete it to begin anew, or"):
            start(tmp_path, config())

    @pytest.mark.parametrize("model", ["model.safetensors", "best.safetensors"])
    def test_a_finished_model_is_not_written_over(self, config: MakeConfig, tmp_path: Path, model: str) -> None:
        start(tmp_path, config())
        (tmp_path / model).write_bytes(b"weights")
        shutil.rmtree(tmp_path / "checkpoints")
        with pytest.raises(ValueError, match=rf"checkpoints of the run in .* are gone, .*moving {model} and"):
            start(tmp_path, config())
        (tmp_path / "training.json").unlink()
        with pytest.raises(ValueError, match=rf"training.json is missing beside {model}; restore it from a backup"):
            start(tmp_path, config())
        assert set(files(tmp_path)) == {model}

    def test_a_run_without_a_checkpoint_begins_at_step_0_and_it_is_said(
        self, config: MakeConfig, tmp_path: Path
    ) -> None:
        start(tmp_path, config(), write=False)
        note = f"the run in {tmp_path} has no checkpoint yet, so it begins at step 0"
        assert start(tmp_path, config(), write=False) == (0, [note])
        # the first validation may come before the first checkpoint
        (tmp_path / "best.safetensors").write_bytes(b"weights")
        assert start(tmp_path, config(), write=False) == (0, [note])


def test_leftovers_are_removed_at_the_next_start(config: MakeConfig, tmp_path: Path) -> None:
    start(tmp_path, config())
    before = files(tmp_path)
    leftovers = [tmp_path / f".{'0a' * 16}.tmp", tmp_path / "checkpoints" / f".{'f1' * 16}.tmp"]
    mine = tmp_path / ".mine.tmp"
    for path in (*leftovers, mine):
        path.write_bytes(b"12345")
    # not by a start that is refused
    with pytest.raises(ValueError, match="seed"):
        start(tmp_path, config(seed=11))
    assert all(path.exists() for path in leftovers)
    note = f"removed 10 bytes that a killed process left unfinished in {tmp_path}"
    assert start(tmp_path, config()) == (1, [note])
    assert set(files(tmp_path)) == {*before, "checkpoints/previous.ckpt", ".mine.tmp"}


@pytest.mark.parametrize(
    ("fault", "begun"), [("kill", False), ("power", False), ("EIO", False), ("kill", True), ("full", True)]
)
def test_a_fault_at_any_call_of_a_start_leaves_a_folder_that_goes_on(
    config: MakeConfig, tmp_path: Path, fault: str, begun: bool
) -> None:
    folder = tmp_path / "run"

    def restore() -> None:
        if folder.exists():
            shutil.rmtree(folder)
        if begun:
            start(folder, config())

    def action() -> None:
        start(folder, config(lr=0.5))

    restore()
    calls = count_calls(tmp_path, action)
    codes = []
    for number in range(calls + 1):
        restore()
        codes.append(run_with_fault(tmp_path, action, number, fault))
        step, _ = start(folder, config(lr=0.5))
        assert step in ((1, 2) if begun else (0, 1))
        assert set(files(folder)) <= {
            *("training.json", "checkpoints/training.json", "checkpoints/last.ckpt", "checkpoints/previous.ckpt")
        }
    assert codes[-1] == 0
    assert (KILLED if fault in ("kill", "power") else FAILED) in codes


def test_a_lock_file_that_cannot_be_written_is_named(config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(IsADirectoryError, match=r"\.lock"):
        start(tmp_path, config())
