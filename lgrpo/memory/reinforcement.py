"""What a run needs of its device's memory, and the largest micro-batch, rollout batch and least work that fit.

Derived from the model, the settings and the memory that is free; only what a layer keeps for its backward pass is
measured, on the model itself. A run has two phases: in rollouts the cache lies beside weights and optimizer, in updates
gradients and activations do. The weights that the KL refers to wait on the host (initial.py).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from lgrpo import chunks
from lgrpo.engine import PREFILL
from lgrpo.engine.seats import Size
from lgrpo.errors import UserError
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.memory.device import available_on_host
from lgrpo.optimizer import PIECE
from lgrpo.plan import Setting, TrainSettings
from lgrpo.policy import Policy
from lgrpo.policy.cache import bytes_per_column
from lgrpo.text import gigabytes

SPARE = 0.9  # share of a GPU's free memory that is planned with: the rest is lost between blocks
ENOUGH = 4096  # positions that keep a device busy: below them checkpointing is the better way to save memory
STATE = 2 + 8 / 256  # bytes a trained weight of the optimizer's 8-bit states and their scales
LOGIT = 16  # bytes a logit of a chunk at the peak of its backward pass (benchmarks/logits_memory.py)
DRAWN = 16  # bytes a logit of a decode step: logits, two normalisations, room for the draw


@dataclass(frozen=True)
class Shape:
    """What memory depends on in a model."""

    parameters: int
    trained: int  # of them
    largest: int  # weights of the largest trained tensor
    layers: int
    hidden: int  # D
    inner: int  # width of the feed-forward part
    vocabulary: int
    itemsize: int  # bytes of a weight
    column: int  # bytes of a position's keys and values in all layers
    kept: float  # bytes a position that a layer keeps for its backward pass
    square: float  # the same, a position for each other position of its row: attention that is not fused


@dataclass(frozen=True)
class Use:
    """Bytes by what they are for."""

    weights: float
    exact: float  # the 16 bits that bfloat16 weights lack
    states: float
    gradients: float
    activations: float  # of a micro-batch
    logits: float  # a chunk with its gradient
    kept_cache: float  # cache and graphs, where they stay during updates
    cache: float  # of the rollouts in flight
    decoding: float  # prefill, and logits of a decode step

    @property
    def update(self) -> float:
        parts = self.weights + self.exact + self.states + self.gradients + self.activations + self.logits
        return parts + self.kept_cache

    @property
    def rollouts(self) -> float:
        return self.weights + self.exact + self.states + self.cache + self.decoding


def shape_of(policy: Policy) -> Shape:
    """The shape of a model; runs it on a few positions, or on none where it is on the device `meta`."""
    config, trained = policy.model.config.get_text_config(), policy.trainable()
    kept = [_kept(policy, length) / length / config.num_hidden_layers for length in (64, 128)]
    square = max(0.0, (kept[1] - kept[0]) / 64)
    return Shape(
        parameters=policy.parameters,
        trained=sum(parameter.numel() for parameter in trained),
        largest=max(parameter.numel() for parameter in trained),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=len(chunks.embedding_table(policy)),
        itemsize=policy.dtype.itemsize,
        column=bytes_per_column(policy.model),
        kept=kept[0] - 64 * square,
        square=square,
    )


def _kept(policy: Policy, length: int) -> int:
    """Bytes that the layers keep for the backward pass of one row of `length` positions."""
    storages = {}
    weights = {parameter.untyped_storage()._cdata for parameter in policy.model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage
        return tensor

    device, size = policy.device, policy.model.config.get_text_config().hidden_size
    embeds = torch.zeros(1, length, size, dtype=policy.dtype, device=device)
    causal = torch.ones(1, length, length, dtype=torch.bool, device=device).tril()
    at = torch.zeros(1, length, dtype=torch.int64, device=device)  # the model may have fewer positions than are tried
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = policy.hidden(embeds, causal, at)
    del output
    return sum(storage.nbytes() for storage in storages.values())


def use(shape: Shape, settings: TrainSettings) -> Use:
    """Bytes at the worst moments of the run that `settings` describe: the longest prompts and responses."""
    longest = settings.max_prompt + settings.max_response
    positions = max(settings.micro_tokens, longest)  # a row is never cut
    item, width = shape.itemsize, max(longest, min(1024, settings.micro_tokens))
    at_work = activations(shape, positions, width, settings.checkpointing)
    cache = shape.column * max(
        _columns(settings, settings.batch, settings.group), _columns(settings, settings.held_out, 1)
    )
    rows = min(settings.slots, max(settings.batch * settings.group, settings.held_out))
    head = logits(shape, positions)
    drawn = rows * shape.vocabulary * DRAWN  # a graph holds it, and lends it to nobody
    prefill = PREFILL * (item * (3 * shape.inner + 8 * shape.hidden) + shape.column)
    moving = 8 * min(shape.largest, PIECE)  # when the activations are gone
    return Use(
        weights=item * shape.parameters,
        exact=(2 if item == 2 else 0) * shape.trained,
        states=STATE * shape.trained,
        gradients=item * shape.trained,
        activations=max(at_work, moving - head),
        logits=head,
        kept_cache=cache + drawn if settings.keep_cache else 0,
        cache=cache,
        decoding=drawn + prefill,
    )


def activations(shape: Shape, positions: int, width: int, checkpointing: bool) -> float:
    """Bytes that a micro-batch of `positions`, in rows of `width`, keeps for its backward pass."""
    layer = shape.kept + shape.square * width
    kept = layer + shape.layers * shape.hidden * shape.itemsize if checkpointing else layer * shape.layers
    at_work = shape.itemsize * (2 * shape.inner + 4 * shape.hidden)  # gradients on their way through a layer
    return positions * (kept + at_work) + shape.itemsize * shape.largest


def logits(shape: Shape, positions: int) -> float:
    """Bytes of a chunk of the output head's with its gradient."""
    return LOGIT * min(chunks.LOGITS_PER_CHUNK, positions * shape.vocabulary)


