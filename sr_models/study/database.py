"""The database of a study: one file with the crops, the raters and their answers."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

from sr_models.io.json_text import parse_json
from sr_models.io.listing import one_line
from sr_models.study.settings import Settings

__all__ = ["Answer", "Database", "OutdatedAnswer", "Rater"]

#: Marks the file as a study's: "SRst".
_APPLICATION = 0x53527374
_VERSION = 1
_REFERENCE = -1
_SCHEMA = """
CREATE TABLE settings (json TEXT NOT NULL);
CREATE TABLE crops (image INTEGER, method INTEGER, crop INTEGER, png BLOB NOT NULL, PRIMARY KEY (image, method, crop));
CREATE TABLE raters (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT NOT NULL UNIQUE,
    invited INTEGER NOT NULL);
CREATE TABLE answers (
    rater INTEGER NOT NULL REFERENCES raters, image INTEGER NOT NULL, ranking TEXT NOT NULL,
    revision INTEGER NOT NULL, answered_at TEXT NOT NULL, PRIMARY KEY (rater, image)
);
"""
_LONGEST_NAME = 40


@dataclass(frozen=True)
class Rater:
    """Somebody who answers.

    Attributes:
        number: from 1; decides the orders that the rater sees.
        name: unique.
        token: secret part of the rater's address.
        invited: whether whoever runs the study has named the rater.
    """

    number: int
    name: str
    token: str
    invited: bool


@dataclass(frozen=True)
class Answer:
    """A rater's order of the methods of an image.

    Attributes:
        ranking: numbers of the methods, the best first.
        revision: 1, and one more with every change.
    """

    ranking: tuple[int, ...]
    revision: int


class OutdatedAnswer(ValueError):
    """The answer that was to be changed is no longer what the rater saw."""


class Database:
    """A study on disk. Every answer is on the disk when the method that stores it returns.

    One object serves all threads of a process, and several processes may use one file.

    Args:
        path: the file; it exists.
        writable: ``False``: only for reading, also while a server writes.

    Attributes:
        settings: what the study asks.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, or a file that is no study of this version.
    """

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = True) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"database {one_line(path)} is a folder, must be a file such as study.db")
        if not self.path.is_file():
            raise FileNotFoundError(f"database {one_line(path)} does not exist")
        self._lock = threading.Lock()
        self._connection = _connect(self.path, "rw" if writable else "ro")
        try:
            self.settings = self._settings()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        settings: Settings,
        crops: Iterable[tuple[int, int | None, int, bytes]],
    ) -> Database:
        """Write a new study; an interruption leaves no study.

        Args:
            path: the file, which does not exist.
            settings: what the study asks.
            crops: number of the image, number of the method (``None``: the reference), number of the crop, PNG file.

        Raises:
            FileNotFoundError: the folder does not exist.
            FileExistsError: there is a file already.
            ValueError: the disk is full.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"folder of database {one_line(path)} does not exist")
        if path.exists():
            raise FileExistsError(f"database {one_line(path)} exists already")
        with tempfile.TemporaryDirectory(prefix=".study-", dir=path.parent) as folder:
            unfinished = Path(folder) / "study.db"
            with _told(path), contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
                connection.executescript(_SCHEMA)
                with _transaction(connection):
                    connection.execute("INSERT INTO settings VALUES (?)", (settings.to_json(),))
                    connection.executemany(
                        "INSERT INTO crops VALUES (?, ?, ?, ?)",
                        ((image, _REFERENCE if method is None else method, *rest) for image, method, *rest in crops),
                    )
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            os.replace(unfinished, path)
        return cls(path)

    def close(self) -> None:
        """Close the file; what stands in its log goes into it."""
        with self._lock:
            self._connection.close()

    def crop(self, image: int, method: int | None, crop: int) -> bytes:
        """Return a crop, which exists, as a PNG file. Method ``None`` is the reference."""
        key = (image, _REFERENCE if method is None else method, crop)
        rows = self._read("SELECT png FROM crops WHERE image = ? AND method = ? AND crop = ?", key)
        return bytes(rows[0][0])

    def raters(self) -> list[Rater]:
        """Return all raters, in the order in which they came."""
        return [_rater(row) for row in self._read("SELECT number, name, token, invited FROM raters ORDER BY number")]

    def rater(self, token: str) -> Rater | None:
        """Return the rater with a token."""
        rows = self._read("SELECT number, name, token, invited FROM raters WHERE token = ?", (token,))
        return _rater(rows[0]) if rows else None

    def enter(self, name: str, *, invited: bool = False) -> Rater:
        """Return the rater of a name, who is new if nobody has the name.

        Args:
            name: the rater's.
            invited: whether whoever runs the study names the rater.

        Raises:
            ValueError: a name that is empty, too long or not printable.
        """
        name = " ".join(name.split())
        if not name.isprintable() or not 1 <= len(name) <= _LONGEST_NAME:
            raise ValueError(f"a rater's name must have 1 to {_LONGEST_NAME} printable characters, got {name!r}")
        with self._writing() as connection:
            token = secrets.token_urlsafe(16)
            connection.execute("INSERT OR IGNORE INTO raters (name, token, invited) VALUES (?, ?, 0)", (name, token))
            if invited:
                connection.execute("UPDATE raters SET invited = 1 WHERE name = ?", (name,))
            query = "SELECT number, name, token, invited FROM raters WHERE name = ?"
            row = connection.execute(query, (name,)).fetchone()
        return _rater(row)

    def answers(self, rater: int) -> dict[int, Answer]:
        """Return a rater's answers, by the number of the image."""
        rows = self._read("SELECT image, ranking, revision FROM answers WHERE rater = ?", (rater,))
        return {image: Answer(self._ranking(ranking), revision) for image, ranking, revision in rows}

    def store(self, rater: int, image: int, ranking: Sequence[int], revision: int) -> int:
        """Store an answer, or change one. What is there already is not stored again, however often it comes.

        Args:
            rater: number of the rater.
            image: number of the image.
            ranking: numbers of all methods, the best first.
            revision: that of the answer which the rater saw; 0: none.

        Returns:
            The revision of the answer that is stored.

        Raises:
            OutdatedAnswer: there is another answer with another revision.
            ValueError: no ranking of all methods, or the disk is full.
        """
        if sorted(ranking) != list(range(len(self.settings.methods))):
            raise ValueError(f"ranking must name each of {len(self.settings.methods)} candidates once, got {ranking}")
        text = json.dumps(list(ranking))
        with self._writing() as connection:
            key = (rater, image)
            query = "SELECT ranking, revision FROM answers WHERE rater = ? AND image = ?"
            former, stored = connection.execute(query, key).fetchone() or (None, 0)
            if former == text:
                return int(stored)
            if stored != revision:
                raise OutdatedAnswer("this image was answered in another window; its answer is shown now")
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", (*key, text, stored + 1, now))
        return int(stored) + 1

    def all_answers(self) -> list[tuple[int, int, tuple[int, ...]]]:
        """Return rater, image and ranking of every answer."""
        rows = self._read("SELECT rater, image, ranking FROM answers ORDER BY rater, image")
        return [(rater, image, self._ranking(ranking)) for rater, image, ranking in rows]

    def _settings(self) -> Settings:
        with _told(self.path):
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version != _VERSION:
                raise ValueError(
                    f"{one_line(self.path)} is a study of version {version}, this program's is {_VERSION}; "
                    f"choose another --database"
                )
            row = self._connection.execute("SELECT json FROM settings").fetchone()
        try:
            return Settings.from_json(row[0])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"database {one_line(self.path)} is damaged: its settings cannot be read") from error

    def _ranking(self, text: object) -> tuple[int, ...]:
        """Read the ranking of an answer, which is the number of every method once."""
        try:
            ranking = tuple(parse_json(text))  # type: ignore[arg-type]
            if sorted(ranking) == list(range(len(self.settings.methods))):
                return ranking
        except (TypeError, ValueError):
            pass
        raise ValueError(f"database {one_line(self.path)} is damaged: an answer cannot be read")

    def _read(self, query: str, values: Sequence[object] = ()) -> list[tuple]:
        with self._lock, _told(self.path):
            return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _told(self.path), _transaction(self._connection):
            yield self._connection


def _rater(row: tuple) -> Rater:
    number, name, token, invited = row
    return Rater(number, name, token, bool(invited))


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    with _told(path):
        uri = f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}"
        if mode == "ro" and not os.access(path.parent, os.W_OK) and not os.path.lexists(f"{path}-wal"):
            # where the reader cannot write files of its own, which it needs only beside a writer
            uri += "&immutable=1"
        connection = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            # the log reaches the disk before an answer counts as stored
            connection.execute("PRAGMA synchronous = FULL")
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            if application != _APPLICATION:
                raise ValueError(f"{one_line(path)} is not the database of a study; choose another --database")
            if mode != "ro":
                # readers, such as the results, and the writer do not wait for each other
                connection.execute("PRAGMA journal_mode = WAL")
        except BaseException:
            connection.close()
            raise
        return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # a full disk has rolled back already
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say which file an error of SQLite is about."""
    try:
        yield
    # messages of SQLite contain bytes of a damaged file, which may be no text
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if "not a database" in str(error):
            raise ValueError(f"{one_line(path)} is not the database of a study; choose another --database") from error
        # a damaged file brings its own text into the message
        raise ValueError(f"database {one_line(path)}: {one_line(str(error))}") from error
