"""The room that checkpoints need, foreseen."""

from pathlib import Path
from types import SimpleNamespace

import models
import pytest
import torch
from safetensors.torch import save_file

from lgrpo.errors import UserError
from lgrpo.memory import disk
from lgrpo.optimizer import Optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_states_of_an_optimizer_take_what_was_foreseen(tmp_path: Path, dtype: torch.dtype) -> None:
    policy = models.policy(dtype=dtype, hidden_size=128, intermediate_size=256)
    optimizer = Optimizer(policy.trainable(), 1e-3)
    for parameter in optimizer.parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    save_file(optimizer.state(), tmp_path / "states.safetensors")
    real, foreseen = (tmp_path / "states.safetensors").stat().st_size, disk.states_bytes(policy.trainable())
    assert foreseen <= real <= foreseen + 16_384  # names and places of the tensors


def test_too_little_room_is_said_before_a_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=3e9))
    out = tmp_path / "runs" / "a"
    assert disk.check_room(out, 2.9e9).value == "2.9 GB"
    with pytest.raises(UserError, match=r"^4.0 GB of disk are needed for checkpoints in .* and 3.0 GB are free; "):
        disk.check_room(out, 4e9)
    assert not out.parent.exists()
    (out / "checkpoints" / "step-1").mkdir(parents=True)
    with (out / "checkpoints" / "step-1" / "model.safetensors").open("wb") as file:
        file.truncate(2_000_000_000)
    assert disk.check_room(out, 4e9).name == "disk"  # what is there is room for a run that goes on
