"""What a run's numbers depend on besides the question: software, hardware and the code's own version.

No absolute paths, host names or user names: results are shared.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from kvbench.instruments.checkout import git_state
from kvbench.models.telemetry import ask_device, ask_driver, cpu_name, cuda_indices, device_name


def describe(device: Any) -> dict[str, Any]:
    """The environment as plain values; what cannot be told is ``None``.

    Args:
        device: A torch device or its name.

    Returns:
        kvbench, python, platform, cpu, cpu_cores (logical), memory_bytes, threads (of torch), torch, transformers, cuda,
        driver, gpu, gpu_count, gpu_clocks (MHz: sm, memory, and the most each can do), git (commit, dirty).
    """
    import torch

    name = str(device)
    on_gpu = bool(cuda_indices(name))
    return {
        "kvbench": version_of("kvbench"),
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "cpu": cpu_name(),
        "cpu_cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version_of("transformers"),
        "cuda": torch.version.cuda,
        "driver": ask_driver(lambda nvml: _text(nvml.nvmlSystemGetDriverVersion())),
        "gpu": device_name(name) if on_gpu else None,
        "gpu_count": torch.cuda.device_count(),
        "gpu_clocks": _clocks(cuda_indices(name)[0]) if on_gpu else None,
        "git": git_state(),
    }


def version_of(package: str) -> str | None:
    """The installed version, or ``None``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _clocks(index: int) -> dict[str, int] | None:
    def read(nvml: Any, handle: Any) -> dict[str, int]:
        return {
            "sm": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "sm_most": nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_most": nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
        }

    return ask_device(index, read)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
