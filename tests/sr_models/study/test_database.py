"""The database of a study keeps every answer once, and refuses files that are none."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest

from sr_models.study.database import Database, OutdatedAnswer
from sr_models.study.settings import Settings

SETTINGS = Settings(("a", "b", "c"), ("x", "y"), ("0", "1", "2", "3"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Database.create(tmp_path / "study.db", SETTINGS, [(0, None, 0, b"truth"), (0, 1, 0, b"b's")]).close()
    return tmp_path / "study.db"


def test_a_study_is_opened_again(path: Path) -> None:
    with contextlib.closing(Database(path)) as study:
        anna = study.enter(" Anna  Maria ")
        assert study.store(anna.number, 1, [2, 0, 1], 0) == 1
    with contextlib.closing(Database(path, writable=False)) as study:
        assert study.settings == SETTINGS
        assert (study.crop(0, None, 0), study.crop(0, 1, 0)) == (b"truth", b"b's")
        assert study.raters() == [anna]
        assert anna.name == "Anna Maria"
        assert study.rater(anna.token) == anna
        assert study.rater("nonesuch") is None
        assert study.all_answers() == [(1, 1, (2, 0, 1))]
        with pytest.raises(ValueError, match="readonly"):
            study.store(anna.number, 0, [0, 1, 2], 0)


def test_a_study_is_read_where_nothing_can_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(Database(path)) as study:
        study.store(study.enter("anna").number, 1, [2, 0, 1], 0)
    with monkeypatch.context() as patch:
        # as on a read-only file system, where even files of SQLite's own would be an error
        patch.setattr("os.access", lambda *_: False)
        with contextlib.closing(Database(path, writable=False)) as study:
            assert study.all_answers() == [(1, 1, (2, 0, 1))]
            assert [file.name for file in path.parent.iterdir()] == ["study.db"]
    # a server may be writing: its log is read
    with contextlib.closing(Database(path)) as study:
        study.store(1, 0, [0, 1, 2], 0)
        monkeypatch.setattr("os.access", lambda *_: False)
        with contextlib.closing(Database(path, writable=False)) as reader:
            assert len(reader.all_answers()) == 2


def test_the_log_reaches_the_disk_before_an_answer_counts(path: Path) -> None:
    with contextlib.closing(Database(path)) as study:
        assert study._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert study._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_answers_come_twice_change_and_are_outdated(path: Path) -> None:
    with contextlib.closing(Database(path)) as study:
        rater = study.enter("anna").number
        assert [study.store(rater, 0, [0, 1, 2], 0) for _ in range(3)] == [1, 1, 1]
        with pytest.raises(OutdatedAnswer, match="another window"):
            study.store(rater, 0, [2, 1, 0], 0)
        assert study.store(rater, 0, [2, 1, 0], 1) == 2
        # the first answer once more, from a window that has not seen the second
        with pytest.raises(OutdatedAnswer):
            study.store(rater, 0, [0, 1, 2], 1)
        answer = study.answers(rater)[0]
        assert (answer.ranking, answer.revision) == ((2, 1, 0), 2)
        with pytest.raises(ValueError, match="must name each of 3 candidates once"):
            study.store(rater, 0, [0, 1, 1], 2)


def test_raters_enter_again_under_their_names(path: Path) -> None:
    with contextlib.closing(Database(path)) as study:
        anna, ben = study.enter("anna"), study.enter("ben", invited=True)
        assert study.enter("anna") == anna
        assert not anna.invited
        assert ben.invited
        assert study.enter("anna", invited=True).invited
        assert anna.token != ben.token
        for name in ("", "  ", "x" * 41, "a\0b"):
            with pytest.raises(ValueError, match="1 to 40 printable characters"):
                study.enter(name)


def test_threads_and_processes_share_a_study(path: Path) -> None:
    # two objects stand for two processes
    with contextlib.closing(Database(path)) as one, contextlib.closing(Database(path)) as other:
        raters = [one.enter(f"rater {number}").number for number in range(6)]
        threads = [
            threading.Thread(target=study.store, args=(rater, image, [1, 2, 0], 0))
            for rater in raters
            for study, image in ((one, 0), (other, 1), (other, 0))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.all_answers() == [(rater, image, (1, 2, 0)) for rater in raters for image in (0, 1)]


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def crops():
        yield 0, None, 0, b"truth"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Database.create(tmp_path / "study.db", SETTINGS, crops())
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused_and_left_alone(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE x (y)")
    text = tmp_path / "text.db"
    text.write_text("no database at all " * 100)
    (tmp_path / "empty.db").touch()
    for file in (other, text, tmp_path / "empty.db"):
        before = file.read_bytes()
        with pytest.raises(ValueError, match=f"{file.name} is not the database of a study; choose another --database"):
            Database(file)
        assert file.read_bytes() == before
        with pytest.raises(FileExistsError, match="exists already"):
            Database.create(file, SETTINGS, [])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(ValueError, match="is a study of version 7, this program's is 1"):
        Database(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Database(tmp_path / "nonesuch.db")
    with pytest.raises(ValueError, match=r"is a folder, must be a file such as study\.db"):
        Database(tmp_path)
    with pytest.raises(FileNotFoundError, match="folder of database"):
        Database.create(tmp_path / "nonesuch" / "study.db", SETTINGS, [])


def test_a_full_disk_stores_nothing_and_the_study_goes_on(path: Path) -> None:
    with contextlib.closing(Database(path)) as study:
        rater = study.enter("anna").number
        pages = study._connection.execute("PRAGMA page_count").fetchone()[0]
        study._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(ValueError, match="full"):
            [study.enter(f"{number:040d}") for number in range(1000)]
        study._connection.execute("PRAGMA max_page_count = 100000")
        assert study.store(rater, 0, [0, 1, 2], 0) == 1


@pytest.mark.parametrize("name", [b"an\nwers", b"an\xffwers"])
def test_the_text_of_a_damaged_file_stays_in_one_line(path: Path, name: bytes) -> None:
    """SQLite repeats in its message what stands in the file."""
    content = path.read_bytes().replace(b"answers", name)
    assert b"CREATE TABLE an" in content
    path.write_bytes(content.replace(b"CREATE TABLE an", b"CREATE TABLX an"))
    with pytest.raises(ValueError, match=path.name) as caught:
        Database(path)
    assert len(str(caught.value).splitlines()) == 1
