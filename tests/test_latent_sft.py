"""Latent-SFT's losses, labels and batches against plain loops in float64, one example at a time (docs/method.md, 6)."""

import math
from collections.abc import Sequence
from typing import Any

import models
import pytest
import torch
from torch import Tensor

from lgrpo import chunks as chunks_module
from lgrpo.budget import Budget
from lgrpo.errors import UserError
from lgrpo.latent_sft import dual_track_positions, supervision_mask
from lgrpo.latent_sft.build import build_loss, decoder_row, labelled, warm_up_loss
from lgrpo.latent_sft.encoder import Encoder, Latents, mixed
from lgrpo.latent_sft.examples import COMPRESS, IGNORED, LATENT, PAD, Example, batch_numbers, cut, encode
from lgrpo.latent_sft.fit import learning_rate
from lgrpo.latent_sft.labels import Labels, perturb, write_labels
from lgrpo.latent_sft.schedule import schedule
from lgrpo.latent_sft.walk import walk_loss
from lgrpo.policy import Policy
from lgrpo.problems import Problem

# Ids of the small vocabulary: words are 0 to 19, then <think>, </think>, <|end|>, <|pad|>.
THINK, END, EOS = 20, 21, 22
EXAMPLES = [
    Example((3, 5, THINK), (7, 8, 9, 10, 11), (END, 4, EOS)),  # a rest of one token
    Example((2, THINK), (6, 1), (END, 12, 13, EOS)),  # one latent
    Example((4, 4, 9, 1, THINK), (7, END, 9, 10), (END, 5, EOS)),  # the end marker's id within the chain
]
RATIO, K, SCALE = 2, 3, 0.7


@pytest.fixture(autouse=True)
def _float64(monkeypatch: pytest.MonkeyPatch) -> None:
    models.compute_in_float64(monkeypatch)


def plain_hidden(policy: Policy, embeds: Tensor, start: int = 0) -> Tensor:
    """Final hidden states [T, D] of one row embeds [T, D] under plain causal attention, from position `start`."""
    size = len(embeds)
    causal = torch.ones(1, size, size, dtype=torch.bool).tril()
    return policy.hidden(embeds[None], causal, torch.arange(start, start + size)[None])[0]


def plain_log_probs(policy: Policy, state: Tensor) -> Tensor:
    return policy.head(state).log_softmax(-1)


def token(policy: Policy, *ids: int) -> Tensor:
    return policy.embedding(torch.tensor(ids))


def a_policy(architecture: str = "llama") -> Policy:
    return models.policy(architecture)


def an_encoder(policy: Policy, ratio: int = RATIO) -> Encoder:
    encoder = Encoder(policy, ratio, K, SCALE)
    with torch.no_grad():
        encoder.compress.add_(torch.randn_like(encoder.compress))
    return encoder


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


# -- rows, drawn by hand


def test_rows_of_encoder_and_decoder_by_hand() -> None:
    encoder = an_encoder(a_policy())
    assert encoder.interleave(EXAMPLES[0]) == [7, 8, COMPRESS, 9, 10, COMPRESS, 11, COMPRESS]
    ids, labels = decoder_row(EXAMPLES[0], RATIO)
    #       prompt     z1      t  t   z2      t   z3      </think> answer
    assert ids == [3, 5, THINK, LATENT, 9, 10, LATENT, 11, LATENT, END, 4]
    assert labels == [IGNORED, IGNORED, IGNORED, 9, 10, IGNORED, 11, IGNORED, END, 4, EOS]
    ids, labels = decoder_row(EXAMPLES[1], RATIO)
    assert ids == [2, THINK, LATENT, END, 12, 13]
    assert labels == [IGNORED, IGNORED, END, 12, 13, EOS]
    for example in EXAMPLES:
        for ratio in (1, 2, 3, 7):
            ids, labels = decoder_row(example, ratio)
            assert sum(label != IGNORED for label in labels) == labelled(example, ratio)
            assert ids.count(LATENT) == example.latents(ratio) == encoder_latents(example, ratio)


def encoder_latents(example: Example, ratio: int) -> int:
    return an_encoder(a_policy(), ratio).interleave(example).count(COMPRESS)


