"""TRL's GRPOTrainer beside lgrpo. TRL is no dependency: where it is missing, its side is skipped.

pip install trl
"""

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import side_by_side
import transformers

from lgrpo.groups import Grader
from lgrpo.plan import TrainSettings
from lgrpo.policy import INSTRUCTION, Policy
from lgrpo.problems import Problem

HINT = "TRL is not installed: its side is skipped (pip install trl)"


def available() -> bool:
    try:
        import trl  # noqa: F401
    except ImportError:
        return False
    return True


@dataclass
class Steps:
    """What one call of `train` measured."""

    seconds: side_by_side.Seconds
    rollout: float = 0.0  # seconds of `seconds.wall` in its generation
    lengths: list[int] = field(default_factory=list)  # of the responses, up to and including the end
    rewards: list[float] = field(default_factory=list)


class Trainer:
    """A GRPOTrainer on `model`, a copy of the policy's, set up to do the work of one `lgrpo train --explicit` batch.

    Same prompts, group size, cap, sampling, rewards, learning rate, clipping and number of optimiser steps. In its
    favour: no gradient checkpointing (its default is on), embedding and head frozen like ours, nothing logged or saved.
    """

    def __init__(
        self,
        policy: Policy,
        model: Any,
        settings: TrainSettings,
        problems: Sequence[Problem],
        grader: Grader,
        micro_batch: int,
        optimizer: str = "adamw_torch_fused",
    ):
        """micro_batch: rows that go through the model together when learning."""
        logging.getLogger("trl").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="trl|torch|transformers")
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        rows = settings.batch * settings.group
        step_rows = settings.update_batch * settings.group
        assert len(problems) == settings.batch
        assert step_rows % micro_batch == 0
        self.folder = tempfile.TemporaryDirectory()
        self.model = model
        frozen = {id(self.model.get_input_embeddings().weight), id(self.model.get_output_embeddings().weight)}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) not in frozen)
        self.initial = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.measured = Steps(side_by_side.Seconds(0.0, 0.0))
        arguments = GRPOConfig(
            output_dir=self.folder.name,
            use_cpu=policy.device.type == "cpu",
            bf16=False,  # the weights are bfloat16 already on a GPU, and float32 on a CPU
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=step_rows // micro_batch,
            generation_batch_size=rows,
            max_steps=rows // step_rows,
            num_generations=settings.group,
            max_completion_length=settings.max_response,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            beta=settings.kl,
            epsilon=settings.clip,
            delta=settings.dual_clip,
            loss_type="dapo",
            mask_truncated_completions=settings.mask_invalid,
            learning_rate=settings.lr,
            lr_scheduler_type="constant",
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            optim=optimizer,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            logging_steps=10**6,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        turns = [[{"role": "user", "content": INSTRUCTION + problem.problem}] for problem in problems]
        self.trainer = GRPOTrainer(
            model=self.model,
            reward_funcs=self._rewarder(grader),
            args=arguments,
            train_dataset=Dataset.from_list(
                [{"prompt": turn, "answer": one.answer} for turn, one in zip(turns, problems, strict=True)]
            ),
            processing_class=copy.deepcopy(policy.tokenizer),
            callbacks=[_Stopwatch(self, policy.device)],
        )
        self.trainer.remove_callback(transformers.PrinterCallback)
        self._generate = self.trainer._generate_single_turn
        self.trainer._generate_single_turn = self._timed_generate

    def roll_out(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Its own generation: response ids, up to and including the end."""
        return self._generate([list(p) for p in prompts], None, {}, 1)[0]

    def train(self, seed: int) -> Steps:
        """One batch from the first weights on: roll out, reward, all optimiser steps."""
        self.trainer.args.seed = seed
        self.model.load_state_dict(self.initial)
        self.measured = Steps(side_by_side.Seconds(0.0, 0.0))
        self.trainer.train()
        return self.measured

    def _timed_generate(self, *args: Any, **kwargs: Any) -> Any:
        out, seconds = side_by_side.timed(self.model.device, lambda: self._generate(*args, **kwargs))
        self.measured.rollout += seconds.wall
        return out

    def _rewarder(self, grader: Grader) -> Callable[..., list[float]]:
        def boxed(completions: Any, completion_ids: Any, answer: list[str], **_: Any) -> list[float]:
            rewards = grader.grade([turn[0]["content"] for turn in completions], answer)
            self.measured.lengths += map(len, completion_ids)
            self.measured.rewards += rewards
            return rewards

        return boxed


class _Stopwatch(transformers.TrainerCallback):  # type: ignore[misc]
    """From the beginning of the first optimiser step, which makes the rollouts, to the end of the last."""

    def __init__(self, owner: Trainer, device: Any):
        self.owner, self.device = owner, device
        self.began = side_by_side.now(device)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.began = side_by_side.now(self.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == state.max_steps:
            self.owner.measured.seconds = side_by_side.since(self.began, self.device)
