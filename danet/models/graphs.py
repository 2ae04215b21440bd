"""CUDA graphs of a function: one launch in place of many, which dominate the time of a network at batch size 1."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    input: Tensor
    output: Any


class CudaGraphs:
    """Calls a function by CUDA graphs, one per input shape, captured at the first call with that shape.

    An output is valid until the next call: calls write to the same tensors, and all graphs share one memory pool. So
    only one thread may call an object; other threads need objects of their own.

    Args:
        function: function of one CUDA tensor. It must not synchronize, and must launch the same kernels whenever the
            shape is the same.
        limit: maximum number of graphs; the least recently used one is dropped.
    """

    def __init__(self, function: Callable[[Tensor], Any], *, limit: int = 8) -> None:
        self.function = function
        self.limit = limit
        self.graphs: OrderedDict[tuple, _Graph] = OrderedDict()

    def __call__(self, input: Tensor) -> Any:
        key = (tuple(input.shape), input.stride(), input.dtype, input.device)
        with torch.cuda.device(input.device):
            if key not in self.graphs:
                while len(self.graphs) >= self.limit:
                    self.graphs.popitem(last=False)
                self.graphs[key] = self._capture(input)
            self.graphs.move_to_end(key)
            captured = self.graphs[key]
            captured.input.copy_(input)
            captured.graph.replay()
        return captured.output

    def __getstate__(self) -> dict:
        return {**self.__dict__, "graphs": OrderedDict()}  # a copy captures its own graphs

    @torch.inference_mode(False)  # inference tensors could not be written in other modes later
    @torch.no_grad()
    def _capture(self, input: Tensor) -> _Graph:
        static = torch.empty_like(input).copy_(input)
        # Warm up on a side stream: workspaces and algorithms must be chosen before the capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.function(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        first = next(iter(self.graphs.values()), None)
        # "thread_local": CUDA calls of other threads, such as those that load data, do not end the capture.
        pool = None if first is None else first.graph.pool()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = self.function(static)
        return _Graph(graph, static, output)
