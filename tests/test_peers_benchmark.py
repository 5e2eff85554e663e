"""Other projects' networks beside ours, with checkouts made up here that have their interfaces."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = ("lib", "models", "XrayTo3DShape", "mamba_ssm", "pytorch3d")
"""Packages of checkouts, and what stands in for packages that they need."""

CROSSING = """
import numpy as np
import torch.nn as nn
class Crossing(nn.Module):
    def __init__(self, opt):
        super().__init__()
        self.orders = [tuple(np.argsort(o)) for o in (opt.CTOrder_Xray1, opt.CTOrder_Xray2)]
        self.scale = nn.Conv3d(1, 1, 1)
        nn.init.ones_(self.scale.weight); nn.init.zeros_(self.scale.bias)
    def forward(self, pictures):
        assert len(pictures) == 2
        volume = 1
        for picture, order in zip(pictures, self.orders):
            assert 0 <= float(picture.min()) and float(picture.max()) == 1
            size = picture.shape[-1]
            volume = volume * picture.unsqueeze(2).expand(-1, -1, size, -1, -1).permute(*order)
        return volume, volume, self.scale(volume)
"""
FACTORY = """
from .crossing import Crossing
print("initialize network parameters")
def define_3DG(noise_len, input_shape, output_shape, input_nc, output_nc, ngf, which_model_netG, n_downsampling,
               norm="batch", use_dropout=False, init_type="normal", gpu_ids=[], n_blocks=9,
               encoder_input_shape=(128, 128), encoder_input_nc=1, encoder_norm="instance2d", encoder_blocks=3,
               skip_num=1, activation_type="relu", opt=None):
    assert (which_model_netG, norm, encoder_norm) == KIND
    return Crossing(opt)
"""
BACKPROJECTED = """
import torch.nn as nn
from mamba_ssm import Mamba
from lib.model.nets.generator.back_pro import Backprojector, Backprojector_single
class Crossing(nn.Module):
    def __init__(self, opt):
        super().__init__()
        self.back = Backprojector(interp="nearest")
        self.coarse = Backprojector(interp="nearest", input_hw=64, output_hw=64)
        self.mamba = Mamba(d_model=8, d_state=4, d_conv=4, expand=2)
    def forward(self, pictures):
        first, second = pictures
        assert self.coarse(first[..., ::2, ::2], second[..., ::2, ::2]).shape[2:] == (64, 64, 64)
        volume = self.back(first, second)
        return volume, volume, volume
"""
SHAPES = """
import torch.nn as nn
from ..utils.registry import ARCHITECTURES
class Crossing(nn.Module):
    def forward(self, volume):
        return volume[:, :1] * volume[:, 1:]
class Permuted(nn.Module):
    def forward(self, ap_image, lat_image):
        size = ap_image.shape[-1]
        ap, lat = (picture.expand(-1, size, -1, -1) for picture in (ap_image, lat_image))
        return (ap * lat.transpose(1, -1))[:, None]
def get_model(model_name, image_size, dropout=False):
    return {"UNet": Crossing, "AttentionUnet": Crossing, "MultiScale2DPermuteConcat": Permuted}[model_name]()
"""
SAMPLED = """
import torch
def sampled(projs, places):
    values = 1
    for view in range(projs.shape[1]):
        feat, uv = projs[:, view].transpose(2, 3), places[:, view].unsqueeze(2)
        values = values * torch.nn.functional.grid_sample(feat, uv, align_corners=True)[..., 0]
    return values
"""
DIF_NET = """
import torch.nn as nn
from models.sampled import sampled
class DIF_Net(nn.Module):
    def __init__(self, num_views, combine, mid_ch=128):
        super().__init__()
        assert (num_views, combine) == (2, "mlp")
    def forward(self, data, is_eval=False, eval_npoint=100000):
        values = sampled(data["projs"], data["proj_points"])
        return values if is_eval else (values, data["p_gt"])
"""
GS_UTILS = """
import torch
from pytorch3d.ops.knn import knn_points, knn_gather
def matrices(count):
    return torch.zeros((count, 3, 3), dtype=torch.float, device="cuda")