def _columns(settings: TrainSettings, prompts: int, group: int) -> int:
    """Of the cache for so many prompts with `group` rollouts each."""
    size = Size.of(settings.slots, prompts * group, prompts, group, settings.max_prompt)
    return size.columns(settings.max_response)


def fit(shape: Shape, settings: TrainSettings, room: float | None, chosen: Collection[str] = ()) -> TrainSettings:
    """`settings` with micro_tokens, checkpointing and slots that fit `room` bytes; None: there is no bound.

    What the settings hold is the most that is tried, and names in `chosen` stay as they are. Checkpointing is on where
    the device would not be busy without. Raises UserError when nothing fits.
    """
    if room is None:
        return settings
    tries = smaller(settings, chosen)
    if "keep_cache" not in chosen:
        keeps = (True, False) if settings.keep_cache else (False,)
        tries = [replace(one, keep_cache=keep) for one in tries for keep in keeps]
    updates = [one for one in tries if use(shape, one).update <= room]
    least = replace(tries[-1], slots=1)
    if not updates or use(shape, least).rollouts > room:
        raise UserError(_remedy(shape, least, room))
    best, slots = updates[0], settings.slots
    while "slots" not in chosen and use(shape, replace(best, slots=slots)).rollouts > room:
        slots -= 8 if slots > 8 else 1
    return replace(best, slots=slots)


S = TypeVar("S", TrainSettings, Schedule)


def smaller(settings: S, chosen: Collection[str]) -> list[S]:
    """The settings with less and less memory for a micro-batch, the first ones as they are.

    Half as many positions while the device stays busy, then all sizes again with checkpointing; names in `chosen` stay.
    """
    sizes = [settings.micro_tokens]
    while "micro_tokens" not in chosen and sizes[-1] >= 512:
        sizes.append(1 << (sizes[-1] - 1).bit_length() - 1)  # the next power of two below
    tries = [replace(settings, micro_tokens=size) for size in sizes]
    if "checkpointing" in chosen:
        return tries
    busy = [one for one in tries if one.micro_tokens >= min(ENOUGH, sizes[0])]
    return busy + [replace(one, checkpointing=True) for one in tries]


