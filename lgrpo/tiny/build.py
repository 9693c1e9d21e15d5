"""Trains the embedded `tiny` model from the generator alone: `python -m lgrpo.tiny.build`.

The model is a small Llama that reads a problem and writes its chain of equations and the boxed answer. The loss is
the cross-entropy of all tokens of `COT</think>\\boxed{ANSWER}<|end|>`; the prompt carries none. It is stopped before it
is perfect, because reinforcement learning needs something to teach.

The same seed, number of steps and threads give the same model on one machine and version of torch.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lgrpo.arithmetic import draw
from lgrpo.problems import Problem
from lgrpo.tiny import MODEL
from lgrpo.tiny.tokenizer import CONTEXT, INSTRUCTION, LARGEST, build_tokenizer

BATCH = 32  # problems: at this size more updates help more than quieter ones
PEAK_LR = 3e-3
WARM_UP = 100  # steps
IGNORED = -100  # a label without loss, as torch's cross_entropy has it


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of 0.8 M float32 parameters with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.06,  # near 1 / sqrt(width); with the usual 0.02 the first few hundred steps are lost
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
        top_k=30,
    )
    # A number in a story starts out as the same vector as that number in a chain: copying is what a chain begins with.
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        for number in range(LARGEST + 1):
            bare, spaced = (tokenizer.encode(space + str(number))[0] for space in ("", " "))
            embedding[spaced] = embedding[bare]
    return model


def prompt_ids(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> list[int]:
    """The ids of the prompt, up to and with `<think>`."""
    turn = [{"role": "user", "content": INSTRUCTION + problem.problem}]
    text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


def response_ids(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> list[int]:
    """The ids of the explicit response, with the end-of-sequence token."""
    return tokenizer.encode(f"{problem.cot}</think>\\boxed{{{problem.answer}}}<|end|>", add_special_tokens=False)


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Training batches without end: ids [B, T] padded on the right, and labels [B, T] moved one place to the left."""
    problems = draw("train", seed)
    while True:
        pairs = [(prompt_ids(tokenizer, p), response_ids(tokenizer, p)) for p in itertools.islice(problems, BATCH)]
        longest = max(len(prompt) + len(response) for prompt, response in pairs) - 1
        ids = torch.full((BATCH, longest), tokenizer.pad_token_id)
        labels = torch.full((BATCH, longest), IGNORED)
        for row, (prompt, response) in enumerate(pairs):
            size = len(prompt) + len(response) - 1
            ids[row, :size] = torch.tensor((prompt + response)[:-1])
            labels[row, len(prompt) - 1 : size] = torch.tensor(response)
        yield ids, labels


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < WARM_UP:
        return PEAK_LR * (step + 1) / WARM_UP
    return PEAK_LR * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(steps - WARM_UP, 1)))


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
    """Trains the model in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    model.train()
    began = time.monotonic()
    for step, (ids, labels) in enumerate(itertools.islice(batches(tokenizer, seed), steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        hidden = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
        counted = labels != IGNORED
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[counted]), labels[counted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"step {step + 1}/{steps}  loss {loss.item():.4f}  {time.monotonic() - began:.0f} s", flush=True)


@torch.no_grad()
def respond(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[Problem], sample: bool, limit: int = 64
) -> list[list[int]]:
    """One explicit response for each problem, as ids with the end-of-sequence token; sampled as the model's
    generation config says, or greedy."""
    model.eval()
    prompts = [prompt_ids(tokenizer, problem) for problem in problems]
    longest = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    if sample:
        out = model.generate(ids, attention_mask=seen, max_new_tokens=limit)
    else:
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        out = model.generate(ids, attention_mask=seen, max_new_tokens=limit, **greedy)
    responses = []
    for row in out[:, longest:].tolist():
        end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        responses.append(row[:end])
    return responses


def is_right(tokenizer: PreTrainedTokenizerFast, response: list[int], problem: Problem) -> bool:
    """Whether a response ends and its box holds exactly the answer."""
    return tokenizer.decode(response).endswith(f"</think>\\boxed{{{problem.answer}}}<|end|>")


def score(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 500, seed: int = 0
) -> dict[str, float]:
    """Explicit Pass@1 on `count` test problems with its standard error, one sampled response each; mean lengths."""
    problems = list(itertools.islice(draw("test", seed), count))
    torch.manual_seed(seed)
    responses = respond(model, tokenizer, problems, sample=True)
    right = [is_right(tokenizer, response, problem) for response, problem in zip(responses, problems, strict=True)]
    rate = sum(right) / count
    return {
        "test_problems": count,
        "pass@1": round(rate, 4),
        "pass@1_se": round(math.sqrt(rate * (1 - rate) / count), 4),
        "explicit_length": round(sum(map(len, responses)) / count, 2),
        "prompt_length": round(sum(len(prompt_ids(tokenizer, problem)) for problem in problems) / count, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded tiny model from the problem generator alone.")
    parser.add_argument("--seed", type=int, default=0, help="weights and problems (0)")
    parser.add_argument("--steps", type=int, default=2200, help=f"optimizer steps of {BATCH} problems (2200)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--out", type=Path, default=MODEL, help="folder to write (the package's own)")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, options.seed)
    began = time.monotonic()
    train(model, tokenizer, options.steps, options.seed)
    minutes = round((time.monotonic() - began) / 60, 1)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    facts = {"seed": options.seed, "steps": options.steps, "threads": options.threads, "minutes": minutes}
    facts |= {"parameters": sum(weight.numel() for weight in model.parameters()), "torch": torch.__version__}
    facts |= score(model, tokenizer)
    (options.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
