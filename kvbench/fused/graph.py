"""A step's kernels as a CUDA graph: recorded once, then started by one launch and no other word from the host."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from functools import lru_cache

import torch

from kvbench.errors import told

WARM_UPS = 2
"""Runs before recording: the first compiles kernels and makes library handles, the second shows what any later one does."""


class HostSync(Exception):
    """A step asked the device for a value and waited, which no graph can record. The message says what PyTorch said."""


class Graphs:
    """Recorded functions that share one pool of memory for what they compute on the way.

    Args:
        device: A CUDA device; everything recorded runs there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _side_stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._held: list[torch.cuda.CUDAGraph] = []

    def warm_up(self, work: Callable[[], object], undo: Callable[[], object]) -> None:
        """Run ``work`` as it will be recorded, each time taken back by ``undo``.

        Raises:
            HostSync: it waits for the device. Found here, before a recording breaks on it and takes the allocator with it.
        """
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                for left in reversed(range(WARM_UPS)):
                    work() if left else _without_waiting(work)
                    undo()
            current.wait_stream(self.stream)
            torch.cuda.synchronize()
        gc.collect()  # another method's graph, freed in the middle of a recording, would break it

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        """Record ``work``, which is not run; what is returned runs it. Warm it up first.

        Raises:
            HostSync: it does what no recording may hold.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.stream(torch.cuda.current_stream()):  # a broken recording leaves its stream on
            try:
                # Other threads (a sampler of the device's power) may go on: only this thread's calls are held to what a graph allows.
                with torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"):
                    work()
            except torch.OutOfMemoryError:
                _side_stream.cache_clear()
                raise
            except RuntimeError as error:
                _side_stream.cache_clear()  # the allocator may go on keeping that stream's memory apart
                raise HostSync(told(error) or type(error).__name__) from error
        self._held.append(graph)
        return graph.replay

    def close(self) -> None:
        """Give back the graphs and their memory; what they returned must not be called again."""
        torch.cuda.synchronize(self.device)
        for graph in self._held:
            graph.reset()
        self._held.clear()
        with torch.cuda.device(self.device):
            torch.cuda.empty_cache()


def _without_waiting(work: Callable[[], object]) -> None:
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        raise HostSync(told(error) or type(error).__name__) from error
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@lru_cache(maxsize=16)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream a device for warm-ups and recordings: a library's workspace is kept for each stream that was ever used."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