def _remedy(shape: Shape, least: TrainSettings, room: float) -> str:
    """What would fit where not even `least` does."""
    needed = use(shape, least)
    most = gigabytes(max(needed.update, needed.rollouts))
    text = f"{most} of memory are needed at least and {gigabytes(room)} are free; "
    response = least.max_response // 2
    while response:
        shorter = use(shape, replace(least, max_response=response))
        if max(shorter.update, shorter.rollouts) <= room:
            return text + f"--set max_response={response} would fit, or a smaller model"
        response //= 2
    return text + "take a smaller model or a larger device"


_WHY = {
    "checkpointing": "as many positions at a time do not fit without",
    "keep_cache": "it does not fit beside an update, and is made anew for each batch",
}


def plan_rows(shape: Shape, settings: TrainSettings, room: float | None, rows: Sequence[Setting]) -> list[Setting]:
    """The plan with what `fit` chose in `settings`, and the memory it takes, each with its reason."""
    out = []
    for row in rows:
        value = getattr(settings, row.name)
        if value != row.value:
            row = Setting(row.name, value, f"derived from the memory: {_WHY.get(row.name, 'the most that fits')}")
        out.append(row)
    needed = use(shape, settings)
    limit = "no bound known" if room is None else f"of {gigabytes(room)} that are free"
    half = "bfloat16" if shape.itemsize == 2 else f"{8 * shape.itemsize} bits"
    how = "checkpointed" if settings.checkpointing else "not checkpointed"
    reasons = {
        "weights": f"{shape.parameters / 1e6:,.1f} M parameters, {half}",
        "exact": "the 16 bits that bfloat16 weights lack",
        "states": f"8-bit AdamW for {shape.trained / 1e6:,.1f} M trained weights",
        "gradients": "as the weights",
        "activations": f"micro-batch, {how}; measured {shape.kept / 1e3:,.1f} kB a position and layer",
        "logits": "a chunk with its gradient",
        "kept_cache": "cache and graphs during updates",
        "cache": f"{settings.slots} rollouts of {settings.max_prompt} + {settings.max_response} positions",
        "decoding": "prefill, and the logits of a decode step",
    }
    sizes = {name: getattr(needed, name) for name in reasons}
    out += [
        Setting(f"memory: {name.replace('_', ' ')}", gigabytes(size), reasons[name])
        for name, size in sizes.items()
        if size
    ]
    out.append(Setting("memory: update", gigabytes(needed.update), f"weights to logits; {limit}"))
    out.append(Setting("memory: rollouts", gigabytes(needed.rollouts), f"weights, states, cache; {limit}"))
    return out


def room_on(device: torch.device, weights: int) -> float | None:
    """Bytes that a run may use, its model's `weights` among them, which are there already; None: nobody knows."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return SPARE * (free + torch.cuda.memory_reserved(device))
    available = available_on_host()
    return available + weights if device.type == "cpu" and available is not None else None


def found(policy: Policy) -> tuple[Shape, float | None]:
    """The policy's shape, and the bytes that a run of it may use; None where nobody knows."""
    shape = shape_of(policy)
    return shape, room_on(policy.device, shape.parameters * shape.itemsize)


def settle(
    policy: Policy, settings: TrainSettings, rows: Sequence[Setting], chosen: Collection[str]
) -> tuple[TrainSettings, list[Setting]]:
    """Settings that fit the policy's device, and the plan that explains them. `chosen`: names the user set."""
    shape, room = found(policy)
    settings = fit(shape, settings, room, chosen)
    return settings, plan_rows(shape, settings, room, rows)
