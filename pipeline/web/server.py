"""``drr2ct serve``: a session from its folder to the last word."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from rich.console import Console

from drr2ct.pipeline.running.workers import keep_sockets_short
from drr2ct.pipeline.web.app import create_app
from drr2ct.pipeline.web.desk import Desk, losses
from drr2ct.pipeline.web.processes import run_task
from drr2ct.transforms.validation import InputError, existing_file

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LEAST_TOKEN = 16
_PREFIX = "drr2ct-serve-"
_LOCK = ".lock"
_AGAIN_SECONDS = 10.0
_START_SECONDS = 300.0


def serve(
    checkpoints: Sequence[str | Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    keep: Path | None = None,
    console: Console | None = None,
) -> None:
    """Serve the page until it is stopped.

    Args:
        checkpoints: networks to choose from, before those that are shipped; the first of all is the default.
        host: address to listen on; another than loopback needs a token.
        port: 0 for any that is free.
        token: that everybody has to give.
        keep: folder in which the session's stays; by default it is a temporary one, deleted at the end.
        console: where the address is printed, and at the end what is lost.

    Raises:
        InputError: for another host without a token, a token that can be guessed, a port that is taken, or a
            checkpoint that cannot be used.
    """
    console = console or Console()
    if host not in LOOPBACK and token is None:
        raise InputError(f"--host {host} lets others in; give a --token that they need (16 characters or more).")
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise InputError(f"the token is shorter than {LEAST_TOKEN} characters, or not plain ASCII; make a longer one.")
    paths = [existing_file(path, "checkpoint").resolve() for path in checkpoints]
    for number in (signal.SIGTERM, signal.SIGHUP):  # until the server has its own way to stop
        signal.signal(number, _leave)
    keep_sockets_short()
    with _listening(host, port) as listener, _session_folder(keep) as folder:
        desk = Desk(folder, [])
        asyncio.run(_run(desk, paths, listener, host, token, keep is not None, console))


def _leave(number: int, frame: FrameType | None) -> None:
    """End by an exception, so that the session's folder goes."""
    raise SystemExit(128 + number)


async def _run(
    desk: Desk,
    paths: Sequence[Path],
    listener: socket.socket,
    host: str,
    token: str | None,
    kept: bool,
    console: Console,
) -> None:
    console.print("drr2ct: loading PyTorch and MONAI", highlight=False)  # which takes seconds
    arguments = {"checkpoints": [str(path) for path in paths], "names": _names(paths)}
    desk.networks = await run_task("networks", arguments, desk.root, _START_SECONDS)
    tempfile.tempdir = str(desk.root)  # uploads on their way are as private as the rest
    hosts = {*LOOPBACK, host.lower()}
    if host not in LOOPBACK:
        hosts |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    app = create_app(desk, hosts, any_address=host not in LOOPBACK, token=token)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # addresses may hold the token
        server_header=False,
        date_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=200,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config, desk, kept, console)
    signal.signal(signal.SIGHUP, server.handle_exit)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/" + (f"?token={token}" if token else "")
    listener.listen(128)  # who opens it at once waits for a moment
    console.print(f"open {address}", highlight=False, soft_wrap=True)
    console.print("Research software, not for clinical use. Ctrl-C stops the server.", highlight=False)
    await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn's, but the first Ctrl-C says what would be lost, and at the end of any the session's folder goes."""

    def __init__(self, config: uvicorn.Config, desk: Desk, kept: bool, console: Console) -> None:
        super().__init__(config)
        self.desk = desk
        self.kept = kept
        self.console = console
        self.warned = -1e9

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT asks once; SIGTERM, SIGHUP (a terminal that is closed), or SIGINT again, stops.

        uvicorn's own would raise the signal again at its end, which kills before anything is deleted.
        """
        lost = losses(self.desk, self.kept)
        if lost and sig == signal.SIGINT and time.monotonic() - self.warned > _AGAIN_SECONDS:
            self.warned = time.monotonic()
            self.console.print(
                f"\ndrr2ct: stopping now loses {lost}; press Ctrl-C again within {_AGAIN_SECONDS:.0f} s to stop.",
                highlight=False,
            )
            return
        if lost and not self.should_exit and sig != signal.SIGHUP:
            self.console.print(f"\ndrr2ct: stopped; lost: {lost}.", highlight=False)
        self.desk.close()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listener:
        try:
            listener.bind((host, port))
        except OSError as error:
            raise InputError(
                f"{host}:{port} cannot be used ({error.strerror}); choose another --host or --port."
            ) from error
        yield listener


@contextlib.contextmanager
def _session_folder(keep: Path | None) -> Iterator[Path]:
    """A folder for its owner alone (0700), gone at the end unless it is to be kept.

    It holds a lock for as long as the server lives: what a killed one left behind is deleted by the next.
    """
    if keep is not None:
        folder = keep.resolve() / f"{time.strftime('%Y-%m-%d_%H%M%S')}_{secrets.token_hex(3)}"
        try:
            folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise InputError(f"{keep} cannot be written ({error.strerror}); choose another folder to keep.") from error
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # nothing was done
        return
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its server lives
                shutil.rmtree(folder, ignore_errors=True)


def _names(paths: Sequence[Path]) -> list[str]:
    """An identifier for each checkpoint: its name, or its last parts where that is not enough."""
    names: list[Any] = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = ["/".join(path.parts[-3:]) for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return names
