"""Who may ask for what, by headers alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from drr2ct.pipeline.web.guard import Guard
from drr2ct.pipeline.web.server import serve
from drr2ct.transforms.validation import InputError

TOKEN = "0123456789abcdef"


def ask(method: str = "GET", path: str = "/", query: str = "", token: str | None = None, **headers: str) -> Any:
    """Status and headers of the answer to a request; 200 is what passes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    named = {"host": "127.0.0.1:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http", "method": method, "path": path, "query_string": query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }  # fmt: skip
    hosts = {"127.0.0.1", "localhost", "::1", *(["lab.example"] if token else [])}
    asyncio.run(Guard(app, hosts, token is not None, token)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (200, {}),
        (200, {"host": "localhost:9000"}),  # through a tunnel
        (200, {"host": "[::1]:8000"}),
        (421, {"host": "evil.example:8000"}),  # DNS rebinding
        (421, {"host": "127.0.0.1.evil.example"}),
        (421, {"host": "192.0.2.1:8000"}),
        (421, {"host": ""}),
        (200, {"method": "POST"}),  # curl
        (200, {"method": "POST", "origin": "http://127.0.0.1:8000", "sec_fetch_site": "same-origin"}),
        (403, {"method": "POST", "origin": "http://evil.example"}),  # CSRF
        (403, {"method": "POST", "origin": "http://127.0.0.1:3000"}),  # another server on this computer
        (403, {"method": "POST", "origin": "null"}),
        (403, {"method": "POST", "sec_fetch_site": "cross-site"}),
        (403, {"method": "DELETE", "sec_fetch_site": "same-site"}),
        (403, {"path": "/api/state", "sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}),
        (200, {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}),  # a link that was followed
    ],
)
def test_only_our_own_page_and_programs_are_answered(status: int, request_: dict[str, str]):
    assert ask(**request_)[0] == status


def test_every_answer_is_fenced_in():
    for headers in (ask()[1], ask(host="evil.example")[1]):
        policy = headers[b"content-security-policy"].decode()
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe-inline" not in policy and "http" not in policy
        assert headers[b"x-content-type-options"] == b"nosniff" and headers[b"referrer-policy"] == b"no-referrer"


def test_a_token_is_given_by_a_header_or_once_by_the_address():
    assert ask(token=TOKEN)[0] == 401
    assert ask(token=TOKEN, host="192.0.2.1:8000")[0] == 401, "an address is no foreign name"
    assert ask(token=TOKEN, authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(token=TOKEN, authorization=f"Bearer {TOKEN}x")[0] == 401
    assert ask(token=TOKEN, cookie=f"a=b; drr2ct={TOKEN}")[0] == 200
    assert ask(token=TOKEN, cookie="drr2ct=é")[0] == 401
    assert ask(path="/api/state", query=f"token={TOKEN}", token=TOKEN)[0] == 401, "only the page"
    status, headers = ask(query=f"token={TOKEN}", token=TOKEN)
    assert status == 303 and headers[b"location"] == b"/"
    cookie = headers[b"set-cookie"].lower()
    assert b"httponly" in cookie and b"samesite=strict" in cookie


def test_others_are_let_in_with_a_good_token_only(tmp_path):
    with pytest.raises(InputError, match=r"--host 0\.0\.0\.0 lets others in"):
        serve([tmp_path], "0.0.0.0")
    with pytest.raises(InputError, match="shorter than 16"):
        serve([tmp_path], token="secret")
