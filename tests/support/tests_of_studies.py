"""What tests of studies share: folders of small images, a study of them, and a server in this process."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sr_models.io.images import write_image
from sr_models.study.crops import cut_crops, find_source
from sr_models.study.database import Database
from sr_models.study.serving import listen, make_server

#: Names that would be seen anywhere on a page.
METHODS = ("winner-of-all", "bicubic-cubed", "gan-of-doom")
IMAGES = 4


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders: truth, and one a method, of which the first is exact, the second dark and the third rough."""
    root = tmp_path_factory.mktemp("images")
    for name in ("truth", *METHODS):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :200]
    for index in range(IMAGES):
        wave = np.sin(rows / (5 + index)) + np.cos(columns / (7 + index))
        image = np.stack([60 + 25 * wave, 70 + 20 * wave, 80 - 25 * wave], axis=2).astype(np.uint8)
        noise = rng.integers(0, 120, image.shape, dtype=np.uint8)
        write_image(root / "truth" / f"0{index}.png", image)
        for method, shown in zip(METHODS, (image, image // 4, image + noise), strict=True):
            write_image(root / method / f"0{index}_sample000.png", shown)
    return root


@pytest.fixture
def study(folders: Path, tmp_path: Path) -> Iterator[Database]:
    source = find_source(folders / "truth", {name: folders / name for name in METHODS})
    with contextlib.closing(Database.create(tmp_path / "study.db", source.settings, cut_crops(source))) as database:
        yield database


@contextlib.contextmanager
def running(database: Database, *, port: int = 0, anyone: bool = True) -> Iterator[int]:
    """Serve a study in a thread of this process; yields the port."""
    with listen("127.0.0.1", port) as listener:
        server = make_server(database, listener, anyone=anyone)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


class Client:
    """One rater's HTTP client, which looks like a browser on the study's own page."""

    def __init__(self, port: int, name: str | None = None) -> None:
        self.port, self.address = port, ""
        if name is not None:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            status, headers, _ = self.request("POST", "/raters", f"name={name}".encode(), **form)
            assert status == 303
            self.address = headers["location"]

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Origin": f"http://127.0.0.1:{self.port}", **headers}
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()

    def task(self, number: int) -> dict[str, Any]:
        status, _, body = self.request("GET", f"{self.address}tasks/{number}")
        assert status == 200, body
        return json.loads(body)

    def answer(self, number: int, ranking: Any, revision: Any = 0) -> tuple[int, Any]:
        content = json.dumps({"ranking": ranking, "revision": revision}).encode()
        status, headers, body = self.request("POST", f"{self.address}tasks/{number}", content)
        return status, json.loads(body) if headers["content-type"] == "application/json" else body.decode()

    def picture(self, number: int, place: object, crop: int) -> bytes:
        status, _, body = self.request("GET", f"{self.address}images/{number}/{place}/{crop}.png")
        assert status == 200, body
        return body


@pytest.fixture
def client(study: Database) -> Iterator[Callable[..., Client]]:
    """Return a function that makes a client of a rater of a name; the study is served meanwhile."""
    with running(study) as port:
        yield lambda name=None: Client(port, name)
