"""How requests are answered: mistakes in a sentence and a status, and what a request is about."""

from __future__ import annotations

import errno
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from drr2ct.pipeline.web.cases import Case
from drr2ct.pipeline.web.desk import BusyError, Desk
from drr2ct.pipeline.web.guard import refusal
from drr2ct.pipeline.web.processes import DiskFullError, WorkerDiedError
from drr2ct.pipeline.web.uploads import TooMuchError, TooSlowError
from drr2ct.transforms.validation import InputError

Endpoint = Callable[[Request], Awaitable[Response]]


class NoCaseError(InputError):
    """The case is not, or no longer, there."""


_STATUS = {
    TooMuchError: 413,
    TooSlowError: 408,
    BusyError: 429,
    WorkerDiedError: 503,
    DiskFullError: 507,
    NoCaseError: 404,
}
"""Mistakes that are not of the content (422)."""


def in_words(endpoint: Endpoint) -> Endpoint:
    """What goes wrong is one sentence and a status; the server goes on."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except InputError as error:
            status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 422)
            return refusal(status, str(error))
        except ClientDisconnect:
            return Response(status_code=499)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return refusal(507, "the disk is full: free space, or remove results of this session, and try again.")

    return answer


def desk_of(request: Request) -> Desk:
    """The session's."""
    return request.app.state.desk


def case_of(request: Request) -> Case:
    """The case of a request's address.

    Raises:
        NoCaseError: if there is none.
    """
    case = desk_of(request).cases.get(request.path_params["id"])
    if case is None:
        raise NoCaseError("this is not there any longer; it was removed, or the server was started again.")
    return case


async def json_of(request: Request) -> Mapping[str, Any]:
    """The object that a request holds.

    Raises:
        InputError: for anything else.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > 2**16:
            raise TooMuchError("the request is too long.")
    try:
        content = json.loads(body or b"{}")
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError("the request is no JSON object.")
    return content