# -- stage 1


def plain_states(encoder: Encoder, example: Example) -> list[Tensor]:
    """Hidden state of each compress token, from a row of its own without the earlier compress tokens."""
    out = []
    policy = encoder.policy
    for number in range(example.latents(encoder.ratio)):
        read = example.chain[: (number + 1) * encoder.ratio]
        embeds = torch.cat([token(policy, *example.prompt, *read), encoder.compress[None]])
        # A compress token takes up a position all the same.
        of_chain = [len(example.prompt) + at + at // encoder.ratio for at in range(len(read))]
        positions = [*range(len(example.prompt)), *of_chain, of_chain[-1] + 1]
        causal = torch.ones(1, len(embeds), len(embeds), dtype=torch.bool).tril()
        out.append(policy.hidden(embeds[None], causal, torch.tensor(positions)[None])[0, -1])
    return out


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_encoder_states_equal_rows_without_earlier_compress_tokens(architecture: str) -> None:
    encoder = an_encoder(a_policy(architecture))
    if architecture == "qwen2-sliding":  # a window counts positions, hidden ones as well
        assert encoder.policy.model.config.sliding_window == models.WINDOW
    expected = torch.stack([state for example in EXAMPLES for state in plain_states(encoder, example)])
    assert torch.allclose(encoder.states(EXAMPLES), expected, rtol=0, atol=1e-9)


def test_superposition_is_the_softmax_of_the_scaled_products_with_the_decoders_embedding() -> None:
    policy = a_policy()
    encoder = an_encoder(policy)
    with torch.no_grad():
        encoder.policy.embedding.weight.add_(1.0)  # type: ignore[operator] # the encoder's own table is not the decoder's
    latents = encoder.latents(EXAMPLES, policy)
    logits = SCALE * encoder.states(EXAMPLES) @ policy.embedding.weight.T
    values, indices = logits.topk(K)
    assert torch.equal(latents.indices, indices)
    assert torch.allclose(latents.weights, values.softmax(-1), rtol=0, atol=1e-12)
    plain = torch.stack(
        [(w[:, None] * token(policy, *i)).sum(0) for i, w in zip(indices, latents.weights, strict=True)]
    )
    assert torch.allclose(mixed(latents, policy), plain, rtol=0, atol=1e-12)


def plain_build_loss(encoder: Encoder, policy: Policy, example: Example) -> Tensor:
    """Each segment from a row that holds its latent and itself alone; the answer from prompt, latents and itself."""
    ratio, begin = encoder.ratio, len(example.prompt)
    latents = mixed(encoder.latents([example], policy), policy)
    loss = torch.zeros((), dtype=torch.float64)
    for number in range(len(latents) - 1):
        segment = example.chain[(number + 1) * ratio : (number + 2) * ratio]
        before = torch.cat([token(policy, *example.prompt), latents[: number + 1]])
        state = plain_hidden(policy, before)[-1]  # the latent itself sees prompt and earlier latents
        loss = loss - plain_log_probs(policy, state)[segment[0]]
        loss = loss + plain_segment_loss(policy, before, segment)
    answer = torch.cat([token(policy, *example.prompt), latents, token(policy, *example.response[:-1])])
    states = plain_hidden(policy, answer)[begin + len(latents) - 1 :]
    for state, target in zip(states, example.response, strict=True):
        loss = loss - plain_log_probs(policy, state)[target]
    return loss


def plain_segment_loss(policy: Policy, before: Tensor, segment: Sequence[int]) -> Tensor:
    """Cross-entropy of all but the first token of a segment, each seeing the latent and the segment so far."""
    begin = len(before)
    embeds = torch.cat([before, token(policy, *segment)])
    allowed = torch.ones(len(embeds), len(embeds), dtype=torch.bool).tril()
    allowed[begin:, : begin - 1] = False
    states = policy.hidden(embeds[None], allowed[None], torch.arange(len(embeds))[None])[0, begin:-1]
    losses = [-plain_log_probs(policy, s)[t] for s, t in zip(states, segment[1:], strict=True)]
    return sum(losses, torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_build_loss_and_its_gradient_equal_the_plain_loop(architecture: str) -> None:
    policy = a_policy(architecture)
    encoder = an_encoder(policy)
    plain = sum(plain_build_loss(encoder, policy, example) for example in EXAMPLES)
    plain.backward()
    expected = {**gradients(encoder), **{f"decoder.{n}": g for n, g in gradients(policy.model).items()}}
    encoder.zero_grad()
    policy.model.zero_grad()
    loss = build_loss(encoder, policy, EXAMPLES)
    loss.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-11)
    found = {**gradients(encoder), **{f"decoder.{n}": g for n, g in gradients(policy.model).items()}}
    assert found.keys() == expected.keys()
    assert any(name.endswith("compress") for name in found)
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-8, atol=1e-9), name


