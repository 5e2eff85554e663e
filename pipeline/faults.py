"""What the machine does wrong, in one sentence that says what to do: full disks, readers that die or stall."""

from __future__ import annotations

import errno

from drr2ct.transforms.validation import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class MachineFaultError(InputError):
    """The machine, not the input, is at fault; the message says what to do."""


def explain_fault(error: BaseException | None) -> InputError | None:
    """The machine's fault behind an exception, if it is one that can be named; causes are looked through."""
    while error is not None:
        if isinstance(error, MachineFaultError):
            return error
        text = str(error)
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        if (isinstance(error, OSError) and error.errno in _FULL) or "(os error 28)" in text:  # Rust's, of safetensors
            return MachineFaultError(
                f"the disk is full{where}; what was complete before is intact: free space, or set output_dir and "
                "cache_dir elsewhere, and give the same command again."
            )
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            return MachineFaultError(
                f"the file system is read-only{where}; what was complete before is intact: make it writable, or set "
                "output_dir and cache_dir elsewhere, and give the same command again."
            )
        if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
            return MachineFaultError(
                f"no data came from the loading processes in time ({text}); check that the storage answers, or raise "
                "loader_timeout, and give the same command again."
            )
        if isinstance(error, RuntimeError) and "DataLoader worker" in text and ("killed" in text or "exited" in text):
            return MachineFaultError(
                f"a process that loads data has died ({' '.join(text.split())}); most often memory was short: lower "
                "num_workers, then give the same command again."
            )
        error = error.__cause__ or error.__context__
    return None
