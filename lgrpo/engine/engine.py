"""The rollout engine: ids in, rollouts out. It knows no text.

A group's prompt is prefilled once and kept once for all its rollouts. Each decode step gives every
row its next action, latent or explicit, and feeds it back; rows that end leave their slot to waiting
requests, so ragged lengths do not cost the longest one. Rows of all kinds share a batch, and none of them
depends on its neighbours: noise is a function of the row's key, its step and the token (noise.py).

On a GPU steps are CUDA graphs and rows are looked at every few of them; elsewhere, or with LGRPO_EAGER=1, after each.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lgrpo.engine.decode import TextSettings
from lgrpo.engine.graphs import Graphs, NoGraphError
from lgrpo.engine.seats import Arrival, Prompt, Size
from lgrpo.engine.slots import Slots
from lgrpo.errors import UserError
from lgrpo.policy import Policy
from lgrpo.policy.cache import columns_that_fit
from lgrpo.rollout import Part, Request, Rollout
from lgrpo.superposition import LatentSettings

PREFILL = 1 << 13  # prompt positions that go through the model at a time: more would not be faster, and need memory
FEWEST = 8  # columns a step sees: torch multiplies by fewer in a plain loop, which takes longer on a CPU


@dataclass(frozen=True)
class Pace:
    """How many steps are taken between two looks at the rows, and in what sizes."""

    look: int = 1  # steps
    halvings: int = 0  # sizes of a batch: all slots, half, a quarter, ...; 0: any
    columns: int = 1  # sizes of the visible cache: its multiples


EAGER = Pace()
GRAPHED = Pace(look=4, halvings=4, columns=64)  # each size is a graph of its own, so there are few


class Engine:
    """Generates rollouts of at most `max_response` positions, up to `slots` at a time."""

    def __init__(
        self,
        policy: Policy,
        latent: LatentSettings,
        text: TextSettings,
        max_response: int,
        slots: int,
        report: Callable[[str], None] | None = None,
    ):
        """`report` is told, in a line, when memory ran out and what was done about it."""
        self.policy, self.latent, self.text = policy, latent, text
        self.max_response, self.slots = max_response, slots
        self.report = report or (lambda line: None)
        graphed = policy.device.type == "cuda" and os.environ.get("LGRPO_EAGER", "0") in ("", "0")
        self.pace = GRAPHED if graphed else EAGER
        self._state: Slots | None = None  # kept from call to call
        self._serves: Size | None = None  # what was asked for when it was made: memory may have allowed less
        self._graphs: Graphs | None = None

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        on_finish: Callable[[int, Rollout], None] | None = None,
        on_steps: Callable[[int, Part], None] | None = None,
    ) -> list[Rollout]:
        """One rollout a request, in the order of the requests. `on_finish(number, rollout)` hears of each as it ends.

        `on_steps(number, part)` hears of its positions as they come, each once and before its end: one at a time, or on
        a GPU a few together. Listening changes no rollout.

        Where memory runs out, half as many rows are kept in flight, and the unfinished ones begin again: a rollout
        does not depend on when it is made. Raises UserError when one row alone does not fit.
        """
        rollouts: dict[int, Rollout] = {}
        heard: dict[int, int] = {}  # positions told to `on_steps`, by number: a rollout begun again is the same

        def listen(state: Slots) -> None:
            if on_steps:
                for number, part in state.gained(heard):
                    on_steps(number, part)

        while len(rollouts) < len(requests):
            if not self._generate(requests, rollouts, on_finish, listen):
                allocated = self._state.size.slots if self._state else min(self.slots, len(requests) - len(rollouts))
                self.release()
                self.slots = max(1, allocated // 2)
                self.report(f"out of memory: {self.slots} rollouts at a time from now on")
        return [rollouts[number] for number in range(len(requests))]

    @torch.inference_mode()
    def rehearse(self, requests: Sequence[Request]) -> None:
        """Prefill these requests, as many as there are slots, and take steps over the longest responses; keep nothing.

        Raises torch.OutOfMemoryError where that does not fit.
        """
        groups: dict[Prompt, int] = {}
        for request in requests:
            groups[request.prompt] = groups.get(request.prompt, 0) + 1
        with self._on_device():
            self._rehearse(requests, groups)

    def _rehearse(self, requests: Sequence[Request], groups: dict[Prompt, int]) -> None:
        state = self._buffers(groups)
        numbers = {prompt: number for number, prompt in enumerate(groups)}
        at_once = max(1, PREFILL // state.size.longest_prompt)
        state.admit(deque(Arrival(0, request, numbers[request.prompt]) for request in requests), at_once)
        chains = any(request.latent for request in requests)
        for stuck in (True, False):
            self._steps(state, self._rows(state), max(0, self.max_response - self.pace.look), chains, stuck)
        state.expect({})

    def _on_device(self) -> AbstractContextManager[Any]:
        """Graphs are the current device's."""
        device = self.policy.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def release(self) -> None:
        """Give back the memory of cache and graphs; the next call makes them anew."""
        self._state = self._graphs = self._serves = None
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()

    def _generate(
        self,
        requests: Sequence[Request],
        rollouts: dict[int, Rollout],
        on_finish: Callable[[int, Rollout], None] | None,
        listen: Callable[[Slots], None],
    ) -> bool:
        """Add the missing rollouts, by number; False where memory ran out before the last."""
        groups: dict[Prompt, list[tuple[int, Request]]] = {}  # rollouts of a prompt are made together
        for number, request in enumerate(requests):
            if number not in rollouts:
                groups.setdefault(request.prompt, []).append((number, request))
        try:
            with self._on_device():
                for number, rollout in self._run(groups, listen):
                    rollouts[number] = rollout
                    if on_finish:
                        on_finish(number, rollout)
        except torch.OutOfMemoryError:
            if self.slots == 1:
                raise UserError(
                    "out of memory on a single rollout: shorten it (max_response), take a smaller model or free memory "
                    "on the device"
                ) from None
            return False
        return True

    def _run(
        self, groups: dict[Prompt, list[tuple[int, Request]]], listen: Callable[[Slots], None]
    ) -> Iterator[tuple[int, Rollout]]:
        """Number and rollout of each request, as they end; `listen` may look at the rows after each look of ours."""
        waiting = deque(
            Arrival(number, request, place) for place, group in enumerate(groups.values()) for number, request in group
        )
        state = self._buffers({prompt: len(group) for prompt, group in groups.items()})
        chains = any(arrival.request.latent for arrival in waiting)
        longest, stuck = 0, False
        while waiting or state.occupied:
            state.admit(waiting, at_once=max(1, PREFILL // state.size.longest_prompt))
            rows = self._rows(state)
            self._steps(state, rows, longest, chains, stuck)
            done, stuck, longest = state.look(rows)
            listen(state)
            if done:
                yield from state.take(done)

    def _buffers(self, groups: dict[Prompt, int]) -> Slots:
        """The buffers of the last call where they serve, else new ones; `groups`: rollouts of each prompt.

        New buffers need new graphs, which take longer than a few more steps: there, they serve where they just do.
        """
        columns = self.pace.columns
        rows, longest = sum(groups.values()), -(-max(map(len, groups)) // columns) * columns
        size = Size.of(self.slots, rows, len(groups), max(groups.values()), longest)
        kept = self._state is not None and self._serves is not None and self._serves.fits(size)
        if self._state is not None and self.pace.halvings:
            kept |= self._state.size.copes(size)
        if not kept:
            self.release()
            self._serves = size
            room = columns_that_fit(self.policy.model)
            while size.slots > 1 and size.columns(self.max_response) > room:
                slots = size.slots - max(1, size.slots // 16)
                size = Size.of(slots, rows, len(groups), max(groups.values()), longest)
            self._state = Slots(self.policy, self.latent, self.text, size, self.max_response)
        assert self._state is not None
        self._state.expect(groups)
        return self._state

    def _rows(self, state: Slots) -> int:
        """How many slots the next steps run over; rows are moved together where that makes them fewer."""
        rows = state.occupied
        if self.pace.halvings:
            rows = min(size for n in range(self.pace.halvings + 1) if (size := max(1, state.size.slots >> n)) >= rows)
        if state.top > rows:
            state.compact()
        return rows

    def _steps(self, state: Slots, rows: int, longest: int, chains: bool, stuck: bool) -> None:
        """Steps until the next look. A stuck row is freed by one that may search the whole vocabulary."""
        pace = self.pace
        if stuck or pace.look == 1:
            width = min(state.cache.columns, max(longest + 1, FEWEST))
            state.step(rows, width, chains, whole=True, tight=rows == state.occupied)
            return
        width = min(state.cache.columns, -(-(longest + pace.look) // pace.columns) * pace.columns)
        try:
            for _ in range(pace.look):
                self._static(state, rows, width, chains)
        except NoGraphError as error:
            self.pace, self._graphs = EAGER, None
            self.report(f"no CUDA graphs with this model ({error}): its steps run one by one")

    def _static(self, state: Slots, rows: int, width: int, chains: bool) -> None:
        """A step that waits for nothing: a graph on a GPU."""
        if self.policy.device.type != "cuda":
            state.step(rows, width, chains, whole=False)
            return
        if self._graphs is None:
            self._graphs = Graphs(partial(state.step, whole=False), state.pause, state.resume)
        self._graphs(rows, width, chains)