def test_a_segment_sees_its_latent_and_nothing_else() -> None:
    """It does not move when prompt, other segments or other latents do; the answer does not move with a segment."""
    policy = a_policy()
    ids = torch.tensor([[3, 5, THINK, LATENT, 9, 10, LATENT, 11, 12, LATENT, END, 4]])
    allowed = supervision_mask(ids, LATENT, [END], PAD)
    positions = dual_track_positions(ids, LATENT)
    embeds = policy.embedding(ids.clamp(min=0)).detach()

    def moved(changed: list[int]) -> list[int]:
        other = embeds.clone()
        other[0, changed] += 1.0
        before, after = (policy.hidden(e, allowed, positions)[0] for e in (embeds, other))
        return [at for at in range(ids.shape[1]) if not torch.allclose(before[at], after[at], rtol=0, atol=1e-12)]

    assert moved([7]) == [7, 8]  # a segment moves itself from there on, not even the answer
    assert moved([4]) == [4, 5]
    # Text of a segment sees its latent's state, which sees the prompt, in deeper layers: only the first layer is blind.
    shallow = models.policy("llama", num_hidden_layers=1)

    def moved_in_one_layer(changed: list[int]) -> list[int]:
        other = embeds.clone()
        other[0, changed] += 1.0
        before, after = (shallow.hidden(e, allowed, positions)[0] for e in (embeds, other))
        return [at for at in range(ids.shape[1]) if not torch.allclose(before[at], after[at], rtol=0, atol=1e-12)]

    assert moved_in_one_layer([0]) == [0, 1, 2, 3, 6, 9, 10, 11]
    assert moved_in_one_layer([3]) == [3, 4, 5, 6, 9, 10, 11]
    assert moved_in_one_layer([6]) == [6, 7, 8, 9, 10, 11]


def test_warm_up_loss_by_hand_and_its_target() -> None:
    """The even mixture of the chain tokens before each compress token, a rest of one token by itself, smoothed."""
    policy = a_policy()
    encoder = an_encoder(policy)
    smoothing, expected = 0.1, 0.0
    groups = [(7, 8), (9, 10), (11,), (6, 1), (7, END), (9, 10)]
    for state, group in zip(encoder.states(EXAMPLES), groups, strict=True):
        log_probs = (SCALE * policy.embedding.weight @ state).log_softmax(-1)
        target = torch.full_like(log_probs, smoothing / len(log_probs))
        for word in group:
            target[word] += (1 - smoothing) / len(group)
        expected -= float((target * log_probs).sum())
    assert float(warm_up_loss(encoder, policy, EXAMPLES, smoothing)) == pytest.approx(expected, rel=1e-11)


