"""Precision: chosen by hardware, and the network really computes in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from drr2ct.pipeline.running.precision import AutocastInferer, channels_last_pays, choose_precision, clip_gradients
from drr2ct.transforms.validation import InputError


class Spy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.dtype: torch.dtype | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        self.dtype = y.dtype
        return y


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_network_computes_in_it_and_the_result_is_float32(precision: str, dtype: torch.dtype) -> None:
    spy = Spy()
    result = AutocastInferer("cpu", precision)(torch.ones(1, 4), spy)
    assert spy.dtype == dtype and result.dtype == torch.float32


def test_the_layout_is_the_one_known_to_be_faster() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert channels_last_pays(cpu, "fp32", 128) and channels_last_pays(cpu, "fp32", 256)
    assert not channels_last_pays(cpu, "fp32", 64) and not channels_last_pays(cpu, "bf16", 256)
    assert not channels_last_pays(cuda, "bf16", 256) and not channels_last_pays(cuda, "fp32", 256)


def test_the_choice_fits_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert choose_precision(cpu) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert choose_precision(cpu) == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert choose_precision(cuda) == "fp16"
    assert choose_precision(cpu, "bf16") == "bf16"
    with pytest.raises(InputError, match="CUDA"):
        choose_precision(cpu, "fp16")
    with pytest.raises(InputError, match="fp8"):
        choose_precision(cpu, "fp8")


def test_clipping_sees_the_unscaled_gradient_once_per_step() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = clip_gradients(torch.optim.SGD([weight], lr=1.0), 1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(2):  # accumulated over two backward passes
        scaler.scale((weight * torch.tensor([3.0, 0.0, 4.0])).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(weight.detach(), -torch.tensor([0.6, 0.0, 0.8]), atol=1e-5, rtol=0)
