"""Decode steps as CUDA graphs: a step's kernels are recorded once for each size and launched together ever after.

Two runs come before a capture, for libraries choose kernels and allocate their workspaces then.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch


class NoGraphError(Exception):
    """The step cannot be captured: an architecture asks the device something in its forward pass, for instance."""


class Graphs:
    """Captures `step(rows, width, chains)` for each combination it is asked for, and replays it.

    The step must change static tensors in place and wait for nothing. Between `pause`, before a capture, and `resume`
    it must leave the state as it is. Raises NoGraphError where a capture fails, and torch.OutOfMemoryError.
    """

    def __init__(
        self,
        step: Callable[[int, int, bool], None],
        pause: Callable[[], torch.Tensor],
        resume: Callable[[torch.Tensor], None],
    ):
        self.step, self.pause, self.resume = step, pause, resume
        self.captured: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] = {}
        self.pool: Any = None  # one pool: the graphs never run at the same time

    def __call__(self, rows: int, width: int, chains: bool) -> None:
        size = (rows, width, chains)
        if size not in self.captured:
            self.captured[size] = self._capture(*size)
        self.captured[size].replay()

    def _capture(self, rows: int, width: int, chains: bool) -> torch.cuda.CUDAGraph:
        state, stream, checks = self.pause(), torch.cuda.current_stream(), torch.cuda.get_sync_debug_mode()
        try:
            side = torch.cuda.Stream()
            side.wait_stream(stream)
            with torch.cuda.stream(side):
                self.step(rows, width, chains)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # that it is a prototype
                    torch.cuda.set_sync_debug_mode("error")  # a step that waits for the device is refused here: a
                self.step(rows, width, chains)  # capture that fails leaves more behind
            stream.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                self.step(rows, width, chains)
            self.pool = graph.pool()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NoGraphError(str(error).splitlines()[0]) from error
        finally:
            torch.cuda.set_sync_debug_mode(checks)
            torch.cuda.set_stream(stream)  # a capture that fails may stay on its own
            self.resume(state)
        return graph
