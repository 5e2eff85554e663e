"""Receiving files: counted while they stream, kept where we say, under names of ours."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from drr2ct.transforms.validation import InputError

MOST_BYTES = 200 * 2**20
"""Of one request, all files together."""
MOST_FILES = 4
SILENCE_SECONDS = 30.0
"""A client that sends nothing for so long is given up."""
MOST_SECONDS = 900.0
"""A client that is not done after so long is given up."""

_SUFFIXES = (
    "_drr.png", ".nii.gz", ".nii", ".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".jp2", ".webp",
)  # fmt: skip
"""Endings that a reader looks at; all others are found out by content."""


class TooMuchError(InputError):
    """More than :data:`MOST_BYTES`."""


class TooSlowError(InputError):
    """The client has stopped sending."""


async def receive_form(request: Request) -> FormData:
    """The form of a request, its files in unnamed temporary ones.

    Raises:
        TooMuchError: as soon as there is too much, or before anything is read if the client says so.
        TooSlowError: for a client that stalls.
        InputError: for no form, or more files than :data:`MOST_FILES`.
        ClientDisconnect: if it goes away.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InputError("the request is no form with files (multipart/form-data).")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MOST_BYTES:
        raise _too_much()
    stream: Any = _counted(request)
    try:
        return await MultiPartParser(request.headers, stream, max_files=MOST_FILES, max_fields=50).parse()
    except MultiPartException as error:
        if "files" in error.message:
            raise InputError(f"there are more than {MOST_FILES} files; give the radiographs of one patient.") from error
        raise InputError(f"the form cannot be read ({error.message.rstrip('.')}); send it again.") from error


async def _counted(request: Request) -> AsyncIterator[bytes]:
    """The body, until it is too much or too slow."""
    received, end = 0, time.monotonic() + MOST_SECONDS
    stream = aiter(request.stream())
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream, None), min(SILENCE_SECONDS, end - time.monotonic()))
        except TimeoutError:
            raise TooSlowError("the files came too slowly, and the upload was given up; send them again.") from None
        if chunk is None:
            return
        received += len(chunk)
        if received > MOST_BYTES:
            raise _too_much()
        yield chunk


def _too_much() -> TooMuchError:
    return TooMuchError(f"the files have more than {MOST_BYTES // 2**20} MB together; export them smaller.")


def shown_name(upload: UploadFile) -> str:
    """A file's name for eyes: its last part, without control characters, at most 80 long; never used as a path."""
    name = re.split(r"[\\/]", upload.filename or "")[-1]
    name = "".join(c for c in name if unicodedata.category(c)[0] != "C").strip()
    return (name if len(name) <= 80 else f"{name[:60]}…{name[-19:]}") or "radiograph"


def stored_suffix(name: str) -> str:
    """What a stored file ends in: one of a list, or nothing."""
    return next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")


def store(upload: UploadFile, path: Path) -> str:
    """Copy an upload to a new file that only its owner can read; returns its SHA-256. Blocks."""
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while block := upload.file.read(2**20):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
