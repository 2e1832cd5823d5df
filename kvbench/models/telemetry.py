"""Memory, utilisation and power as the machine reports them; no torch, so that the supervisor can sample a worker.

GPU figures are NVML's for the whole device (bytes), host figures the resident memory of a process and its children.
Where NVML or the process is missing the figure is ``None``.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Telemetry:
    """What the machine says now: bytes, utilisation 0 to 100, watts; ``None`` where it does not."""

    resident: int | None
    gpu_used: int | None
    gpu_total: int | None
    gpu_utilisation: float | None
    power_watts: float | None


class Sampler:
    """Samples the device and the process of a run.

    Args:
        device: ``cuda``, ``cuda:1``, several joined by commas (a model over several GPUs), or anything else for no GPU.
            (``auto`` is not known to be a GPU before the model is loaded.)
        pid: The process whose resident memory is wanted; ``None`` leaves it out.
    """

    def __init__(self, device: str | None, pid: int | None) -> None:
        self.pid = pid
        self.indices = cuda_indices(device)

    def sample(self) -> Telemetry:
        """The figures now; memory and power are summed over devices, utilisation (0 to 100) is averaged."""
        memory = [m for m in map(device_memory, self.indices) if m is not None]
        loads = [u for u in map(_utilisation, self.indices) if u is not None]
        watts = [w for w in map(_power, self.indices) if w is not None]
        return Telemetry(
            resident=None if self.pid is None else resident_bytes(self.pid),
            gpu_used=sum(m[0] for m in memory) if memory else None,
            gpu_total=sum(m[1] for m in memory) if memory else None,
            gpu_utilisation=sum(loads) / len(loads) if loads else None,
            power_watts=sum(watts) if watts else None,
        )


def cuda_indices(device: str | None) -> list[int]:
    """torch's device numbers in ``cuda:0,cuda:1``; none for a CPU."""
    parts = [part.strip() for part in (device or "").split(",")]
    return [int(part.partition(":")[2] or 0) for part in parts if part.split(":")[0] == "cuda"]


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process and what its children have beside it, bytes; ``None`` if it is gone.

    A fork shares its parent's pages until one of them writes: they are counted once.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        total = int(process.memory_info().rss)
        children = process.children(recursive=True)
    except psutil.Error:
        return None
    return total + sum(_own(child) for child in children)


def _own(process: Any) -> int:
    import psutil

    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0


def device_memory_used(index: int) -> int | None:
    """Bytes in use on torch's GPU ``index``, by all processes, as NVML reports them."""
    memory = device_memory(index)
    return memory[0] if memory else None


def device_memory(index: int) -> tuple[int, int] | None:
    """``(used, total)`` bytes of torch's GPU ``index``."""

    def read(nvml: Any, handle: Any) -> tuple[int, int]:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return int(memory.used), int(memory.total)

    return ask_device(index, read)


def device_name(device: str) -> str:
    """The GPU's or the CPU's own name."""
    indices = cuda_indices(device)
    if not indices:
        return cpu_name()
    name = ask_device(indices[0], lambda nvml, handle: nvml.nvmlDeviceGetName(handle))
    return name.decode() if isinstance(name, bytes) else str(name or "GPU")


def cpu_name() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def ask_device(index: int, read: Callable[[Any, Any], T]) -> T | None:
    """``read(pynvml, handle)`` for torch's GPU ``index``, or ``None`` where NVML does not answer."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        return read(nvml, _handle(nvml, index))
    except (nvml.NVMLError, ValueError, IndexError):
        return None


def ask_driver(read: Callable[[Any], T]) -> T | None:
    """``read(pynvml)``, or ``None`` where NVML does not answer."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        return read(nvml)
    except nvml.NVMLError:
        return None


def visible_devices() -> Sequence[str] | None:
    """The entries of ``CUDA_VISIBLE_DEVICES`` (numbers or UUIDs), or ``None`` where every GPU is visible."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _handle(nvml: Any, index: int) -> Any:
    """NVML's handle of torch's GPU ``index``, which counts visible devices only."""
    visible = visible_devices()
    name = str(index) if visible is None else visible[index]
    if name.lstrip("-").isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(_full_uuid(nvml, name))


def _full_uuid(nvml: Any, prefix: str) -> str:
    """CUDA accepts a UUID's beginning where it is unique; NVML wants all of it."""
    handles = (nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount()))
    names = [n.decode() if isinstance(n, bytes) else n for n in map(nvml.nvmlDeviceGetUUID, handles)]
    return next((name for name in names if name.startswith(prefix)), prefix)


def _utilisation(index: int) -> float | None:
    return ask_device(index, lambda nvml, handle: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu))


def _power(index: int) -> float | None:
    return ask_device(index, lambda nvml, handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0)


def energy_joules(indices: Sequence[int]) -> float | None:
    """Joules that torch's GPUs ``indices`` have used since their driver was loaded, by NVML's counter of millijoules.

    ``None`` where there is no GPU or one of them has no counter (it came with Volta).
    """
    found = [ask_device(index, lambda nvml, handle: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))) for index in indices]
    known = [millijoules for millijoules in found if millijoules is not None]
    return sum(known) / 1000.0 if known and len(known) == len(found) else None


_loaded: list[Any] = []
"""pynvml once it is initialised, or ``None`` once that failed: asked at most once a process."""


def _nvml() -> Any | None:
    if not _loaded:
        _loaded.append(_start_nvml())
    return _loaded[0]


def _start_nvml() -> Any | None:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, no permission: all mean "no figures"
        return None
    return pynvml
