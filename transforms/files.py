"""Writing files and folders so that there is never half of one."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4

from drr2ct.transforms.validation import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of ``path`` once it is complete.

    It lies in the same folder (made if need be), keeps the suffix, by which writers choose a format, and is unique
    among processes and machines that share the folder. If writing fails it is removed, and ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder to fill, which takes the place of ``path`` once it is complete (see ``replacing``)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{uuid4().hex}.{path.name}") for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def refuse_to_replace(path: str | Path, overwrite: bool, read: Iterable[str | Path] = ()) -> None:
    """Leave a file alone that is there already, unless it is to be replaced; what is read is never replaced.

    Args:
        path: to be written.
        overwrite: replace a file that is there.
        read: what it is made of.

    Raises:
        InputError: if there is one, or as :func:`refuse_unwritable`.
    """
    refuse_unwritable([path])
    if not overwrite and Path(path).exists():
        raise InputError(f"{path} exists; choose another name, or overwrite it (--overwrite).")
    refuse_to_lose([path], read)


def refuse_unwritable(written: Iterable[str | Path]) -> None:
    """Refuse files that cannot be written, before anything is computed; nothing is made for it.

    Raises:
        InputError: if a name is too long, or that of a folder or a device, or nothing can be written in its folder.
    """
    for path in map(Path, written):
        refuse_long_names([path])
        try:
            if path.exists() and not path.is_file():
                raise InputError(f"{path} is {'a folder' if path.is_dir() else 'a device'}; give the name of a file.")
            there = next(folder for folder in path.absolute().parents if folder.exists())
            # permissions do not tell: root has them all, also where the system alone writes, such as /proc
            with TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}); choose another place.") from error


def refuse_to_lose(written: Iterable[str | Path], read: Iterable[str | Path]) -> None:
    """Refuse to put a result in the place of what it is made of, however the two are spelt or linked.

    Args:
        written: files, and folders that are replaced as a whole.
        read: files and folders; none has to be there.

    Raises:
        InputError: if one is the other, or lies in a folder that is replaced.
    """
    there = [path for path in map(Path, written) if path.exists()]
    if not there:
        return
    sources = [path for path in map(Path, read) if path.exists()]
    files = {(at.st_dev, at.st_ino): path for path in sources for at in [path.stat()]}
    for path in there:
        at = path.stat()
        lost = files.get((at.st_dev, at.st_ino))
        if lost is None and path.is_dir():
            lost = next((one for one in sources if one.resolve().is_relative_to(path.resolve())), None)
        if lost is not None:
            raise InputError(f"{path} would take the place of {lost}, which it is made of; give another output.")


def refuse_long_names(written: Iterable[str | Path]) -> None:
    """Refuse names that cannot be written, before anything is computed: ``replacing`` writes under a longer one.

    Raises:
        InputError: if the file system takes no name as long as one of these, or of their folders.
    """
    for path in map(Path, written):
        names = [*path.parts[:-1], f".{uuid4().hex}.{path.name}"]
        # os.path's says False where Path's raises, of a name that is too long
        there = next(parent for parent in path.absolute().parents if os.path.exists(parent))  # noqa: PTH110
        most = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        over = max(len(os.fsencode(name)) for name in names) - most
        if over > 0:
            raise InputError(f"the name of {path} is too long to be written, by {over} bytes; give a shorter one.")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write plain types as JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file with a header."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