def test_chunks_of_the_head_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of every stage, values and gradients."""
    policy = a_policy()
    encoder = an_encoder(policy)
    results = []
    indices, labels = soft_labels(EXAMPLES)
    for logits_per_chunk in (1 << 26, 24 * 2):  # all at once; two positions at a time
        monkeypatch.setattr(chunks_module, "LOGITS_PER_CHUNK", logits_per_chunk)
        encoder.zero_grad()
        policy.model.zero_grad()
        loss = build_loss(encoder, policy, EXAMPLES) + warm_up_loss(encoder, policy, EXAMPLES, 0.03)
        walk = walk_loss(policy, EXAMPLES, indices, labels, RATIO)
        loss = loss + walk.text + 2 * walk.chain
        loss.backward()
        results.append((float(loss), gradients(encoder), gradients(policy.model)))
    (loss_a, *grads_a), (loss_b, *grads_b) = results
    assert loss_a == pytest.approx(loss_b, rel=1e-12)
    for before, after in zip(grads_a, grads_b, strict=True):
        assert all(torch.allclose(before[name], after[name], rtol=1e-9, atol=1e-10) for name in before)


# -- labels


def test_labels_are_the_encoders_chains_in_the_order_of_the_examples() -> None:
    policy = a_policy()
    encoder = an_encoder(policy)
    seen: list[int] = []
    labels = write_labels(encoder, policy, EXAMPLES, Budget(16), on_part=seen.append)
    assert seen[-1] == len(EXAMPLES)
    assert labels.starts.tolist() == [0, 3, 4, 6]
    for numbers in ([0], [2, 1], [1, 1, 0]):
        indices, probabilities = labels.of(numbers)
        expected = encoder.latents([EXAMPLES[number] for number in numbers], policy)
        assert torch.equal(indices, expected.indices)
        assert torch.allclose(probabilities, expected.weights.to(probabilities), rtol=1e-6, atol=1e-7)
    even = Labels(torch.zeros(1, 4, dtype=torch.int32), torch.tensor([[0.5, 0.5, 0.0, 0.0]]), torch.tensor([0, 1]))
    assert even.entropy() == pytest.approx(math.log(2))


@pytest.mark.parametrize("fails_at", [0, 1])
def test_labels_are_the_same_where_memory_runs_out(fails_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine examples in micro-batches of 6 short and 3 long ones: what fails is done again in halves, the rest once."""
    policy = a_policy()
    encoder, budget, heard, done = an_encoder(policy), Budget(40), [], []
    several = [EXAMPLES[number] for number in (0, 1, 2, 1, 1, 0, 1, 1, 1)]
    expected = write_labels(encoder, policy, several, Budget(40), on_part=lambda done: None)
    latents, sizes = encoder.latents, []

    def limited(examples: Sequence[Example], decoder: Policy) -> Latents:
        sizes.append(len(examples))
        if len(sizes) == fails_at + 1:
            raise torch.OutOfMemoryError("injected")
        return latents(examples, decoder)

    monkeypatch.setattr(encoder, "latents", limited)
    budget.report = lambda *told: heard.append(told)
    labels = write_labels(encoder, policy, several, budget, on_part=done.append)
    assert sizes == [[6, 4, 2, 1, 1, 1], [6, 3, 1, 1, 1]][fails_at]
    assert heard == [("micro_tokens", 20)]
    assert budget.positions == 20
    assert done == [6, 9]
    assert torch.equal(labels.indices, expected.indices)
    assert torch.equal(labels.starts, expected.starts)
    assert torch.equal(labels.probabilities, expected.probabilities)


def test_an_example_whose_label_does_not_fit_ends_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = a_policy()
    encoder, done = an_encoder(policy), []

    def never(*args: Any) -> Latents:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(encoder, "latents", never)
    with pytest.raises(UserError, match="max_prompt"):
        write_labels(encoder, policy, EXAMPLES, Budget(40), on_part=done.append)
    assert done == []


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_is_a_clipped_gumbel_draw_renormalised() -> None:
    indices = torch.tensor([[1, 2, 3]]).expand(20_000, -1)
    probabilities = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).expand(20_000, -1)
    noisy = perturb(indices, probabilities, end_id=9, scale=1.0, generator=generator())
    assert torch.allclose(noisy.sum(-1), torch.ones(20_000, dtype=torch.float64))
    # Log-odds move by at most the width of the clip, and reach both of its ends.
    shift = (noisy[:, 0] / noisy[:, 1]).log() - math.log(3.5)
    assert float(shift.abs().max()) == pytest.approx(4.5, abs=1e-9)
    # Gumbel-max: the heaviest token is a draw from the label, but for the little that the clip changes.
    shares = torch.bincount(noisy.argmax(-1), minlength=3) / 20_000
    assert shares.tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.02)
    # Half the scale, half the shift, from the same draw.
    half = perturb(indices, probabilities, end_id=9, scale=0.5, generator=generator())
    assert torch.allclose((half[:, 0] / half[:, 1]).log() - math.log(3.5), shift / 2)
    assert torch.equal(perturb(indices, probabilities, 9, 0.0, generator()), probabilities)


