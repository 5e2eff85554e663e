"""Who may ask for what: Host, Origin and token are looked at before anything else, and every answer is fenced in.

A page of somebody else's, open in the same browser, can send requests here. It is kept out by the Host header (a name
that its owner points to this machine is not ours: DNS rebinding), and by Origin and Sec-Fetch-Site (its requests are
not from our page: CSRF).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "drr2ct"

FENCE = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
        "font-src 'self'; connect-src 'self' data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
"""Headers of every answer. NiiVue decodes with WebAssembly, and reads its font from its own text (``data:``)."""


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        hosts: names under which this server may be asked, lower case, without a port.
        any_address: an IP address is as good as a name: no domain can be made to be one.
        token: that has to be given, if any: as ``Authorization: Bearer``, or once as ``?token=`` for a cookie.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], any_address: bool = False, token: str | None = None):
        self.app = app
        self.hosts = hosts
        self.any_address = any_address
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def fenced(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in FENCE.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._answer(scope)
        await (self.app if answer is None else answer)(scope, receive, fenced)

    def _answer(self, scope: Scope) -> Response | None:
        """None for a request that may pass."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            return refusal(421, "this server is not called that; open it under the address that it printed.")
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        reads = scope["method"] in ("GET", "HEAD")
        opened = reads and headers.get("sec-fetch-mode") == "navigate"  # a link that was followed
        if not (opened or site in ("same-origin", "none")):
            return refusal(403, "the request comes from another page; open this server's own.")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return refusal(403, "the request comes from another page; open this server's own.")
        return self._ask_for_token(scope, headers)

    def _is_ours(self, host: str) -> bool:
        name = _without_port(host).lower()
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address

    def _ask_for_token(self, scope: Scope, headers: Headers) -> Response | None:
        if self.token is None:
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["method"] == "GET" and scope["path"] == "/" and self._fits(query.get("token", [""])[0]):
            rest = urlencode({name: values[0] for name, values in query.items() if name != "token"})
            answer = RedirectResponse("/" + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", path="/")
            return answer
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if (scheme.lower() == "bearer" and self._fits(bearer)) or self._fits(_cookie(headers)):
            return None
        return refusal(401, "a token is needed: open the address with ?token=… that the server printed.")

    def _fits(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), (self.token or "").encode())


def refusal(status: int, sentence: str) -> JSONResponse:
    """An answer in one sentence."""
    return JSONResponse({"error": sentence}, status)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""
