"""The pages of a study, as HTTP clients see them: blind, closed to strangers, and safe against repetition."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests_of_studies import METHODS, Client, running

from sr_models.study.database import Database
from sr_models.study.guard import MAX_BODY
from sr_models.study.settings import image_order, method_order

NewClient = Callable[..., Client]


def test_nothing_names_a_method(client: NewClient, study: Database) -> None:
    anna, seen = client("anna"), []
    for path in ("/", "/study.js", "/study.css", anna.address, f"{anna.address}tasks/0"):
        status, headers, body = anna.request("GET", path)
        assert status == 200
        seen.append(f"{headers}{body.decode()}")
    seen.append(json.dumps(anna.answer(0, [2, 0, 1])))
    text = "".join(seen).lower()
    assert not [
        word for name in (*METHODS, "truth") for word in (name, *name.split("-")) if len(word) > 3 and word in text
    ]
    sizes = {
        len(anna.picture(task, place, crop)) for task in (0, 1) for place in ("reference", 0, 1, 2) for crop in (0, 1)
    }
    assert len(sizes) == 1


def test_an_answer_is_stored_for_the_methods_that_were_shown(client: NewClient, study: Database) -> None:
    anna = client("anna")
    image = image_order(study.settings, 1)[2]
    order = method_order(study.settings, 1, image)
    assert [anna.picture(2, place, 1) for place in range(3)] == [study.crop(image, method, 1) for method in order]
    status, stored = anna.answer(2, [1, 2, 0])
    assert (status, stored) == (
        200,
        {"task": 2, "candidates": 3, "ranking": [1, 2, 0], "revision": 1, "answered": 1, "next": 0},
    )
    assert study.all_answers() == [(1, image, (order[1], order[2], order[0]))]
    assert anna.task(2) == stored


def test_repeated_answers_count_once_and_windows_do_not_overwrite_each_other(
    client: NewClient, study: Database
) -> None:
    anna = client("anna")
    first, second = anna.answer(0, [0, 1, 2]), anna.answer(0, [0, 1, 2])
    assert first == second
    # a second window, which has not seen the answer
    status, message = client("anna").answer(0, [2, 1, 0])
    assert (status, message.strip()) == (409, "this image was answered in another window; its answer is shown now")
    assert anna.answer(0, [2, 1, 0], revision=1)[1]["revision"] == 2
    assert len(study.all_answers()) == 1


@pytest.mark.parametrize(
    ("ranking", "revision", "told"),
    [
        ([0, 1], 0, "ranking must name each of 0 to 2 once, got [0, 1]"),
        ([0, 1, 1], 0, "ranking must name each of 0 to 2 once"),
        ([0, 1, 3], 0, "ranking must name each of 0 to 2 once"),
        ([0, True, 2], 0, "ranking must be a list of numbers"),
        ("012", 0, "ranking must be a list of numbers"),
        (None, 0, "ranking must be a list of numbers"),
        ([0, 1, 2], "0", "and revision a number"),
    ],
)
def test_other_answers_are_refused_in_a_line(
    client: NewClient, study: Database, ranking: object, revision: object, told: str
) -> None:
    status, message = client("anna").answer(0, ranking, revision)
    assert status == 400
    assert told in message
    assert message.count("\n") == 1
    assert not study.all_answers()


def test_bad_requests(client: NewClient, study: Database) -> None:
    anna = client("anna")
    tasks = f"{anna.address}tasks/0"
    for body in (b"", b"no json", b"[1]", b'{"ranking": [0, 1, 2]}', b"[" * 9000, b"9" * 9000, b"\xff"):
        assert anna.request("POST", tasks, body)[0] == 400, body
    assert anna.request("POST", tasks, b"x" * (MAX_BODY + 1))[0] == 413
    assert anna.request("POST", tasks, iter([b"x"]))[0] == 411
    # a length beside chunks, which does not count
    length = {"Content-Length": "10", "Transfer-Encoding": "chunked"}
    assert anna.request("POST", tasks, b"1\r\nx\r\n0\r\n\r\n", **length)[0] == 411
    for path in (
        "tasks/4", "tasks/-1", "tasks/x", f"tasks/{'9' * 5000}", "images/0/3/0.png", "images/0/0/3.png",
        "images/9/0/0.png", "images/0/truth/0.png", f"images/0/0/{'9' * 30}.png", "images/0/0/0", "nonesuch",
    ):  # fmt: skip
        status, _, message = anna.request("GET", anna.address + path)
        assert (status, message.count(b"\n")) == (404, 1), path
    for path in ("/rate/nonesuch/", "/rate/nonesuch/tasks/0", "/server.py", "/..%2fserver.py", "/pages/study.js"):
        assert anna.request("GET", path)[0] == 404, path
    assert anna.request("GET", "/raters")[0] in (404, 405)
    for name in (b"name=", b"name=" + b"x" * 41, b"nam=e", b"name=%00", b""):
        status, headers, page = anna.request("POST", "/raters", name)
        assert (status, headers["content-type"]) == (400, "text/html; charset=utf-8")
        assert b"1 to 40 printable characters" in page
    status, _, page = anna.request("POST", "/raters", b"name=%00<script>")
    assert b"<script>" not in page
    assert len(study.raters()) == 1
    assert not study.all_answers()


def test_strangers_are_refused(client: NewClient, study: Database) -> None:
    anna = client("anna")
    port = anna.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", f"127.0.0.2:{port}"):
        assert anna.request("GET", "/", Host=host)[0] == 421, host
    for host in (f"localhost:{port}", "127.0.0.1"):
        assert anna.request("GET", "/", Host=host)[0] == 200, host
    body = json.dumps({"ranking": [0, 1, 2], "revision": 0}).encode()
    for origin in ("http://evil.example", "null", "", f"http://127.0.0.1:{port + 1}", "http://127.0.0.1"):
        assert anna.request("POST", f"{anna.address}tasks/0", body, Origin=origin)[0] == 403, origin
        assert anna.request("POST", "/raters", b"name=eve", Origin=origin)[0] == 403, origin
    assert not study.all_answers()
    headers = anna.request("GET", "/")[1]
    assert headers["content-security-policy"].startswith("default-src 'none'; img-src 'self'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


def test_a_study_of_invited_raters_is_closed_to_others(study: Database) -> None:
    invited = study.enter("anna", invited=True)
    with running(study, anyone=False) as port:
        eve = Client(port)
        assert b"Raters of this study are invited" in eve.request("GET", "/")[2]
        status, _, message = eve.request("POST", "/raters", b"name=anna")
        assert (status, message) == (403, b"raters of this study are invited; use the address that you were given\n")
        eve.address = f"/rate/{invited.token}/"
        assert eve.answer(0, [0, 1, 2])[0] == 200


def test_ten_raters_at_once(client: NewClient, study: Database) -> None:
    def rate(number: int) -> list[int]:
        rater = client(f"rater {number}".replace(" ", "+"))
        statuses = []
        for task in range(4):
            for place in (0, 1, 2):
                rater.picture(task, place, 0)
            # a double click
            statuses += [rater.answer(task, [(number + place) % 3 for place in range(3)])[0] for _ in range(2)]
        return statuses

    with ThreadPoolExecutor(10) as pool:
        assert all(statuses == [200] * 8 for statuses in pool.map(rate, range(10)))
    answers = study.all_answers()
    assert len(answers) == len({answer[:2] for answer in answers}) == 40
    names = {rater.number: int(rater.name.split()[1]) for rater in study.raters()}
    for rater, image, ranking in answers:
        order = method_order(study.settings, rater, image)
        assert list(ranking) == [order[(names[rater] + place) % 3] for place in range(3)]