def test_noise_never_makes_the_end_marker_the_most_likely() -> None:
    """A chain in training would otherwise go on after the step that ends it."""
    rows = 5_000
    indices = torch.tensor([[5, END, 7]]).expand(rows, -1)
    probabilities = torch.tensor([[0.5, 0.4, 0.1]]).expand(rows, -1)
    noisy = perturb(indices, probabilities, END, 1.0, generator())
    assert not (noisy.argmax(-1) == 1).any()
    assert (noisy[:, 1] > 0).all()  # it stays part of the label
    assert torch.allclose(noisy.sum(-1), torch.ones(rows))
    untouched = perturb(indices, probabilities, 99, 1.0, generator())
    kept = untouched.argmax(-1) != 1
    assert torch.equal(noisy[kept], untouched[kept])  # only the offending steps were drawn again


def test_a_label_that_insists_on_the_end_marker_loses_it() -> None:
    indices = torch.tensor([[END, 6, 7], [END, 6, 7]])
    probabilities = torch.tensor([[1 - 2e-9, 1e-9, 1e-9], [0.2, 0.4, 0.4]])
    noisy = perturb(indices, probabilities, END, 1.0, generator())
    assert noisy[0, 0] == 0
    assert noisy.sum(-1).tolist() == pytest.approx([1.0, 1.0])
    alone = perturb(torch.tensor([[END]]), torch.tensor([[1.0]]), END, 1.0, generator())
    assert alone.tolist() == [[1.0]]


# -- stage 2


def soft_labels(examples: Sequence[Example], seed: int = 0) -> tuple[Tensor, Tensor]:
    steps = sum(example.latents(RATIO) for example in examples)
    indices = torch.stack([torch.randperm(20, generator=generator(seed + row))[:K] for row in range(steps)])
    return indices, torch.rand(steps, K, generator=generator(seed), dtype=torch.float64).softmax(-1)