"""
DIF_GAUSSIAN = """
import torch
import torch.nn as nn
from models.sampled import sampled
from models.gs_utils import knn_gather, knn_points, matrices
class DIF_Gaussian(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        assert cfg.point_decoder.mlp_chs == [4, 1]
        self.res = cfg.gs.res
    def forward(self, data, is_eval=False, eval_npoint=100000):
        assert matrices(2).device.type == "cpu"
        assert data["points_gs"].shape[1] == data["points_gs_proj"].shape[2] == self.res**3
        _, index, _ = knn_points(data["points"][:, :50], data["points_gs"], K=3)
        near = knn_gather(data["points_gs"], index)
        assert float((near - data["points"][:, :50, None]).norm(dim=-1).max()) < 1
        return {"points_pred": sampled(data["projs"], data["points_proj"])}
"""
FAILS = "import a_package_that_is_not_there\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def x2ct(root: Path) -> Path:
    kind = ("multiview_network_denseUNetFuse_transposed", "instance3d", "instance")
    nets = "3DGAN/lib/model/nets"
    return write(root, {f"{nets}/factory.py": FACTORY + f"KIND = {kind}\n", f"{nets}/crossing.py": CROSSING})


def psct(root: Path) -> Path:
    kind = ("multiview_network_x2ct_bp_gan", "batch3d", "batch")
    nets = "lib/model/nets"
    files = {f"{nets}/factory.py": FACTORY + f"KIND = {kind}\n", f"{nets}/crossing.py": BACKPROJECTED}
    return write(root, {**files, f"{nets}/generator/back_pro.py": FAILS})


def xrayto3d(root: Path) -> Path:
    package = "XrayTo3DShape"
    files = {f"{package}/__init__.py": FAILS, f"{package}/utils/__init__.py": FAILS}
    files[f"{package}/utils/registry.py"] = "ARCHITECTURES = {}\n"
    return write(root, {**files, f"{package}/architectures/get_model.py": SHAPES})


def dif_net(root: Path) -> Path:
    return write(root, {"code/models/model.py": DIF_NET, "code/models/sampled.py": SAMPLED})


def dif_gaussian(root: Path) -> Path:
    files = {"model.py": DIF_GAUSSIAN, "gs_utils.py": GS_UTILS, "sampled.py": SAMPLED}
    settings = "model:\n  point_decoder:\n    mlp_chs: [4, 1]\n  gs:\n    res: 3\n"
    return write(root, {**{f"code/models/{n}": t for n, t in files.items()}, "configs/default.yaml": settings})


CHECKOUTS = {
    "x2ct": x2ct,
    "psct": psct,
    "xrayto3d-unet": xrayto3d,
    "xrayto3d-attention": xrayto3d,
    "xrayto3d-multiscale": xrayto3d,
    "dif-net": dif_net,
    "dif-gaussian": dif_gaussian,
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The benchmark's modules; what is imported from checkouts is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cascades
    import peer_adapters
    import peer_checkouts
    import peer_training
    import peers

    path = list(sys.path)
    yield SimpleNamespace(
        cascades=cascades, adapters=peer_adapters, checkouts=peer_checkouts, training=peer_training, peers=peers
    )
    sys.path[:] = path
    for name in [name for name in sys.modules if name.split(".")[0] in IMPORTED]:
        del sys.modules[name]


def spot(geometry: Any, point: tuple[float, float, float], width: float = 1.5) -> Tensor:
    """Radiographs (1, 2, H, W) of a small ball at an isocentric point (mm)."""
    rows, columns = (torch.arange(n).float() for n in geometry.detector_size)
    pictures = []
    for view in geometry.views:
        column, row = view.project(torch.tensor([point], dtype=torch.float64).numpy())[0]
        pictures.append(torch.exp(-((rows[:, None] - row) ** 2 + (columns - column) ** 2) / (2 * width**2)))
    return torch.stack(pictures)[None].float()


@pytest.mark.parametrize("name", CHECKOUTS)
def test_a_ball_in_each_octant_is_found_there(bench: SimpleNamespace, tmp_path: Path, name: str) -> None:
    peer = bench.checkouts.PEERS[name]
    network = bench.checkouts.load(peer, CHECKOUTS[name](tmp_path)).eval()
    geometry = bench.cascades.GEOMETRY
    centres = geometry.grid.centres().reshape(-1, 3)
    for octant in range(8):
        x, y, z = (side if octant >> axis & 1 else -side for axis, side in enumerate((65.0, 45.0, 85.0)))
        with torch.no_grad():
            volume = network(spot(geometry, (x, y, z)))
        assert volume.shape == (1, 1, *[geometry.grid.size] * 3)
        assert float(volume.min()) >= 0 and 0 < float(volume.max()) <= 1
        found = centres[volume.flatten().argmax()]
        assert float((found - torch.tensor([x, y, z])).norm()) < 2 * geometry.grid.spacing_mm, (octant, found)


def test_a_loss_is_of_the_networks_own_orientation_and_scale(bench: SimpleNamespace, tmp_path: Path) -> None:
    for name in ("x2ct", "xrayto3d-unet", "dif-net"):
        network = bench.checkouts.load(bench.checkouts.PEERS[name], CHECKOUTS[name](tmp_path / name)).eval()
        image = spot(bench.cascades.GEOMETRY, (60.0, -40.0, 80.0), width=12)
        with torch.no_grad():
            right = network(image)
            losses = {}
            for axis in (2, 3, 4):
                torch.manual_seed(0)
                own = network.loss(image, right)
                torch.manual_seed(0)
                losses[axis] = (float(own), float(network.loss(image, right.flip(axis))))
        assert all(abs(own) < 1e-4 < mirrored for own, mirrored in losses.values()), (name, losses)


def test_what_cannot_be_imported_is_one_sentence(bench: SimpleNamespace, tmp_path: Path) -> None:
    peer, load = bench.checkouts.PEERS["x2ct"], bench.checkouts.load
    with pytest.raises(bench.checkouts.UnusableError, match="has no folder 3DGAN/lib/model/nets; give a checkout of"):
        load(peer, tmp_path)
    checkout = write(x2ct(tmp_path), {"3DGAN/lib/model/nets/crossing.py": FAILS})
    with pytest.raises(bench.checkouts.UnusableError, match="No module named 'a_package_that_is_not_there'") as caught:
        load(peer, checkout)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, "no licence file"),
        ({"README.md": "MIT License"}, "no licence file"),
        ({"LICENSE": "MIT License\n\nCopyright (c) 2023 Somebody"}, "MIT License"),
        ({"License.txt": "\n  GNU GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007\n"}, "GNU GPL 3"),
        ({"LICENCE": "\nFor research at Our Place only.\nNo warranty."}, "For research at Our Place only."),
    ],
)
def test_a_licence_is_named_from_its_file(
    bench: SimpleNamespace, tmp_path: Path, files: dict[str, str], name: str
) -> None:
    assert bench.checkouts.licence(write(tmp_path, files)) == name


def test_another_licence_at_the_head_of_the_sources_is_told(bench: SimpleNamespace, tmp_path: Path) -> None:
    head = "# Licensed under the GNU General Public License v3.0 (GPL-3.0).\nimport torch\n"
    checkout = write(tmp_path, {"LICENSE": "MIT License", "nets/a.py": head, "nets/b.py": "import torch\n"})
    assert bench.checkouts.licence(checkout, checkout / "nets") == "MIT License; its sources say GNU GPL 3"


def test_results_are_of_the_settings_too(bench: SimpleNamespace, tmp_path: Path) -> None:
    peer = bench.checkouts.PEERS["dif-gaussian"]
    files = {"code/models/model.py": "", "configs/default.yaml": "model: {gs: {res: 12}}"}
    before = bench.checkouts.digest(peer, write(tmp_path, files))
    assert bench.checkouts.digest(peer, write(tmp_path, files)) == before
    assert bench.checkouts.digest(peer, write(tmp_path, {"configs/default.yaml": "model: {gs: {res: 8}}"})) != before


def test_mamba_stands_for_its_equations(bench: SimpleNamespace) -> None:
    """No output depends on later inputs, and a state that decays at once leaves the convolution's own product."""
    from peer_standins import Mamba

    torch.manual_seed(0)
    layer = Mamba(d_model=8, d_state=4).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    changed = x.clone()
    changed[:, 5:] += 1
    with torch.no_grad():
        before, after = layer(x), layer(changed)
        assert before.shape == x.shape
        assert torch.equal(before[:, :5], after[:, :5]) and not torch.allclose(before[:, 5:], after[:, 5:])
        layer.decay.fill_(50.0)  # exp(−Δ exp(50)) = 0: only what is written now is read
        alone = layer(x)
        inner, gate = layer.into(x).chunk(2, dim=-1)
        u = nn.functional.silu(layer.conv(inner.transpose(1, 2))[..., :9].transpose(1, 2))
        step, write, read = layer.select(u).split([layer.rank, 4, 4], dim=-1)
        product = nn.functional.softplus(layer.step(step)) * u * (write * read).sum(-1, keepdim=True) + u
        assert torch.allclose(alone, layer.out(product * nn.functional.silu(gate)))


class Counted(nn.Module):
    """A network of one number, each step of which takes some seconds of a clock that it moves on."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.ones(()))
        self.clock, self.seconds = clock, seconds

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        self.clock[0] += self.seconds
        return (self.number * image - label).square().mean()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    # a step is not cut short: what is slower than all the time makes one
    [(0.25, (16, 4.0)), (1.0, (4, 4.0)), (7.0, (1, 7.0))],
)
def test_all_train_for_the_same_seconds(bench: SimpleNamespace, seconds: float, expected: tuple[int, float]) -> None:
    clock = [0.0]
    network = Counted(clock, seconds)
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    rates: list[float] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            clock[0] += 100  # making a sample is not counted
            yield torch.ones(1), torch.zeros(1)

    def after_step(used: float, steps: int) -> None:
        clock[0] += 50  # nor is measuring
        rates.append(optimizer.param_groups[0]["lr"])

    budget = bench.cascades.Budget(4.0, 0, lambda: clock[0])
    trained = bench.cascades.fit(network, network.loss, optimizer, batches(), budget, "counted", after_step)
    assert (trained["steps"], trained["seconds"]) == expected
    assert max(rates) <= 0.5 and rates[-1] <= rates[len(rates) // 2]


@pytest.fixture
def command(bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command with a fold of two made-up samples, its jobs in this process; gives what it says, and its jobs."""
    geometry = bench.cascades.GEOMETRY
    image = spot(geometry, (40.0, 20.0, -30.0), width=20)
    label = torch.exp(-(geometry.grid.centres() - torch.tensor([40.0, 20.0, -30.0])).square().sum(-1) / 5000)[
        None, None
    ]
    samples = bench.cascades.Samples(image, 0.5 * label)
    fold = bench.cascades.Fold(
        lambda data, seed: bench.cascades.shuffled(samples), None, {"cohort": samples}, 0.4 * label
    )
    monkeypatch.setattr(bench.training, "fold_of", lambda job: fold)
    monkeypatch.setattr(bench.cascades, "fit_to_radiographs", lambda prediction, *_: (prediction, None))
    jobs: list[dict[str, Any]] = []

    def lines(job: dict[str, Any]) -> Iterator[dict[str, str]]:
        jobs.append(json.loads(json.dumps(job)))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            bench.training.run(jobs[-1])
        for line in printed.getvalue().splitlines():
            if line.startswith(bench.training.MARK):
                yield json.loads(line.removeprefix(bench.training.MARK))

    monkeypatch.setattr(bench.peers, "job_lines", lines)

    def run(*options: str) -> tuple[str, list[dict[str, Any]]]:
        jobs.clear()
        printed = io.StringIO()
        words = ["peers.py", "--output", str(tmp_path / "out"), "--steps", "2", *options]
        with monkeypatch.context() as within, contextlib.redirect_stdout(printed):
            within.setattr(sys, "argv", words)
            bench.peers.main()
        return printed.getvalue(), list(jobs)

    return run


def test_what_is_not_given_is_said(command: Any, bench: SimpleNamespace, tmp_path: Path) -> None:
    said, jobs = command("--networks", *bench.checkouts.PEERS)
    for name, peer in bench.checkouts.PEERS.items():
        assert f"{name}: no checkout of {peer.repository} is given (--{peer.option} CHECKOUT); skipped." in said
    assert [job["network"] for job in jobs] == ["mean"]
    assert "| mean |" in (tmp_path / "out/peers.md").read_text()


def test_a_checkout_is_trained_at_two_rates_and_kept(command: Any, tmp_path: Path) -> None:
    checkout = write(x2ct(tmp_path / "theirs"), {"LICENSE": "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007"})
    bad = write(dif_net(tmp_path / "bad"), {"code/models/sampled.py": FAILS})
    given = ("--networks", "x2ct", "dif-net", "--x2ct", str(checkout), "--dif-net", str(bad))
    said, jobs = command(*given)
    assert "dif-net: " in said and "No module named 'a_package_that_is_not_there'); skipped." in said
    out = tmp_path / "out"
    rows = {p.parent.name: json.loads(p.read_text()) for p in out.glob("results/*/cohort.json")}
    assert set(rows) == {"mean", "x2ct", "x2ct-x3"}
    assert rows["x2ct-x3"]["rate"] == pytest.approx(3 * rows["x2ct"]["rate"]) == pytest.approx(6e-4)
    assert all(rows[name]["steps"] == 2 and rows[name]["licence"] == "GNU GPL 3" for name in ("x2ct", "x2ct-x3"))
    page = (out / "peers.md").read_text()
    assert "| x2ct-x3 |" in page and "(github.com/kylekma/X2CT; GNU GPL 3)" in page
    assert (out / "peers.png").stat().st_size > 1000 and len(json.loads((out / "peers.json").read_text())["rows"]) == 3

    # what is there is not done again; one that is lost is
    assert [job["network"] for job in command(*given)[1]] == ["dif-net"]
    (out / "results/x2ct-x3/cohort.json").unlink()
    _, jobs = command(*given)
    assert [list(job["rows"]) for job in jobs if job["network"] == "x2ct"] == [["x2ct-x3"]]

    # other code is another network
    factory = checkout / "3DGAN/lib/model/nets/factory.py"
    factory.write_text(factory.read_text() + "# changed\n")
    with pytest.raises(SystemExit, match="is of another x2ct"):
        command(*given)
    with pytest.raises(SystemExit):
        command(*given, "--seed", "1")


def test_a_training_that_fails_stops_no_other(command: Any, tmp_path: Path) -> None:
    broken = CROSSING.replace("return volume, volume, self", "volume = volume / 0; return volume, volume, self")
    checkout = write(x2ct(tmp_path / "theirs"), {"3DGAN/lib/model/nets/crossing.py": broken})
    said, _ = command("--networks", "x2ct", "--x2ct", str(checkout))
    assert said.count("the loss is not finite") == 2
    assert not (tmp_path / "out/results/x2ct").exists() and "mean" in said


TELLS = """
import json, sys
job = json.load(sys.stdin)
print("noise")
print("@peers " + json.dumps({"progress": job["network"]}))
"""
DIES = "import sys; sys.stdin.read(); sys.exit('it ran out of memory')"


@pytest.mark.parametrize(
    ("program", "told"), [(TELLS, {"progress": "n"}), (DIES, {"failed": "n: exit status 1: it ran out of memory"})]
)
def test_a_job_tells_what_it_does_and_how_it_ends(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, told: dict[str, str]
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(program)
    monkeypatch.setattr(bench.peers, "WORKER", worker)
    assert list(bench.peers.job_lines({"network": "n"})) == [told]


@pytest.mark.slow
def test_a_job_imports_in_a_process_of_its_own(bench: SimpleNamespace, tmp_path: Path) -> None:
    checkout = write(x2ct(tmp_path), {"3DGAN/lib/model/nets/crossing.py": FAILS})
    job = {"network": "x2ct", "checkout": str(checkout), "seed": 0}
    (told,) = bench.peers.job_lines(job)
    assert "No module named 'a_package_that_is_not_there'" in told["unusable"]
    assert "lib" not in sys.modules
