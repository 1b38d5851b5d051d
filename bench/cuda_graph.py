# SPDX-License-Identifier: Apache-2.0
"""Times of calls on this GPU whose weights come from memory: replays of a CUDA graph over many copies."""

import statistics
from collections.abc import Callable

import torch

REPLAYS = 15


def seconds(calls: list[Callable[[], object]]) -> float:
    """Median time of a call, of all calls in one graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(times)


def copy_rate() -> float:
    """Bytes read and written a second, of a large copy."""
    a, b = (torch.empty(2**28, dtype=torch.uint8, device="cuda") for _ in range(2))
    return 2 * a.numel() / seconds([lambda: b.copy_(a)] * 4)


def copies(size: int) -> int:
    """How many weights of `size` bytes exceed the L2 cache twice; at most 64."""
    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 * 2**20)
    return max(2, min(64, 2 * cache // max(size, 1) + 1))
