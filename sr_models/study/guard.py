"""Check of every request to the study: it comes from the study's own page, on the study's own address."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["MAX_BODY", "Guard"]

#: Bytes that a request may carry.
MAX_BODY = 10_000
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Middleware that refuses foreign hosts, foreign origins and large bodies, and adds headers to every answer.

    A page of another site can make the rater's browser send requests here. If it does so under its own name, the
    header ``Host`` gives it away; otherwise ``Origin`` does.

    Args:
        app: what answers the other requests.
        hosts: names that ``Host`` may have, without a port; ``None``: any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        answer = self._app if refusal is None else PlainTextResponse(f"{refusal[1]}\n", refusal[0])
        await answer(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._hosts is not None and host.rpartition(":")[0] not in self._hosts and host not in self._hosts:
            return 421, "the study is not served under this host name; use the address that the command has printed"
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin", "")
        if origin.partition("://")[2] != host:
            return 403, "answers are only taken from the study's own page"
        length = headers.get("content-length", "")
        # where both are given the chunks count
        if not length.isdecimal() or "transfer-encoding" in headers:
            return 411, "a request must tell its length"
        if int(length) > MAX_BODY:
            return 413, f"a request may carry {MAX_BODY} bytes"
        return None
