"""What the server of the page refuses before Gradio sees it: other hosts, pages of others, and too much data."""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

MAX_REQUEST = 25 << 20  #: bytes of the body of a request
MAX_TOTAL = 500 << 20  #: bytes of all uploads that the server holds

App = Callable[[Any, Any, Any], Awaitable[None]]


class Guard:
    """ASGI middleware that answers only requests for the own address, from the own page.

    A web site can make its name resolve to this machine (DNS rebinding), and can send requests to any address. The
    browser names the site in the header ``Host`` or ``Origin``.

    Arguments:
        app: The application.
        host: The address that the server listens on.
        folder: Holds the uploads.
    """

    def __init__(self, app: App, host: str, folder: Path) -> None:
        self.app, self.folder = app, folder
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}
        self._arriving = 0  # bytes of the requests in progress

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Answer a request, or refuse it in one line."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal is None:
            length = int(headers.get("content-length", 0))
            self._arriving += length
            try:
                await self.app(scope, receive, send)
            finally:
                self._arriving -= length
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, message = refusal
            content_type = (b"content-type", b"text/plain; charset=utf-8")
            await send({"type": "http.response.start", "status": status, "headers": [content_type]})
            await send({"type": "http.response.body", "body": message.encode()})

    def _refusal(self, headers: dict[str, str]) -> tuple[int, str] | None:
        """Return the status and the message of a refusal; ``None`` for a request that may be answered."""
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if not self._is_trusted(host):
            return 400, "unknown host: open the page at the address that arcsm serve printed"
        if origin is not None and origin.lower().partition("://")[2] != host:
            return 403, "requests from other pages are refused"
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal():
            return 411, "expected the length of the request"
        if int(length) > MAX_REQUEST:
            return 413, f"expected at most {MAX_REQUEST >> 20} MiB in a request"
        if int(length) and int(length) + self._arriving + _size(self.folder) > MAX_TOTAL:
            return 413, "the page holds too many uploads: try again in an hour, or restart it"
        return None

    def _is_trusted(self, host: str) -> bool:
        """Return whether a host, with or without a port, is an IP address or a name of this machine."""
        name = host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name)  # no site can claim a number
        except ValueError:
            return name in self.names
        return True


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_host(host: str) -> None:
    """Raise a ``ValueError`` if this machine cannot listen on an address."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError as error:
        raise ValueError(f"--host {host}: expected an address of this machine ({error.strerror})") from error