def plain_walk_loss(policy: Policy, example: Example, indices: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(cross-entropy of the response, KL of the chain), summed, one position after the other."""
    latents = torch.stack([(w[:, None] * token(policy, *i)).sum(0) for i, w in zip(indices, labels, strict=True)])
    embeds = torch.cat([token(policy, *example.prompt), latents, token(policy, *example.response[:-1])])
    log_probs = [plain_log_probs(policy, state) for state in plain_hidden(policy, embeds)]
    place = len(example.prompt) - 1
    chain = torch.zeros((), dtype=torch.float64)
    for tokens, label in zip(indices.tolist(), labels, strict=True):
        for word, probability in zip(tokens, label, strict=True):
            chain = chain + probability * (probability.log() - log_probs[place][word])
        place += 1
    text = -sum(log_probs[place + n][word] for n, word in enumerate(example.response))
    return text, chain


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_walk_loss_and_its_gradient_equal_the_plain_loop(architecture: str) -> None:
    policy = a_policy(architecture)
    indices, labels = soft_labels(EXAMPLES)
    steps = [example.latents(RATIO) for example in EXAMPLES]
    plain = [
        plain_walk_loss(policy, *row) for row in zip(EXAMPLES, indices.split(steps), labels.split(steps), strict=True)
    ]
    expected = [sum(part) for part in zip(*plain, strict=True)]
    (expected[0] + 2 * expected[1]).backward()
    expected_gradients = gradients(policy.model)
    policy.model.zero_grad()
    loss = walk_loss(policy, EXAMPLES, indices, labels, RATIO)
    (loss.text + 2 * loss.chain).backward()
    assert [float(loss.text), float(loss.chain)] == pytest.approx([float(part) for part in expected], rel=1e-11)
    found = gradients(policy.model)
    assert found.keys() == expected_gradients.keys()
    for name in found:
        assert torch.allclose(found[name], expected_gradients[name], rtol=1e-8, atol=1e-9), name


def test_walk_loss_of_a_label_with_a_token_of_no_weight_is_finite() -> None:
    policy = a_policy()
    indices, labels = soft_labels(EXAMPLES[:1])
    labels = torch.tensor([[1.0, 0.0, 0.0]]).double().expand_as(labels)
    assert math.isfinite(float(walk_loss(policy, EXAMPLES[:1], indices, labels, RATIO).chain))


# -- batches, examples, settings


def test_each_pass_visits_every_example_once_in_an_order_of_its_own() -> None:
    count, size = 10, 4
    visited = [n for step in range(5) for n in batch_numbers(count, size, "walk 0", step)]
    first, second = visited[:10], visited[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert batch_numbers(count, size, "walk 0", 3) == visited[12:16]
    assert batch_numbers(count, size, "walk 1", 0) != visited[:4]
    assert len(batch_numbers(3, 8, "few", 0)) == 8  # a batch larger than the data


def test_micro_batches_hold_rows_of_similar_length_and_every_row_once() -> None:
    lengths = [5, 30, 6, 8, 100, 7]
    parts = cut(lengths, 32)
    assert sorted(number for part in parts for number in part) == list(range(6))
    assert parts == [[0, 2, 5, 3], [1], [4]]


def test_what_cannot_be_learnt_from_is_left_out_and_counted() -> None:
    policy = models.policy()
    problems = [
        Problem("w1 w2", "w3", "w4 w5 w6"),
        Problem("w1", "w3", None),
        Problem("w1", "w3", "  "),
        Problem("w1", "w3", " ".join(["w4"] * 50)),
        Problem(" ".join(["w1"] * 90), "w3", "w4"),
    ]
    encoded = encode(policy, problems, ratio=2, max_prompt=60, max_chain=40, max_response=30)
    assert (len(encoded.examples), encoded.without_chain, encoded.too_long) == (1, 2, 2)
    example = encoded.examples[0]
    assert example.chain == (4, 5, 6)
    assert example.prompt[-1] == THINK
    assert example.response[0] == END
    assert example.response[-1] == EOS
    # A latent response of exactly the limit fits; one position less does not.
    length = example.latents(2) + len(example.response)
    for limit, kept in ((length, 1), (length - 1, 0)):
        assert len(encode(policy, problems[:1], 2, 60, 40, limit).examples) == kept


def test_an_end_marker_of_many_tokens_is_spelt_out_in_the_response() -> None:
    words = models.tokenizer(think=False)
    made = models.model("llama", len(words))
    policy = Policy(made, words, models.policy().card, "bytes")
    example = encode(policy, [Problem("1+1", "2", "1+1=2")], 2, 200, 200, 200).examples[0]
    assert len(policy.end_ids) == len("</think>")
    assert words.decode(example.response) == "</think>\\boxed{2}<|end|>"
    assert words.decode(example.prompt).endswith("<think>")
    indices, labels = torch.zeros(3, K, dtype=torch.int64), torch.full((3, K), 1 / K, dtype=torch.float64)
    loss = walk_loss(policy, [example], indices, labels, RATIO)
    text, _ = plain_walk_loss(policy, example, indices, labels)
    assert float(loss.text) == pytest.approx(float(text), rel=1e-11)


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.05) for step in range(100)]
    assert rates[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert rates[5] == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert learning_rate(0, 1, 1.0, 0.05) > 0


@pytest.mark.parametrize("recipe", ["tiny", "low", "high"])
def test_every_setting_has_a_value_and_a_reason(recipe: str) -> None:
    settings, table = schedule(recipe, max_prompt=96, max_response=64, device="cpu")
    assert all(reason and getattr(settings, name) == value for name, value, reason in table)
    changed, table = schedule(recipe, max_prompt=96, max_response=64, device="cuda", walk_steps=7, k=None)
    assert (changed.walk_steps, changed.k) == (7, settings.k)
    assert ("walk_steps", 7, "you set it") in table
    with pytest.raises(UserError, match="walk_steps must be positive"):
        schedule(recipe, max_prompt=96, max_response=64, device="cpu", walk_steps=0)
