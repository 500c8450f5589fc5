"""The server of a study, from its start to Ctrl-C."""

from __future__ import annotations

import ipaddress
import socket

import uvicorn

from sr_models.study.database import Database
from sr_models.study.server import create_app

__all__ = ["addresses", "is_loopback", "listen", "make_server"]

#: Connections that may wait to be accepted.
_BACKLOG = 128
#: Seconds that requests have to end after Ctrl-C.
_GRACE = 2


def is_loopback(host: str) -> bool:
    """Tell whether an address is of this machine only.

    Raises:
        ValueError: no address.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        raise ValueError(
            f"host must be an IPv4 address of this machine, such as 127.0.0.1, or 0.0.0.0 for all, got {host!r}"
        ) from None


def listen(host: str, port: int) -> socket.socket:
    """Open a port for a server.

    Args:
        host: an IPv4 address of this machine.
        port: 0: any that is free.

    Raises:
        ValueError: no port, one that is in use, or an address that this machine has not.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port must be in 0..65535, got {port}")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # a server that was killed a moment ago does not occupy the port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"cannot listen on {host}:{port}: {reason}; choose another --port or --host") from error
    return listener


def make_server(database: Database, listener: socket.socket, *, anyone: bool) -> uvicorn.Server:
    """Return a server of a study, whose ``run(sockets=[listener])`` serves until Ctrl-C.

    Args:
        database: the study.
        listener: from :func:`listen`.
        anyone: let everybody enter with a name; otherwise raters have addresses of their own.
    """
    host = listener.getsockname()[0]
    # elsewhere a secret address, not the name of the host, keeps strangers out
    hosts = ("127.0.0.1", "localhost", host) if is_loopback(host) else None
    config = uvicorn.Config(
        create_app(database, hosts=hosts, anyone=anyone),
        # addresses have tokens in them, which belong into no log
        access_log=False,
        log_level="warning",
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    return uvicorn.Server(config)


def addresses(database: Database, listener: socket.socket, *, anyone: bool) -> list[str]:
    """Return what raters open, a line each: the first page, or every rater's own."""
    host, port = listener.getsockname()
    first = f"http://{socket.gethostname() if host == '0.0.0.0' else host}:{port}/"
    return [first] if anyone else [f"{rater.name}: {first}rate/{rater.token}/" for rater in database.raters()]
