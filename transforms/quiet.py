"""Libraries that write to the screen what their callers say in one sentence."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("pydicom", "tifffile", "PIL", "nibabel.global")


@contextmanager
def quiet_libraries(also_native: bool = False) -> Iterator[None]:
    """Nothing of image libraries reaches the screen: their warnings, and log entries with tracebacks.

    Args:
        also_native: also what C libraries write to the process's standard error. Others write there meanwhile in
            vain, so only for calls that are short.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            if also_native:
                with _native_errors_dropped():
                    yield
            else:
                yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


@contextmanager
def _native_errors_dropped() -> Iterator[None]:
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # a process without a standard error
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
