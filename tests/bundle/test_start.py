"""What the command imports before it has anything to do, and what it leaves out: counted, as seconds depend on load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drr2ct.networks import create_network
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.files import write_checkpoint
from drr2ct.pipeline.running.startup import WAITING
from drr2ct.transforms import write_radiograph
from tests.bundle.conftest import SMALL

SCRIPT = """
import json, sys
sys.argv = ["drr2ct", *sys.argv[1:]]
from drr2ct.pipeline.cli import main
try:
    main()
except SystemExit as stop:
    status = stop.code
else:
    status = 0
waiting = [name for name, module in sys.modules.items() if type(module).__name__ == "_WaitingModule"]
print(json.dumps({"status": status, "modules": sorted(sys.modules), "waiting": waiting}))
"""


def run_apart(*arguments: object) -> dict:
    """Exit status and imported modules of ``drr2ct …`` in a process of its own."""
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr or "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"stdout": done.stdout, "stderr": done.stderr}


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["reconstruct", "--help"], 0),
        (["reconstruct", "--nonsense"], 2),
        (["reconstruct", "--checkpoint", "none.pt", "--output", "ct.nii.gz"], 2),
        (["reconstruct", "--checkpoint", "none.pt", "--output", "ct.nii.gz", "--pa", "a", "--lateral", "b"], 2),
        (["plan", "--checkpointing", "perhaps"], 2),
    ],
)
def test_help_and_wrong_arguments_import_nothing_heavy(arguments: list[str], status: int) -> None:
    found = run_apart(*arguments)
    assert found["status"] == status
    for name in ("torch", "monai", "numpy", "scipy", "itk", "nibabel", "matplotlib"):
        assert name not in found["modules"]


@pytest.mark.slow  # a whole reconstruction in a process of its own
def test_a_reconstruction_imports_what_it_uses(tmp_path: Path) -> None:
    overrides = {key.partition("#")[2]: value for key, value in SMALL.items() if key.startswith("network_def#")}
    network = create_network("cascade64", size=16, detector_size=24, **overrides)
    content = {"network": network.state_dict(), "description": describe(network, "cascade64", "cube", {"training": []})}
    write_checkpoint(tmp_path / "last.pt", content)
    options = []
    for option, view in zip(("--pa", "--lateral"), network.config.geometry.views, strict=True):
        options += [option, tmp_path / f"{view.name}.nii.gz"]
        write_radiograph(options[-1], 3 * torch.rand(view.detector_size))
    output = tmp_path / "ct.nii.gz"
    found = run_apart("reconstruct", "--checkpoint", tmp_path / "last.pt", "--output", output, *options)
    assert found["status"] == 0 and output.exists()
    imported = set(found["modules"]) - set(found["waiting"])
    assert "itk.rtkJosephForwardProjectionImageFilterPython" in imported, "RTK projects"
    used = {name for name in imported & set(WAITING) if not name.startswith("scipy.")}  # reading looks into SciPy's
    waiting = {"scipy.signal", "scipy.stats", "scipy.sparse", "scipy.optimize"}
    assert not used and not waiting & imported, "these wait until they are used"
    for name in ("nanodrr", "torchio", "sympy", "torch.distributed.fsdp", "matplotlib", "pandas", "SimpleITK"):
        assert name not in imported
    assert not [name for name in imported if name.startswith(("drr2ct.pipeline.training", "monai.apps.detection"))]
    rtk = [name for name in imported if name.startswith("itk._rtk")]
    assert len(rtk) < 10, "of RTK's 148 modules only the projector's"
    assert len(imported) < 2600, "2470 when this was written; 3110 with SciPy's statistics and matplotlib"


def test_what_waits_is_there_when_it_is_used() -> None:
    script = """
from drr2ct.pipeline.running.startup import start_lightly
start_lightly()
import sys, monai, scipy.ndimage
from matplotlib.figure import Figure
from torch.distributed.optim import ZeroRedundancyOptimizer
assert type(sys.modules["matplotlib.figure"]).__name__ == "_WaitingModule"
class Mine(Figure): pass
assert isinstance(Mine(), Figure) and Mine.__mro__[1].__module__ == "matplotlib.figure"
assert type(sys.modules["matplotlib.figure"]).__name__ == "module"
assert not isinstance(1, ZeroRedundancyOptimizer)
assert scipy.ndimage.label([1, 0, 1])[1] == 2
assert monai.losses.DiceLoss().sigmoid is False
assert not hasattr(monai, "nothing")
from monai.transforms import KeepLargestConnectedComponent
import torch
assert KeepLargestConnectedComponent()(torch.tensor([[[1, 0, 1, 1]]])).tolist() == [[[0, 0, 1, 1]]]
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


LARGE_PAGES = """
import sys
if sys.argv[1] == "own":
    import torch
from drr2ct.pipeline.running.startup import start_lightly
start_lightly()
import torch
volume = torch.ones(64, 1024, 1024)  # 256 MiB
kib = [line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")]
print(int(kib[0]))
"""
GIVEN = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not GIVEN.exists() or "[madvise]" not in GIVEN.read_text(), reason="pages are not on request here")
@pytest.mark.parametrize(("process", "large"), [("ours", True), ("own", False)])
def test_tensors_lie_in_large_pages_in_a_process_of_ours(process: str, large: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    command = [sys.executable, "-c", LARGE_PAGES, process]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 128 * 1024) == large, "half of the tensor at least, or nothing like it"
