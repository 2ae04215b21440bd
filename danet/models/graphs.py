"""CUDA graphs: at batch 1 a network's time is the number of its launches, and a graph launches them all at once."""

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
    """``function(input)`` by graphs, one a shape of the input, captured on its first use.

    What it returns is valid until the next call: every call of a shape writes to the same tensors. The shapes share
    their memory, for the same reason.

    Args:
        function: of one CUDA tensor; must not synchronise and must compute the same for the same shape.
        limit: graphs kept; beyond it the one not used for longest is dropped.
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
        return {**self.__dict__, "graphs": OrderedDict()}  # a copy captures its own

    @torch.inference_mode(False)  # in which nothing could be written outside of it
    @torch.no_grad()
    def _capture(self, input: Tensor) -> _Graph:
        static = torch.empty_like(input).copy_(input)
        # What happens once (workspaces, choices of algorithms) must be over before the capture, on a stream of its own.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.function(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        first = next(iter(self.graphs.values()), None)
        with torch.cuda.graph(graph, pool=None if first is None else first.graph.pool()):
            output = self.function(static)
        return _Graph(graph, static, output)
