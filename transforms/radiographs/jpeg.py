"""Damage within a JPEG file, which Pillow decodes without a word: half of the picture may then be grey or shifted."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

_DAMAGE = re.compile(rb"Corrupt JPEG data: (?!\d+ extraneous bytes)([^\r\n]+)|(Premature end of JPEG file)")
"""What libjpeg warns of where data are lost; bytes between two segments are none."""


def jpeg_damage(path: Path) -> str:
    """What libjpeg says of the data of a JPEG file that is damaged; empty for a sound one.

    SimpleITK's reader has libjpeg print its warnings, and they are read where they are printed. What other threads
    print meanwhile is lost.

    Args:
        path: of a file with 8 bits per sample.
    """
    import SimpleITK as sitk  # slow to import

    try:
        kept = os.dup(1)
    except OSError:  # a process without a standard output
        return ""
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 1)
        try:
            sitk.ReadImage(str(path), imageIO="JPEGImageIO")
        except RuntimeError:  # of a kind that ITK does not know, such as CMYK
            return ""
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        said.seek(0)
        found = _DAMAGE.search(said.read())
    return "" if found is None else (found[1] or found[2]).decode("ascii", "replace")
