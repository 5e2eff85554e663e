"""Processes beside a first one, where temporary files lie somewhere deep."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOADS = """
import sys, tempfile, torch
from torch.utils.data import DataLoader
from drr2ct.pipeline.running.workers import keep_sockets_short
if sys.argv[1] == "kept":
    keep_sockets_short()
loader = DataLoader([torch.full((1000,), float(i)) for i in range(6)], num_workers=2, timeout=float(sys.argv[2]))
print(tempfile.gettempdir(), sum(int(batch.mean()) for batch in loader))
"""
by_itself = pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python keeps them short by itself")


@pytest.mark.parametrize(("kept", "patience"), [("kept", "60"), pytest.param("not", "5", marks=by_itself)])
def test_a_loader_works_where_the_temporary_folder_has_a_long_path(tmp_path: Path, kept: str, patience: str) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    environment = os.environ | {"TMPDIR": str(deep)}
    command = [sys.executable, "-c", LOADS, kept, patience]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if kept == "kept":
        assert run.returncode == 0 and run.stdout.split() == [str(deep), "15"], run.stderr
    else:
        assert run.returncode != 0 and "AF_UNIX" in run.stderr
    assert not list(deep.glob("**/listener-*"))
