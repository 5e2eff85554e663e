"""Several processes: the same training as one, the same metrics, and no work done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drr2ct.pipeline.running import distributed
from drr2ct.pipeline.running.bundle import begin
from drr2ct.transforms.validation import InputError
from tests.pipeline.running import distributed_worker as worker

ROOT = Path(__file__).parents[3]


@given(count=st.integers(0, 40), world=st.integers(1, 9))
def test_shares_are_disjoint_and_together_all(count: int, world: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(world))
        shares = []
        for rank in range(world):
            patch.setenv("RANK", str(rank))
            shares.append(list(distributed.share(count)))
            evaluated = list(distributed.PatientShare(range(count)))
            assert len(evaluated) == len(distributed.PatientShare(range(count)))
            assert evaluated == (shares[-1] if count >= world else list(range(count)))
    assert sorted(index for part in shares for index in part) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_single_process_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.is_main_process() and distributed.world_size() == 1
    assert distributed.any_process(True) and not distributed.any_process(False)
    assert distributed.mean_over_processes(6.0, 4) == 1.5
    assert distributed.gather({"a": 1}) == [{"a": 1}]
    with pytest.raises(InputError, match="needs torchrun"):
        distributed.start(torch.device("cpu"))


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"add multi_gpu_train\.yaml"):
        begin(0, tmp_path)


@pytest.mark.parametrize(("sent", "status", "requeued"), [(signal.SIGUSR1, 0, True), (signal.SIGTERM, 143, False)])
def test_the_slurm_script_stops_the_run_and_queues_it_again(
    tmp_path: Path, sent: signal.Signals, status: int, requeued: bool
) -> None:
    """With stand-ins for SLURM's commands: no cluster is at hand."""
    stubs = {
        # a run that saves and leaves on SIGTERM
        "srun": f'echo "$@" > {tmp_path}/started; trap "touch {tmp_path}/saved; exit 143" TERM\n'
        "while :; do sleep 0.05; done",
        "scontrol": f'if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >> {tmp_path}/requeued; fi',
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_ID": "42", "JOB_NUM_NODES": "2", "JOB_NODELIST": "node[1-2]", "GPUS_ON_NODE": "4"}
    slurm = {f"SLURM_{name}": value for name, value in slurm.items()}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = [str(ROOT / "docs" / "slurm" / "train.sbatch"), "/cts", "/run", "--epochs", "3"]
    with subprocess.Popen(script, env=environment) as job:
        while not (tmp_path / "started").exists():
            assert job.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        job.send_signal(sent)
        assert job.wait(timeout=10) == status
    started = (tmp_path / "started").read_text()
    assert "--nnodes 2 --nproc_per_node 4" in started and "--rdzv-endpoint node1:29500" in started
    assert started.endswith("drr2ct train /cts --output /run --network cascade256 --epochs 3\n")
    assert (tmp_path / "saved").exists() and (tmp_path / "requeued").exists() == requeued


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two real processes, joined by gloo, found."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*command, "-m", "tests.pipeline.running.distributed_worker", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def worst(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_doubled_batch(found: tuple[Path, list[dict[str, Any]]]) -> None:
    network = worker.small_network()
    gradients = worker.train(network, worker.adam(network.parameters()), slice(None), steps=1)
    # in double precision: Adam turns rounding errors of gradients that are truly zero into whole steps
    network = worker.small_network(dtype=torch.float64)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    worker.train(network, worker.adam(network.parameters()), slice(None))
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
    for process in found[1]:
        assert worst(gradients, process["gradients"]) < 1e-6
        assert worst(network.state_dict(), process["weights"]) < 1e-6
    assert worst(found[1][0]["weights"], found[1][1]["weights"]) == 0, "they stay together"
    assert worst(start, network.state_dict()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["direct128", "direct256"])
def test_a_sharded_optimizer_steps_alike_and_keeps_half(found: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    network = worker.small_network(name, torch.float64)
    optimizer = worker.adam(network.parameters())
    worker.train(network, optimizer, slice(None), worker.SHARDED_STEPS)
    weights = sum(p.numel() for p in network.parameters())
    for process in found[1]:
        assert worst(network.state_dict(), process[name]["weights"]) < 1e-6
        assert process[name]["held"] < 0.6 * 2 * weights
    assert sum(process[name]["held"] for process in found[1]) == 2 * weights
    # consolidated, it is the state of an ordinary optimiser
    ordinary = torch.optim.AdamW(network.parameters(), lr=1e-3)
    ordinary.load_state_dict(found[1][0][name]["optimizer"])
    for parameter in network.parameters():
        mine, theirs = optimizer.state[parameter], ordinary.state[parameter]
        assert mine["step"] == theirs["step"] == worker.SHARDED_STEPS
        assert torch.allclose(mine["exp_avg"], theirs["exp_avg"], atol=1e-5)


@pytest.mark.slow
def test_metrics_are_means_over_patients_however_they_divide(
    found: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for i, count in enumerate((worker.PATIENTS, 4, 1)):  # odd, even, fewer than processes
        alone = worker.figures(count)
        for process in found[1]:
            assert process["figures"][i] == pytest.approx(alone, rel=1e-6), count


@pytest.mark.slow
def test_what_processes_tell_each_other(found: tuple[Path, list[dict[str, Any]]]) -> None:
    for process in found[1]:
        assert process["any"] == [True, False]
        assert process["mean"] == 10.0
        assert [entry["rank"] for entry in process["gathered"]] == [0, 1]
        assert [len(entry["values"]) for entry in process["gathered"]] == [3, 1003]


@pytest.mark.slow
def test_each_sample_is_computed_once_and_by_one_process(found: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, processes = found
    computed = [(folder / f"computed_by_{rank}").read_text().split() for rank in range(2)]
    assert Counter(computed[0] + computed[1]) == Counter(f"p{i}" for i in range(7))
    assert computed == [["p0", "p2", "p4", "p6"], ["p1", "p3", "p5"]]
    assert all(process["cached"] == [float(i) for i in range(7)] for process in processes)
    assert len(list((folder / "cache").iterdir())) == 7, "no temporary files are left"
