"""Telemetry: the right GPU of those visible, sums over several, and silence where there is nothing to ask."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from kvbench.models import telemetry
from kvbench.models.telemetry import Sampler, cuda_indices, device_memory_used, resident_bytes


class FakeNvml:
    """Two GPUs; handles are their numbers."""

    NVMLError = RuntimeError
    uuids = ("GPU-aaaa-0", "GPU-bbbb-1")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if not 0 <= index < len(self.uuids):
            raise RuntimeError("invalid argument")
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return self.uuids[handle]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        if uuid not in self.uuids:
            raise RuntimeError("not found")
        return self.uuids.index(uuid)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=100 + handle, total=1000)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=10 * (handle + 1))

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        if handle == 1:
            raise RuntimeError("not supported")
        return 250_000

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return f"Fake {handle}".encode()


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_loaded", [FakeNvml()])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("device", "indices"), [(None, []), ("cpu", []), ("auto", []), ("cuda", [0]), ("cuda:3", [3]), ("cuda:0,cuda:2", [0, 2]), ("mps", [])]
)
def test_devices_of_a_name(device: str | None, indices: list[int]) -> None:
    assert cuda_indices(device) == indices


@pytest.mark.parametrize(
    ("visible", "index", "used"),
    [
        (None, 1, 101),
        ("1", 0, 101),
        ("1,0", 1, 100),
        ("GPU-bbbb-1", 0, 101),
        ("GPU-bb", 0, 101),
        ("1", 1, None),
        ("", 0, None),
        ("GPU-none", 0, None),
    ],
)
@pytest.mark.usefixtures("nvml")
def test_torchs_numbers_count_visible_devices(visible: str | None, index: int, used: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_memory_used(index) == used


@pytest.mark.usefixtures("nvml")
def test_one_gpu_and_several() -> None:
    one, both = Sampler("cuda:0", None).sample(), Sampler("cuda:0,cuda:1", None).sample()
    assert (one.gpu_used, one.gpu_total, one.gpu_utilisation, one.power_watts, one.resident) == (100, 1000, 10.0, 250.0, None)
    assert (both.gpu_used, both.gpu_total, both.gpu_utilisation, both.power_watts) == (201, 2000, 15.0, 250.0)
    assert telemetry.device_name("cuda:1") == "Fake 1"


def test_without_nvml_there_are_no_gpu_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_loaded", [])
    monkeypatch.setitem(sys.modules, "pynvml", None)
    sample = Sampler("cuda", os.getpid()).sample()
    assert (sample.gpu_used, sample.gpu_total, sample.gpu_utilisation, sample.power_watts) == (None, None, None, None)
    assert telemetry.ask_driver(lambda nvml: 1) is None
    assert telemetry.device_name("cpu") == telemetry.cpu_name() != ""


def test_resident_memory_counts_what_a_fork_shares_once() -> None:
    code = "import os, sys\nblock = bytearray(96 << 20)\nif os.fork():\n    print('ready', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        both = resident_bytes(process.pid)
        process.communicate("\n\n")
    assert both is not None
    assert 96 << 20 < both < 160 << 20


def test_resident_memory_counts_children_and_ends_with_them() -> None:
    command = [sys.executable, "-c", "block = bytearray(64 << 20); print('ready', flush=True); input()"]
    alone = resident_bytes(os.getpid())
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        together, own = resident_bytes(os.getpid()), resident_bytes(child.pid)
        child.communicate("\n")
    assert alone is not None
    assert together is not None
    assert own is not None
    assert own > 64 << 20
    assert together - alone > 60 << 20
    assert resident_bytes(child.pid) is None
    assert Sampler(None, child.pid).sample().resident is None
