"""Architectures that are given positions, masks and a cache, and go by something else, are refused at once."""

from typing import Any

import models
import pytest
import torch
from test_cli import lgrpo

from lgrpo import faithful, session
from lgrpo.errors import UserError
from lgrpo.policy import Policy

OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {  # configuration, its settings, and what is said of it
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "uses positions, masks or its cache"),  # ALiBi
    "diffllama": ("DiffLlamaConfig", {}, "uses positions, masks or its cache"),
    "nemotron": ("NemotronConfig", {}, "keeps what it has read"),
    "falcon_h1": ("FalconH1Config", {"mamba_d_ssm": 64, "mamba_n_heads": 4}, "keeps what it has read"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_architecture_that_goes_its_own_way_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, changes, message = OTHERS[name]
    monkeypatch.setitem(models.ARCHITECTURES, name, (kind, changes))
    with pytest.raises(UserError, match=f"architecture '{name}' {message}"):
        faithful.check(models.policy(name, torch.float32))


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_that_are_supported_pass(architecture: str, dtype: torch.dtype) -> None:
    faithful.check(models.policy(architecture, dtype))


def test_every_model_that_is_named_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    session.load(None, "cpu").save(tmp_path)
    tried: list[Policy] = []

    def refuse(policy: Policy) -> None:
        tried.append(policy)
        raise UserError("it goes its own way")

    monkeypatch.setattr(faithful, "check", refuse)
    for command in (
        ["init", tmp_path],
        ["train", tmp_path],
        ["sample", "1 + 1?", "--model", tmp_path],
        ["eval", tmp_path],
    ):
        result = lgrpo(*map(str, command))
        assert (result.exit_code, result.stderr) == (2, "Error: it goes its own way\n")
    assert len(tried) == 4
