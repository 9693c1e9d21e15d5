"""8-bit AdamW over exact weights against torch's AdamW and against itself over float32, and its resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lgrpo import optimizer as optimizer_module
from lgrpo.errors import UserError
from lgrpo.exact import join, split_
from lgrpo.optimizer import PIECE, Optimizer, StepReport

SMALL, LARGE = (40, 100), (64, 64)  # below 4,096 elements bitsandbytes keeps float32 states


def parameter(*shape: int, dtype: torch.dtype = torch.float32, value: float | None = None) -> nn.Parameter:
    start = torch.randn(shape) if value is None else torch.full(shape, value)
    return nn.Parameter(start.to(dtype))


def exact_weights(optimizer: Optimizer) -> list[Tensor]:
    return [optimizer.exact(number).clone() for number in range(len(optimizer.parameters))]


def test_the_missing_bits_restore_every_float32() -> None:
    """Ends of the range, halves, subnormal numbers and not-a-number among them."""
    signs = torch.tensor([0, -(1 << 31)], dtype=torch.int64)
    upper = torch.arange(0, 1 << 15) << 16  # every bfloat16 that is not negative
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (signs[:, None, None] + upper[None, :, None] + lower[None, None, :]).to(torch.int32)
    exact = bits.view(torch.float32)
    weight, low = torch.empty(exact.shape, dtype=torch.bfloat16), torch.empty(exact.shape, dtype=torch.int16)
    split_(exact.clone(), weight, low)
    assert torch.equal(join(weight, low).view(torch.int32), bits)
    finite = exact.isfinite()
    away = (weight.float()[finite].double() - exact[finite].double()).abs()
    nearest = (exact[finite].bfloat16().double() - exact[finite].double()).abs()
    assert torch.equal(away, nearest)  # as near as torch's own rounding, which breaks ties to even


def test_halves_are_rounded_up_in_magnitude() -> None:
    """1 + 2^-8 lies halfway between 1 and the next bfloat16, 1 + 2^-7; torch would go to 1, the even one."""
    weight, low = torch.empty(2, dtype=torch.bfloat16), torch.empty(2, dtype=torch.int16)
    split_(torch.tensor([1 + 2**-8, -1 - 2**-8]), weight, low)
    assert weight.tolist() == [1 + 2**-7, -1 - 2**-7]
    assert low.tolist() == [-(1 << 15)] * 2


@pytest.mark.parametrize("shape", [(8,), LARGE])
def test_an_update_of_1e_6_on_a_bfloat16_weight_survives_a_thousand_steps(shape: tuple[int, ...]) -> None:
    """Half a bfloat16 step at 0.02 is 6e-5: rounded each time, the weight would never move.

    To the bit what the same optimizer does to a float32 weight; in float32 and in 8-bit states.
    """
    weight, plain = (parameter(*shape, dtype=torch.bfloat16, value=0.02) for _ in range(2))
    start = weight.detach().float().clone()
    single = nn.Parameter(start.clone())
    ours, theirs = Optimizer([weight], lr=1e-6), Optimizer([single], lr=1e-6)
    lost = torch.optim.AdamW([plain], lr=1e-6, weight_decay=0.01)
    gradient = torch.linspace(-0.01, 0.02, start.numel()).reshape(shape) / start.numel() ** 0.5  # short: not clipped
    for _ in range(1000):
        weight.grad, plain.grad = gradient.bfloat16(), gradient.bfloat16()
        single.grad = gradient.bfloat16().float()
        report = ours.step()
        theirs.step()
        lost.step()
        assert report.moved == 1
        assert torch.equal(ours.exact(0), single.detach())
    moved = (single.detach() - start).abs()
    assert float(moved.median()) == pytest.approx(1e-3, rel=0.01)
    assert torch.equal(weight.detach().float(), single.detach().bfloat16().float())  # the model sees it rounded
    assert float((weight != plain).float().mean()) > 0.95
    assert torch.equal(plain.detach().float(), start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_tensors_follow_torch_adamw(dtype: torch.dtype) -> None:
    weight = parameter(*SMALL, dtype=dtype)
    reference = nn.Parameter(weight.detach().float().clone())
    ours = Optimizer([weight], lr=1e-3)
    theirs = torch.optim.AdamW([reference], lr=1e-3, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8)
    for step in range(30):
        weight.grad = (torch.randn(SMALL) * (1 + step % 5)).to(dtype)
        reference.grad = weight.grad.float().clone()
        nn.utils.clip_grad_norm_([reference], 1.0)
        ours.step()
        theirs.step()
    assert torch.allclose(exact_weights(ours)[0], reference.detach(), rtol=1e-6, atol=1e-6)


def test_large_tensors_follow_torch_adamw_within_eight_bits() -> None:
    weight = parameter(*LARGE)
    start, reference = weight.detach().clone(), nn.Parameter(weight.detach().clone())
    ours = Optimizer([weight], lr=1e-3, max_grad_norm=1e9)
    theirs = torch.optim.AdamW([reference], lr=1e-3, weight_decay=0.01)
    for _ in range(30):
        gradient = torch.randn(LARGE) + 1
        weight.grad, reference.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    moved, expected = weight.detach() - start, reference.detach() - start
    assert float((moved - expected).norm() / expected.norm()) < 0.03
    assert not torch.equal(moved, expected)  # or these would not be eight bits
    assert any(tensor.dtype == torch.uint8 for tensor in ours.state().values())


def test_weight_decay_is_decoupled_and_scaled_by_the_rate() -> None:
    """One step with a gradient: w - lr * 0.5 * w - lr * sign(g)."""
    weight = parameter(10, value=2.0)
    optimizer = Optimizer([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.full((10,), 0.01)
    optimizer.step()
    assert weight.tolist() == pytest.approx([2.0 - 0.1 * 0.5 * 2.0 - 0.1] * 10, abs=1e-5)


def test_gradients_are_clipped_together_and_reported_before() -> None:
    """Two tensors of norm 30 and 40: norm 50, scaled by 1/50. Adam's memory of the step shows the scale."""
    weights = [parameter(10, value=1.0), parameter(10, value=1.0)]
    optimizer = Optimizer(weights, lr=1e-3, max_grad_norm=1.0)
    weights[0].grad, weights[1].grad = torch.full((10,), 30 / 10**0.5), torch.full((10,), 40 / 10**0.5)
    report = optimizer.step()
    assert report.grad_norm == pytest.approx(50.0, rel=1e-5)
    first = optimizer.moments[0]
    assert first.state1.tolist() == pytest.approx([0.1 * 30 / 10**0.5 / 50] * 10, rel=1e-4)
    weights[0].grad, weights[1].grad = torch.full((10,), 0.01), None  # a short gradient is not stretched
    assert optimizer.step().grad_norm == pytest.approx(0.01 * 10**0.5, rel=1e-5)
    expected = 0.9 * (0.1 * 30 / 10**0.5 / 50) + 0.1 * 0.01
    assert first.state1.tolist() == pytest.approx([expected] * 10, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_changes_nothing(bad: float) -> None:
    weight = parameter(*LARGE, dtype=torch.bfloat16)
    optimizer = Optimizer([weight], lr=1e-3)
    weight.grad = torch.randn(LARGE).bfloat16()
    optimizer.step()
    before, state = weight.detach().clone(), optimizer.state()
    weight.grad = torch.full(LARGE, 1.0).bfloat16()
    weight.grad[3, 3] = bad
    report = optimizer.step()
    assert (report.skipped, report.moved) == (True, 0.0)
    assert torch.equal(weight, before)
    after = optimizer.state()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert weight.grad is None


def test_gradients_are_gone_after_a_step() -> None:
    weight = parameter(*SMALL, dtype=torch.bfloat16)
    optimizer = Optimizer([weight], lr=1e-3)
    weight.grad = torch.ones_like(weight)
    assert not optimizer.step().skipped
    assert weight.grad is None
    assert optimizer.step().skipped  # nothing to do, and no step on old gradients


def test_the_share_of_weights_that_moved_is_counted_on_the_exact_values() -> None:
    """Of two equal tensors one has no gradient and no weight decay: half. A rate below float32's reach: none."""
    weights = [parameter(*SMALL, dtype=torch.bfloat16), parameter(*SMALL, dtype=torch.bfloat16)]
    optimizer = Optimizer(weights, lr=1e-6, weight_decay=0.0)
    weights[0].grad = torch.ones(SMALL).bfloat16()
    before = weights[0].detach().clone()
    assert optimizer.step().moved == pytest.approx(0.5)
    # The rounded weights hardly moved; what they are rounded from did.
    assert float((weights[0] != before).float().mean()) < 0.1
    optimizer.set_lr(1e-12)
    for weight in weights:
        weight.grad = torch.ones(SMALL).bfloat16()
    assert optimizer.step().moved < 0.05


def test_the_rate_can_be_changed() -> None:
    weight = parameter(10, value=0.0)
    optimizer = Optimizer([weight], lr=1.0, weight_decay=0.0)
    optimizer.set_lr(0.25)
    weight.grad = torch.full((10,), 0.01)
    optimizer.step()
    assert weight.tolist() == pytest.approx([-0.25] * 10, rel=1e-4)


def gradients(step: int, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def advance(optimizer: Optimizer, weights: list[nn.Parameter], steps: range, dtype: torch.dtype) -> None:
    for step in steps:
        for weight, gradient in zip(weights, gradients(step, [tuple(w.shape) for w in weights], dtype), strict=True):
            weight.grad = gradient
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_the_same_run_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    """Through a file: eight-bit and float32 states, step counts and the bits that bfloat16 weights lack."""
    weights = [parameter(*SMALL, dtype=dtype), parameter(*LARGE, dtype=dtype), parameter(7, dtype=dtype)]
    straight = Optimizer(weights, lr=1e-4)
    advance(straight, weights, range(5), dtype)
    saved = [nn.Parameter(weight.detach().clone()) for weight in weights]
    save_file(straight.state(), tmp_path / "optimizer.safetensors")

    resumed = Optimizer(saved, lr=1e-4)
    resumed.load_state(load_file(tmp_path / "optimizer.safetensors"))
    again = resumed.state()
    assert all(torch.equal(again[name], tensor) for name, tensor in straight.state().items())
    advance(straight, weights, range(5, 10), dtype)
    advance(resumed, saved, range(5, 10), dtype)
    for before, after in zip(weights + exact_weights(straight), saved + exact_weights(resumed), strict=True):
        assert torch.equal(before, after)
    final = resumed.state()
    assert all(torch.equal(final[name], tensor) for name, tensor in straight.state().items())


def test_loading_does_not_share_memory_with_what_was_saved() -> None:
    weights = [parameter(*LARGE)]
    optimizer = Optimizer(weights, lr=1e-2)
    advance(optimizer, weights, range(2), torch.float32)
    state = optimizer.state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    other_weights = [nn.Parameter(weights[0].detach().clone())]
    other = Optimizer(other_weights, lr=1e-2)
    other.load_state(state)
    advance(other, other_weights, range(2, 4), torch.float32)
    advance(optimizer, weights, range(7, 9), torch.float32)
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())


def test_a_state_before_the_first_step_can_be_loaded() -> None:
    weights = [parameter(*SMALL, dtype=torch.bfloat16)]
    state = Optimizer(weights, lr=1e-2).state()
    others = [nn.Parameter(weights[0].detach().clone())]
    optimizer = Optimizer(others, lr=1e-2)
    optimizer.load_state(state)
    advance(optimizer, others, range(1), torch.bfloat16)


def test_the_state_of_other_parameters_is_refused() -> None:
    few, many = [parameter(*SMALL)], [parameter(*SMALL), parameter(*SMALL)]
    saver = Optimizer(many, lr=1e-2)
    advance(saver, many, range(1), torch.float32)
    with pytest.raises(RuntimeError, match="other parameters"):
        Optimizer(few, lr=1e-2).load_state(saver.state())
    halves = [parameter(*SMALL, dtype=torch.bfloat16), parameter(*SMALL, dtype=torch.bfloat16)]
    with pytest.raises(RuntimeError, match="other parameters"):
        Optimizer(halves[:1], lr=1e-2).load_state(Optimizer(halves, lr=1e-2).state())
    with pytest.raises(RuntimeError, match="other parameters"):
        Optimizer([parameter(3, 5)], lr=1e-2).load_state({"0.state1": torch.zeros(4), "0.step": torch.tensor(1)})


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_a_bfloat16_run_goes_on_in_float32_from_the_exact_weights(shape: tuple[int, int]) -> None:
    """A checkpoint from a GPU taken up on a CPU: the bits that bfloat16 lacks are not lost."""
    torch.manual_seed(0)
    half = parameter(*shape, dtype=torch.bfloat16)
    before = Optimizer([half], lr=1e-5)
    for _ in range(3):
        half.grad = torch.randn(shape).bfloat16()
        before.step()
    whole = nn.Parameter(half.detach().float())
    after = Optimizer([whole], lr=1e-5)
    after.load_state(before.state())
    assert torch.equal(whole, before.exact(0))
    assert not torch.equal(whole, half.float())


# -- memory


class ShortOfMemory(TorchDispatchMode):
    """Runs out of memory where an operation asks for new memory and `fails(bytes, such operations before)`.

    What bitsandbytes does to the weights counts as one operation that asks for none, as on a GPU.
    """

    def __init__(self, fails: Callable[[int, int], bool]):
        super().__init__()
        self.fails, self.before, self.failed = fails, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and func._schema.returns[0].alias_info is None:
            self.before += 1
            if self.fails(out.nbytes, self.before - 1):
                self.failed += 1
                raise torch.OutOfMemoryError("injected")
        return out


SHAPES = [LARGE, (67, 129), (5,), SMALL]  # whole blocks of 256; 33 and three quarters; smaller than one; float32 states


def after_a_step(dtype: torch.dtype, fails: Callable[[int, int], bool]) -> tuple[StepReport, list[Tensor], list[Any]]:
    """Report, all tensors and what was told of a second step, in which memory is short; and how often it was."""
    torch.manual_seed(0)
    weights, told = [parameter(*shape, dtype=dtype) for shape in SHAPES], []
    optimizer = Optimizer(weights, lr=1e-3, report=lambda name, value: told.append((name, value)))
    advance(optimizer, weights, range(1), dtype)
    for weight, gradient in zip(weights, gradients(1, SHAPES, dtype), strict=True):
        weight.grad = gradient
    with ShortOfMemory(fails) as memory:
        report = optimizer.step()
    assert all(weight.grad is None for weight in weights)
    assert bool(told) <= bool(memory.failed)
    return report, [*weights, *optimizer.state().values()], [memory.failed, *told]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_may_run_out_at_any_moment_of_a_step_and_nothing_changes(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once at each operation that needs memory: before the first weight moves, within tensors, after the last.

    Of 1,024 weights at a time there are 4, 9, 1 and 4 pieces; the expected step took each tensor whole.
    """
    report, expected, _ = after_a_step(dtype, lambda size, before: False)
    assert report.moved > 0.9
    monkeypatch.setattr(optimizer_module, "PIECE", 1024)
    at, smaller = 0, 0
    while True:
        found, tensors, (failed, *told) = after_a_step(dtype, lambda size, before: before == at)  # noqa: B023
        assert found == report, at
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors, expected, strict=True)), at
        smaller += len(told)
        if not failed:
            break
        at += 1
    needed = 2 if dtype == torch.bfloat16 else 1  # by a piece: its scaled gradient, and bfloat16's exact value
    assert smaller == needed * (4 + 9 + 1 + 4)
    assert at > smaller


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_taken_in_pieces_as_small_as_memory_asks_for(dtype: torch.dtype) -> None:
    """Four bytes a weight: of 8,643 weights 2,048 at a time are the most that do not pass 10,000 bytes."""
    report, expected, _ = after_a_step(dtype, lambda size, before: False)
    found, tensors, (failed, *told) = after_a_step(dtype, lambda size, before: size > 10_000)
    assert found == report
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors, expected, strict=True))
    assert told == [("optimizer_piece", 2048)]  # once a step, however many tensors it holds for
    assert failed == 5  # the largest tensor whole, in 8,192 and in 4,096; the two of about 4,096 whole


@pytest.mark.parametrize("allowed", [0, 6, 8])
def test_a_step_without_any_memory_ends_with_the_remedy(allowed: int) -> None:
    """While the norm is computed (six operations), while weights are looked at (one), after the first has moved."""
    weights = [parameter(*shape) for shape in SHAPES]
    optimizer = Optimizer(weights, lr=1e-3)
    before = [weight.detach().clone() for weight in weights]
    for weight, gradient in zip(weights, gradients(1, SHAPES, torch.float32), strict=True):
        weight.grad = gradient
    with pytest.raises(UserError, match="smaller model or free memory"), ShortOfMemory(lambda _, n: n >= allowed):
        optimizer.step()
    moved = [not torch.equal(weight, start) for weight, start in zip(weights, before, strict=True)]
    assert moved == [allowed == 8, False, False, False]


def test_states_that_do_not_fit_are_said_in_one_line() -> None:
    weights = [parameter(1000, 1500)]
    with (
        pytest.raises(UserError, match=r"states of 1\.5 M weights"),
        ShortOfMemory(lambda size, before: size > 10_000),
    ):
        Optimizer(weights, lr=1e-3)


def test_pieces_are_whole_blocks() -> None:
    assert PIECE % 256 == 0
