"""The server's addresses: the page, what it asks for, and ``/api/reconstruct`` for scripts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from drr2ct.pipeline.web.answers import Endpoint, case_of, desk_of, in_words, json_of
from drr2ct.pipeline.web.cases import Case
from drr2ct.pipeline.web.decisions import why_not_ready
from drr2ct.pipeline.web.desk import (
    READ_SECONDS,
    Desk,
    cancel,
    change,
    converted,
    enqueue,
    run_queue,
    start_reading,
)
from drr2ct.pipeline.web.guard import Guard, refusal
from drr2ct.pipeline.web.intake import add_case, add_films, add_sample, is_over, new_case_of, received, text_of, without
from drr2ct.pipeline.web.options import checked_options, checked_patient, file_stem
from drr2ct.pipeline.web.page import PAGE_FILES, page_file
from drr2ct.pipeline.web.processes import run_task
from drr2ct.pipeline.web.uploads import MOST_BYTES, MOST_FILES
from drr2ct.transforms.validation import InputError

UPLOADS = 4
"""Requests whose files are received at the same time; others wait."""
HEARTBEAT_SECONDS = 15.0
_PICTURES = ("given", "used", "own", "difference")
_DOWNLOADS = {
    "volume.nii.gz": ("ct.nii.gz", "ct.nii.gz", "application/gzip"),
    "interval.nii.gz": ("ct_interval.nii.gz", "ct_interval.nii.gz", "application/gzip"),
    "doubt.nii.gz": ("ct_doubt.nii.gz", "ct_doubt.nii.gz", "application/gzip"),
    "record.json": ("ct.json", "ct.json", "application/json"),
    "page.html": ("ct.html", "ct.html", "text/html"),
    "volume.nrrd": ("nrrd", "ct.nrrd", "application/octet-stream"),
    "dicom.zip": ("dicom", "ct_dicom.zip", "application/zip"),
}
"""Last part of an address → our file, or the format it is converted to; the end of its name for the user; its type."""


def create_app(desk: Desk, hosts: Collection[str], any_address: bool = False, token: str | None = None) -> Starlette:
    """The ASGI application of a session.

    Args:
        desk: of the session.
        hosts: see :class:`~drr2ct.pipeline.web.guard.Guard`.
        any_address: likewise.
        token: likewise.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        queue = asyncio.create_task(run_queue(desk))
        yield
        queue.cancel()
        for case in list(desk.cases.values()):
            await desk.stop(case)

    def route(path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        return Route(path, in_words(endpoint), methods=[method])

    app = Starlette(
        routes=[
            route("/", _page),
            route("/assets/{name}", _asset),
            route("/api/state", _state),
            route("/api/events", _events),
            route("/api/reconstruct", _reconstruct, "POST"),
            route("/api/cases", add_case, "POST"),
            route("/api/cases/sample", add_sample, "POST"),
            route("/api/cases/{id}", _show),
            route("/api/cases/{id}", _remove, "DELETE"),
            route("/api/cases/{id}/films", add_films, "POST"),
            route("/api/cases/{id}/options", _change, "POST"),
            route("/api/cases/{id}/reconstruct", _enqueue, "POST"),
            route("/api/cases/{id}/cancel", _cancel, "POST"),
            route("/api/cases/{id}/header/{number:int}", _header),
            route("/api/cases/{id}/{kind}-{number:int}.png", _picture),
            route("/api/cases/{id}/{name}", _download),
        ],
        middleware=[Middleware(Guard, hosts=hosts, any_address=any_address, token=token)],
        lifespan=lifespan,
    )
    app.state.desk = desk
    app.state.uploads = asyncio.Semaphore(UPLOADS)
    return app


async def _page(request: Request) -> Response:
    return page_file("page.html", request.headers.get("accept-language", ""))


async def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in PAGE_FILES:
        return refusal(404, "there is no such file.")
    return await asyncio.to_thread(page_file, name, "")


async def _state(request: Request) -> Response:
    desk = desk_of(request)
    return JSONResponse(
        {
            "networks": [{k: v for k, v in facts.items() if k != "path"} for facts in desk.networks],
            "cases": [case.public() for case in desk.cases.values()],
            "most_bytes": MOST_BYTES,
            "most_files": MOST_FILES,
        }
    )


async def _show(request: Request) -> Response:
    return JSONResponse(case_of(request).public())


async def _events(request: Request) -> Response:
    """Server-sent events: ``cases``, a list of those that have changed."""

    async def stream() -> AsyncIterator[str]:
        updates = desk_of(request).updates()
        pending: asyncio.Task[list[Case]] | None = None
        try:
            while True:
                pending = pending or asyncio.create_task(anext(updates))  # type: ignore[arg-type]
                await asyncio.wait([pending], timeout=HEARTBEAT_SECONDS)
                if not pending.done():
                    yield ": still here\n\n"
                    continue
                try:
                    cases, pending = pending.result(), None
                except StopAsyncIteration:
                    return
                yield f"event: cases\ndata: {json.dumps([case.public() for case in cases])}\n\n"
        finally:
            if pending is not None:
                pending.cancel()

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


async def _change(request: Request) -> Response:
    desk, case, wanted = desk_of(request), case_of(request), await json_of(request)
    views = len(desk.network(wanted.get("network") or case.network)["views"])
    options = wanted.get("options", case.options)
    order = wanted.get("order", case.order)
    if not isinstance(options, dict) or not (order is None or isinstance(order, list)):
        raise InputError("options are an object, and order a list of numbers or null.")
    if order is not None and sorted(map(str, order)) != [str(i) for i in range(len(case.films))]:
        raise InputError(f"order {order} does not name each of {len(case.films)} films once.")
    patient = checked_patient(wanted.get("patient", case.patient))
    changed = await change(desk, case, checked_options(options, views), order, wanted.get("network"), patient)
    return JSONResponse(changed.public(), 200 if changed is case else 201)


async def _enqueue(request: Request) -> Response:
    case = case_of(request)
    found = enqueue(desk_of(request), case)
    return JSONResponse({**found.public(), "same_as": None if found is case else found.id}, 202)


async def _cancel(request: Request) -> Response:
    case = case_of(request)
    await cancel(desk_of(request), case)
    return JSONResponse(case.public())


async def _remove(request: Request) -> Response:
    await desk_of(request).remove(case_of(request))
    return Response(status_code=204)


async def _header(request: Request) -> Response:
    case, number = case_of(request), request.path_params["number"]
    if number >= len(case.films):
        raise InputError("there is no such film.")
    found = await run_task("header", {"stored": case.films[number].stored}, case.folder, READ_SECONDS)
    return JSONResponse(found)


async def _picture(request: Request) -> Response:
    kind, number = request.path_params["kind"], request.path_params["number"]
    path = case_of(request).folder / f"{kind}-{number}.png"
    if kind not in _PICTURES or not path.is_file():
        return refusal(404, "there is no such picture.")
    return FileResponse(path, media_type="image/png")


async def _download(request: Request) -> Response:
    case, name = case_of(request), request.path_params["name"]
    if name not in _DOWNLOADS:
        return refusal(404, "there is no such file.")
    if case.state != "done":
        raise InputError("there is no volume yet; reconstruct first.")
    ours, ending, kind = _DOWNLOADS[name]
    path = await converted(desk_of(request), case, ours) if ours in ("nrrd", "dicom") else case.folder / ours
    if not path.is_file():
        return refusal(404, "this result has no such file.")
    return _attachment(path, f"{file_stem(case.patient)}_{ending}", kind)


def _attachment(path: Path, name: str, kind: str) -> Response:
    """Never shown as a page of ours."""
    return FileResponse(path, media_type=kind, filename=name, content_disposition_type="attachment")


async def _reconstruct(request: Request) -> Response:
    """For scripts: two files in, the volume out, when it is done; it stays in the session's history."""
    desk = desk_of(request)
    form = await received(request)
    try:
        case = await new_case_of(request, without(form, "format"))
        wanted = text_of(form, "format") or "nii.gz"
    finally:
        await form.close()
    kinds = {"nii.gz": "volume.nii.gz", "nrrd": "volume.nrrd", "dicom": "dicom.zip"}
    if wanted not in kinds:
        await desk.remove(case)
        raise InputError(f"format {wanted[:20]!r} is unknown; choose from {', '.join(kinds)}.")
    await start_reading(desk, case)
    case = await is_over(desk, case)
    if case.state != "ready":
        raise case.mistake(why_not_ready(case.reading, case.sentence))
    case = await is_over(desk, enqueue(desk, case))
    if case.state != "done":
        raise case.mistake(case.sentence or "the reconstruction was cancelled.")
    request.scope["path_params"] = {"id": case.id, "name": kinds[wanted]}
    return await _download(request)
