"""Work in processes of its own, which can be killed: the server opens no file of a user's itself, and outlives all.

Processes are forked from one that has imported PyTorch and MONAI once, so that they start at once, and what they held
is given back when they end. What they say comes as JSON, which can carry no code.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from drr2ct.transforms.validation import InputError

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["__main__", "drr2ct.pipeline.web.preloaded"])

LOG = "log.txt"
"""What a process prints, in its folder."""


class WorkerDiedError(InputError):
    """A process ended without a word: it was killed, most often for want of memory, or took too long."""


class DiskFullError(InputError):
    """There was no space for what was to be written."""


async def run_task(
    name: str,
    arguments: Mapping[str, Any],
    folder: Path,
    seconds: float,
    told: Callable[[dict[str, Any]], None] = lambda message: None,
) -> Any:
    """Run one of ``drr2ct.pipeline.web.tasks.TASKS`` in a process; cancelling this kills it.

    Args:
        name: of the task.
        arguments: of it, in plain types.
        folder: in which it works: paths in the arguments are relative to it.
        seconds: after which it is killed.
        told: is given what the task tells on its way.

    Returns:
        What the task returns, in plain types.

    Raises:
        InputError: what the task refuses.
        DiskFullError: if it has no space to write.
        WorkerDiedError: if the process dies or takes too long.
    """
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_work, args=(name, dict(arguments), str(folder), sender), daemon=True)
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    starting = asyncio.ensure_future(asyncio.to_thread(_start, process))
    try:
        failure = await asyncio.shield(starting)  # the first waits until everything is imported
        if failure is not None:
            raise WorkerDiedError(
                f"no process can be started ({failure}); close other programs and try again."
            ) from failure
        sender.close()
        loop.add_reader(receiver.fileno(), _take, receiver, arrived, loop)
        async with asyncio.timeout(seconds):
            while (message := await arrived.get()) is not None:
                if "result" in message:
                    return message["result"]
                if "refused" in message:
                    raise (DiskFullError if message["full"] else InputError)(message["refused"])
                told(message)
        await asyncio.to_thread(process.join)
        why = "most often memory was short" if process.exitcode == -signal.SIGKILL else f"status {process.exitcode}"
        raise WorkerDiedError(f"the process that did this was stopped from outside ({why}); try again.")
    except TimeoutError:
        raise WorkerDiedError(f"this took more than {seconds:.0f} s and was stopped.") from None
    finally:
        loop.remove_reader(receiver.fileno())
        await asyncio.wait([starting])  # cancelled before, it would start all the same, and work on unseen
        if process.pid is not None:
            process.kill()
            await asyncio.shield(asyncio.to_thread(process.join))
        receiver.close()


def _start(process: BaseProcess) -> OSError | EOFError | None:
    """Why it cannot start; returned, since asyncio prints an exception that nobody waits for any longer."""
    try:
        process.start()
    except (OSError, EOFError) as error:
        return error
    return None


def _take(receiver: Connection, arrived: asyncio.Queue[dict[str, Any] | None], loop: asyncio.AbstractEventLoop) -> None:
    """One message, or None at the end."""
    try:
        arrived.put_nowait(json.loads(receiver.recv_bytes()))
    except (EOFError, OSError, ValueError):
        loop.remove_reader(receiver.fileno())
        arrived.put_nowait(None)


def _work(name: str, arguments: dict[str, Any], folder: str, sender: Connection) -> None:
    """In the process: run the task, and say how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to answer
    multiprocessing.set_start_method("fork", force=True)  # its locks then leave nothing behind if it is killed
    os.umask(0o077)
    os.chdir(folder)
    tempfile.tempdir = folder
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    from drr2ct.pipeline.web import tasks  # what the server itself does not wait for

    def tell(**message: Any) -> None:
        sender.send_bytes(json.dumps(message).encode())

    try:
        tell(result=tasks.TASKS[name](tell=tell, **arguments))
    except BrokenPipeError:  # nobody wants to know any longer
        return
    except Exception as error:
        tell(refused=tasks.explained(error), full=tasks.is_full(error))
