"""The web pages of a study."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from sr_models.study.database import Answer, Database, OutdatedAnswer, Rater
from sr_models.study.guard import Guard
from sr_models.study.settings import CROPS, image_order, method_order

__all__ = ["create_app"]

_PAGES = Path(__file__).parent / "pages"
_TYPES = {"study.css": "text/css", "study.js": "text/javascript"}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_PAGES), autoescape=True, undefined=jinja2.StrictUndefined
)


def create_app(database: Database, *, hosts: Collection[str] | None, anyone: bool) -> Starlette:
    """Return the pages of a study as an ASGI application.

    Nothing that it sends names a method or an image: pictures have the addresses of their places on the page, and all
    are of one size in bytes.

    Args:
        database: the study.
        hosts: host names under which it answers; ``None``: any.
        anyone: let everybody enter with a name; otherwise a rater needs the address with his token.
    """
    app = Starlette(
        routes=[
            Route("/", _start, methods=["GET"]),
            Route("/raters", _enter, methods=["POST"]),
            Route("/{name:str}", _static, methods=["GET"]),
            Route("/rate/{token}/", _rate, methods=["GET"]),
            Route("/rate/{token}/tasks/{task}", _show_task, methods=["GET"]),
            Route("/rate/{token}/tasks/{task}", _answer_task, methods=["POST"]),
            Route("/rate/{token}/images/{task}/{place}/{crop}.png", _picture, methods=["GET"]),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={HTTPException: _tell},
    )
    app.state.database, app.state.anyone = database, anyone
    return app


async def _tell(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, headers=error.headers)


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _TYPES:
        raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such page")
    return Response((_PAGES / name).read_bytes(), media_type=_TYPES[name])


def _start(request: Request) -> Response:
    return _start_page(request, "")


def _start_page(request: Request, problem: str) -> Response:
    database: Database = request.app.state.database
    page = _TEMPLATES.get_template("start.html").render(
        images=len(database.settings.images),
        candidates=len(database.settings.methods),
        reference=database.settings.reference,
        anyone=request.app.state.anyone,
        problem=problem,
    )
    return HTMLResponse(page, HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK)


async def _enter(request: Request) -> Response:
    if not request.app.state.anyone:
        raise HTTPException(
            HTTPStatus.FORBIDDEN, "raters of this study are invited; use the address that you were given"
        )
    name = parse_qs((await request.body()).decode(errors="replace")).get("name", [""])[0]
    try:
        rater = await run_in_threadpool(request.app.state.database.enter, name)
    except ValueError as error:
        return _start_page(request, str(error))
    return RedirectResponse(f"/rate/{rater.token}/", HTTPStatus.SEE_OTHER)


def _rate(request: Request) -> Response:
    visit = _visit(request)
    settings = visit.database.settings
    page = _TEMPLATES.get_template("rate.html").render(
        rater=visit.rater.name, images=len(settings.images), reference=settings.reference, crops=CROPS
    )
    return HTMLResponse(page)


def _show_task(request: Request) -> Response:
    visit = _visit(request)
    return JSONResponse(visit.described(_image(visit, request)))


async def _answer_task(request: Request) -> Response:
    try:
        content = json.loads(await request.body())
    except (ValueError, RecursionError):
        content = None
    return await run_in_threadpool(_store, request, content)


def _store(request: Request, content: Any) -> Response:
    visit = _visit(request)
    image = _image(visit, request)
    if not isinstance(content, dict) or content.keys() != {"ranking", "revision"}:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "an answer must be JSON with ranking and revision")
    ranking, revision = content["ranking"], content["revision"]
    order = visit.methods(image)
    if not isinstance(ranking, list) or any(type(place) is not int for place in ranking) or type(revision) is not int:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "ranking must be a list of numbers, and revision a number")
    if sorted(ranking) != list(range(len(order))):
        raise HTTPException(
            HTTPStatus.BAD_REQUEST, f"ranking must name each of 0 to {len(order) - 1} once, got {ranking}"
        )
    try:
        visit.database.store(visit.rater.number, image, [order[place] for place in ranking], revision)
    except OutdatedAnswer as error:
        raise HTTPException(HTTPStatus.CONFLICT, str(error)) from error
    except ValueError as error:
        raise HTTPException(HTTPStatus.INSUFFICIENT_STORAGE, f"the answer is not stored: {error}") from error
    return JSONResponse(visit.described(image))


def _picture(request: Request) -> Response:
    visit = _visit(request)
    image, place = _image(visit, request), request.path_params["place"]
    if place == "reference" and visit.database.settings.reference:
        method = None
    else:
        order = visit.methods(image)
        method = order[_number(place, len(order), "candidates")]
    png = visit.database.crop(image, method, _number(request.path_params["crop"], CROPS, "crops"))
    # the address has the rater's token in it, and what is there never changes
    return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=86400, immutable"})


@dataclass(frozen=True)
class _Visit:
    """A rater in the study."""

    database: Database
    rater: Rater

    def images(self) -> list[int]:
        return image_order(self.database.settings, self.rater.number)

    def methods(self, image: int) -> list[int]:
        return method_order(self.database.settings, self.rater.number, image)

    def described(self, image: int) -> dict[str, Any]:
        """Return what the page must know of a task; the rater's progress too."""
        answers = self.database.answers(self.rater.number)
        images, methods = self.images(), self.methods(image)
        answer = answers.get(image, Answer((), 0))
        missing = [task for task, other in enumerate(images) if other not in answers]
        return {
            "task": images.index(image),
            "candidates": len(methods),
            "ranking": [methods.index(method) for method in answer.ranking],
            "revision": answer.revision,
            "answered": len(images) - len(missing),
            "next": missing[0] if missing else None,
        }


def _visit(request: Request) -> _Visit:
    database: Database = request.app.state.database
    rater = database.rater(request.path_params["token"])
    if rater is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "the study knows no rater of this address; begin at its first page")
    return _Visit(database, rater)


def _image(visit: _Visit, request: Request) -> int:
    images = visit.images()
    return images[_number(request.path_params["task"], len(images), "images")]


def _number(text: str, count: int, what: str) -> int:
    """Read a number below a count."""
    # no number of a thousand digits, which Python refuses
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) >= count:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"there are {count} {what}, from 0, got {text[:20]!r}")
    return int(text)
