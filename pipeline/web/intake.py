"""Files that come in: they are given to a case, read, and for scripts reconstructed before the request is answered."""

from __future__ import annotations

import asyncio

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from drr2ct.pipeline.web.answers import case_of, desk_of
from drr2ct.pipeline.web.cases import BUSY, Case, FilmFile, new_case, remove_folder
from drr2ct.pipeline.web.desk import READ_SECONDS, BusyError, Desk, refuse_while_pending, start_reading
from drr2ct.pipeline.web.options import checked_options, checked_patient
from drr2ct.pipeline.web.processes import run_task
from drr2ct.pipeline.web.uploads import receive_form, shown_name, store, stored_suffix
from drr2ct.transforms.validation import InputError


async def received(request: Request) -> FormData:
    """The form of a request; few are received at the same time.

    Raises:
        InputError: see :func:`~drr2ct.pipeline.web.uploads.receive_form`.
    """
    async with request.app.state.uploads:
        return await receive_form(request)


def _files(form: FormData) -> list[tuple[str, UploadFile]]:
    """(field, file) of those that hold anything or have a name."""
    return [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile) and value.filename]


async def _keep(case: Case, files: list[UploadFile]) -> None:
    """Files into a case's folder, under names of ours."""
    for upload in files:
        shown = shown_name(upload)
        stored = f"film-{len(case.films)}{stored_suffix(shown)}"
        case.films.append(FilmFile(shown, stored, await asyncio.to_thread(store, upload, case.folder / stored)))


async def new_case_of(request: Request, form: FormData) -> Case:
    """A new case of a form's files, not yet at the desk.

    Files of fields that are called as the network's views have their places; others are found out.
    """
    desk, files = desk_of(request), _files(form)
    if not files:
        raise InputError("there is no file; give a frontal and a lateral radiograph.")
    facts = desk.network(text_of(form, "network"))
    views = facts["views"]
    names = ["lat" if name == "lateral" else name for name, _ in files]
    options = {name: text_of(form, name) for name in form if name not in ("network", "patient", *(n for n, _ in files))}
    case = new_case(desk.root, facts["id"])
    try:
        case.options = checked_options(options, len(views))
        case.patient = checked_patient(text_of(form, "patient"))
        await _keep(case, [upload for _, upload in files])
        if sorted(names) == sorted(views):
            case.order = [names.index(view) for view in views]
        await desk.add(case)
    except BaseException:
        await asyncio.to_thread(remove_folder, case)
        raise
    return case


def text_of(form: FormData, name: str) -> str:
    """A field's text, empty without one."""
    value = form.get(name)
    return value.strip() if isinstance(value, str) else ""


async def add_case(request: Request) -> Response:
    """A new case of some files."""
    form = await received(request)
    try:
        case = await new_case_of(request, form)
    finally:
        await form.close()
    await start_reading(desk_of(request), case)
    return JSONResponse(case.public(), 201)


async def add_films(request: Request) -> Response:
    """Further files: where one is missing they are added, otherwise they take the others' place."""
    desk, case = desk_of(request), case_of(request)
    refuse_while_pending(case)
    form = await received(request)
    try:
        files = [upload for _, upload in _files(form)]
        views = len(desk.network(case.network)["views"])
        if case.state != "incomplete" or len(case.films) + len(files) > views:
            raise InputError(
                f"{len(case.films) + len(files)} files are too many for {views} views; begin anew with them."
            )
        await desk.stop(case)
        await _keep(case, files)
    finally:
        await form.close()
    case.order = None
    await start_reading(desk, case)
    return JSONResponse(case.public())


async def add_sample(request: Request) -> Response:
    """A new case of the sample patient's radiographs."""
    desk = desk_of(request)
    facts = desk.network(request.query_params.get("network"))
    case = new_case(desk.root, facts["id"])
    try:
        async with desk.readers:
            found = await run_task("sample", {"checkpoint": facts["path"]}, case.folder, READ_SECONDS)
        case.films = [FilmFile(film["shown"], film["stored"], film["stored"] + facts["id"]) for film in found]
        case.sample, case.patient = True, "sample"
        await desk.add(case)
    except BaseException:
        await asyncio.to_thread(remove_folder, case)
        raise
    await start_reading(desk, case)
    return JSONResponse(case.public(), 201)


def without(form: FormData, *names: str) -> FormData:
    """A form without some of its fields."""
    return FormData([(name, value) for name, value in form.multi_items() if name not in names])


async def is_over(desk: Desk, case: Case) -> Case:
    """Wait until nothing goes on with a case."""
    while case.state in BUSY:
        await desk.changed.wait()
        if desk.closed:
            raise BusyError("the server is stopping; ask again when it runs.")
    return case
