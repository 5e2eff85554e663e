"""What is counted while operations run, on graphs small enough to count by hand."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from drr2ct.networks.ssim import gaussian_window, mean_ssim
from drr2ct.pipeline.planning.tracing import StorageTracker

KB = 1024


def test_storage_is_counted_once_and_until_its_last_reference_goes():
    with FakeTensorMode(), StorageTracker() as tracker:
        a = torch.empty(256)
        assert tracker.live == KB
        view = a.view(16, 16)[:2]
        a.add_(1)
        assert tracker.live == KB
        b = a + a
        assert (tracker.live, tracker.peak) == (2 * KB, 2 * KB)
        del a
        assert tracker.live == 2 * KB, "the view still holds it"
        del view
        assert tracker.live == KB
        del b
        assert (tracker.live, tracker.peak) == (0, 2 * KB)


def test_backward_of_a_small_graph():
    with FakeTensorMode(), StorageTracker() as tracker:
        x = torch.empty(256, requires_grad=True)
        y = x.exp()  # keeps its result
        z = y.sin()  # keeps y
        del y
        assert tracker.live == 3 * KB  # x, y, z
        z.backward(torch.empty(256))
        # x, z and x's gradient; y went with the graph
        assert tracker.live == 3 * KB


def test_what_operations_allocate_inside_counts_while_they_run():
    def inside(func, args, kwargs):
        return 5 * KB if func.overloadpacket is torch.ops.aten.exp else 0

    with FakeTensorMode(), StorageTracker(inside) as tracker:
        a = torch.empty(256)
        tracker.section = "exp"
        b = a.exp()
        tracker.section = "after"
        c = b + a
    assert (tracker.live, tracker.peak) == (3 * KB, 6 * KB)
    assert tracker.section_peak == {"": KB, "exp": 6 * KB, "after": 3 * KB}
    assert c.shape == a.shape


def test_flops_of_a_product():
    with FakeTensorMode(), StorageTracker() as tracker:
        tracker.section = "product"
        torch.empty(3, 4) @ torch.empty(4, 5)
    assert tracker.section_flops["product"] == tracker.flops == 2 * 3 * 4 * 5


def test_recomputation_and_custom_functions_are_seen():
    def chain(x):
        for _ in range(8):
            x = x.exp()
        return x

    kept = {}
    for recompute in (False, True):
        with FakeTensorMode(), StorageTracker() as tracker:
            x = torch.empty(256, requires_grad=True)
            y = checkpoint(chain, x, use_reentrant=False) if recompute else chain(x)
            kept[recompute] = tracker.live
            tracker.peak = tracker.live
            y.sum().backward()
            assert tracker.peak >= 9 * KB
    assert kept == {False: 9 * KB, True: 2 * KB}

    window = gaussian_window(5, 1.0)
    with FakeTensorMode(), StorageTracker() as tracker:
        first, second = torch.empty(1, 1, 16, 16, requires_grad=True), torch.empty(1, 1, 16, 16)
        value = mean_ssim(first, second, [window] * 2)
        # the images, and the gradient that SSIM has computed with its value
        assert tracker.live >= 3 * KB
        assert tracker.peak > tracker.live
        value.sum().backward()
