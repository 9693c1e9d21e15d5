"""Checkpoints, markers, prompts and logits of every supported kind of model and tokenizer."""

import json
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from lgrpo.errors import UserError
from lgrpo.policy import CARD, Card, Policy, products
from lgrpo.policy.deadline import deadline

PROBLEM = "What is 6 * 7?"
USER = "Please reason step by step, and put your final answer within \\boxed{}.\n" + PROBLEM


def made(tokens: Any = None, card: Card | None = None, architecture: str = "llama", **changes: Any) -> Policy:
    tokens, card = tokens or models.tokenizer(), card or Card("latent", "low", 10)
    vocabulary = changes.pop("vocabulary", len(tokens))
    return Policy(models.model(architecture, vocabulary, torch.float32, **changes), tokens, card, architecture)


def occurrences(ids: list[int], piece: list[int]) -> list[int]:
    return [at for at in range(len(ids)) if ids[at : at + len(piece)] == piece]


# --- markers and prompts -------------------------------------------------------------------------------------------


def test_markers_of_one_token_are_derived_from_the_tokenizer() -> None:
    policy = made()
    assert (policy.begin_ids, policy.end_ids, policy.end_id) == ([256], [257], 257)


def test_markers_of_several_tokens_are_derived_from_the_tokenizer() -> None:
    """One token a byte: the mode switches at `<`, the first of eight."""
    policy = made(models.tokenizer(think=False))
    assert (len(policy.begin_ids), len(policy.end_ids)) == (7, 8)
    assert policy.end_id == policy.end_ids[0]
    assert policy.tokenizer.decode(policy.end_ids) == "</think>"


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("ending", ["", "<think>", "<think>\n", "<think>\n\n"])
def test_a_latent_prompt_ends_with_think_exactly_once(ending: str, think: bool) -> None:
    template = models.CHAT.replace("<|assistant|>", "<|assistant|>" + ending)
    policy = made(models.tokenizer(think, template))
    latent, explicit = policy.prompt_ids(PROBLEM, latent=True), policy.prompt_ids(PROBLEM, latent=False)
    shown = policy.tokenizer.decode(latent)
    assert shown == "<|user|>" + USER + "<|assistant|>" + (ending or "<think>")
    assert len(occurrences(latent, policy.begin_ids)) == 1
    assert policy.tokenizer.decode(explicit) == "<|user|>" + USER + "<|assistant|>" + ending
    assert latent == (explicit if ending else explicit + policy.begin_ids)


@pytest.mark.parametrize(("template", "between"), [(models.CHAT, "<|assistant|>"), (None, "\n")])
def test_think_in_the_problem_is_not_the_marker(template: str | None, between: str) -> None:
    """The plain template writes nothing behind the problem that would keep them apart."""
    policy = made(models.tokenizer(chat_template=template))
    ids = policy.prompt_ids("Say <think> twice: <think>", latent=True)
    assert policy.tokenizer.decode(ids).endswith(f"twice: <think>{between}<think>")


def test_without_a_chat_template_a_plain_one_is_used_and_saved(tmp_path: Path) -> None:
    policy = made(models.tokenizer(chat_template=None))
    ids = policy.prompt_ids(PROBLEM, latent=True)
    assert policy.tokenizer.decode(ids) == USER + "\n<think>"
    assert policy.tokenizer.decode(policy.prompt_ids(PROBLEM, latent=False)) == USER + "\n"
    policy.save(tmp_path)
    assert Policy.load(tmp_path).prompt_ids(PROBLEM, latent=True) == ids


def test_a_prompt_does_not_depend_on_the_day() -> None:
    """Llama 3.2's template writes the date; a resumed run or a second evaluation would see other prompts."""
    dated = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "Today Date: {{ date_string }}\n" + models.CHAT
    )
    policy = made(models.tokenizer(chat_template=dated))
    assert policy.tokenizer.decode(policy.prompt_ids("x", latent=False)).startswith("Today Date: 26 Jul 2024\n")


@pytest.mark.parametrize(
    "form", ["%d %B %Y %H:%M:%S", "%Y-%m-%d", "%A, %-d %b %y", "%H:%M:%S.%f %p", "100%% %j", "", "%e|%D|%F|%T", "%B"]
)
def test_a_template_that_asks_for_the_time_always_has_the_same(form: str) -> None:
    """In the format it asks for, wherever it asks; what it writes otherwise stays as it is, white space too."""
    now, call = repr(datetime(2024, 7, 26).strftime(form)), f"strftime_now({form!r})"
    asks = "  \n{% macro said() %}<{{ NOW }}>{% endmacro %}\n {% set now = NOW %}\n" + models.CHAT
    asks += "{{ now }};{{ said() }};{{ NOW[:3] }};{{ now | length }}"
    prompts = [
        made(models.tokenizer(chat_template=asks.replace("NOW", text))).prompt_ids("x", latent=False)
        for text in (call, now)
    ]
    assert prompts[0] == prompts[1]


def test_the_template_that_asks_for_the_time_is_saved_as_it_came(tmp_path: Path) -> None:
    asks = "{{ strftime_now('%Y') }}" + models.CHAT
    made(models.tokenizer(chat_template=asks)).save(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == asks
    assert Policy.load(tmp_path).tokenizer.chat_template == asks


def test_a_deadline_ends_what_runs_on_and_leaves_signals_as_they_were() -> None:
    def work(seconds: float) -> None:
        """Of the processor."""
        with deadline(0.05, "too long"):
            began = time.thread_time()
            while time.thread_time() - began < seconds:
                pass

    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(TimeoutError, match=r"^too long$"):
        work(9)
    work(0.0)
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    with ThreadPoolExecutor(1) as pool:  # where no signal is heard
        pool.submit(work, 0.2).result()


def test_the_beginning_of_sequence_comes_once() -> None:
    """A chat template writes it and the tokenizer adds it too: the prompt must not start with two."""
    tokens = models.tokenizer(chat_template="{{ bos_token }}" + models.CHAT)
    tokens.add_special_tokens({"bos_token": "<|begin|>"})
    bos = tokens.bos_token_id
    tokens.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", bos)]
    )
    assert tokens("x").input_ids[0] == bos
    assert occurrences(made(tokens).prompt_ids(PROBLEM, latent=True), [bos]) == [0]
    tokens.chat_template = None
    assert occurrences(made(tokens).prompt_ids(PROBLEM, latent=True), [bos]) == [0]


def test_padding_is_the_end_of_sequence_where_there_is_none() -> None:
    policy = made(models.tokenizer(pad=False))
    assert policy.pad_id == policy.tokenizer.pad_token_id == policy.eos_ids[0] == policy.tokenizer.eos_token_id


def test_every_end_of_sequence_ends_a_response() -> None:
    """Tokenizer and generation config often name different ones, and either may be a list."""
    tokens = models.tokenizer()
    model = models.model("llama", len(tokens), torch.float32)
    model.generation_config.eos_token_id = [7, tokens.eos_token_id]
    model.config.eos_token_id = 9
    assert Policy(model, tokens, Card("latent"), "x").eos_ids == [tokens.eos_token_id, 7, 9]


def test_a_tokenizer_without_an_end_of_sequence_is_refused() -> None:
    with pytest.raises(UserError, match="end-of-sequence"):
        made(models.tokenizer(eos=False))


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match="262 tokens but the model embeds 200"):
        made(vocabulary=200)
    made(vocabulary=320)  # rows to spare, as many checkpoints have


def test_hard_tokens_decode_without_special_tokens_but_with_the_markers() -> None:
    policy = made()
    ids = [*policy.end_ids, *policy.tokenizer.encode("\\boxed{42}é"), policy.eos_ids[0], policy.pad_id]
    assert policy.decode(ids) == "</think>\\boxed{42}é"


# --- logits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_logits_equal_the_models_own(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of different lengths padded on the right, all masks explicit, sliding windows shorter than the rows."""
    models.compute_in_float64(monkeypatch)
    policy = models.policy(architecture)
    policy.check_head()
    lengths, width = torch.tensor([11, 7]), 11
    ids = torch.randint(0, 20, (2, width))
    causal = torch.ones(width, width).bool().tril().expand(2, -1, -1)
    with torch.no_grad():
        hidden = policy.hidden(policy.embedding(ids), causal, torch.arange(width).expand(2, -1))
        ours = policy.head(hidden)
        for row, length in enumerate(lengths.tolist()):
            theirs = policy.model(input_ids=ids[row : row + 1, :length]).logits[0]
            assert torch.allclose(ours[row, :length], theirs, rtol=0, atol=1e-10)
    assert ours.dtype == torch.float64


def test_masks_and_positions_are_taken_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences in one row behind a shared prefix: `transformers` left alone would cut or leak attention."""
    models.compute_in_float64(monkeypatch)
    for architecture in models.ARCHITECTURES:
        policy = models.policy(architecture)
        ids = torch.randint(0, 20, (12,))
        first, second = ids[:9], torch.cat([ids[:6], ids[9:]])  # prefix of 6, tails of 3
        segment = torch.tensor([0] * 6 + [1] * 3 + [2] * 3)
        allowed = (segment[:, None] == segment) | (segment == 0)
        allowed &= torch.ones(12, 12).bool().tril()
        positions = torch.tensor([*range(9), 6, 7, 8])
        with torch.no_grad():
            packed = policy.head(policy.hidden(policy.embedding(ids[None]), allowed[None], positions[None]))[0]
            assert torch.allclose(packed[:9], policy.model(input_ids=first[None]).logits[0], rtol=0, atol=1e-10)
            assert torch.allclose(packed[9:], policy.model(input_ids=second[None]).logits[0, 6:], rtol=0, atol=1e-10)


def test_logits_of_a_bfloat16_model_are_float32() -> None:
    policy = models.policy(dtype=torch.bfloat16)
    assert policy.head(torch.zeros(1, 32, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(("name", "changes"), [("Granite", {"logits_scaling": 8.0}), ("Cohere", {"logit_scale": 0.1})])
def test_an_architecture_that_scales_its_logits_is_refused(name: str, changes: dict[str, float]) -> None:
    tokens = models.small_tokenizer()
    shape = {key: value for key, value in models.SHAPE.items() if value is not None}
    config = getattr(transformers, name + "Config")(**shape, vocab_size=len(tokens), **changes)
    config.eos_token_id = config.bos_token_id = config.pad_token_id = None
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter)
    with pytest.raises(UserError, match="logits"):
        Policy(model, tokens, Card("latent"), name).check_head()


# --- parameters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "smollm", "gpt-neox", "gemma2", "phi"])
def test_embedding_and_head_are_frozen_tied_or_not(architecture: str) -> None:
    policy = models.policy(architecture)
    trained = {id(parameter) for parameter in policy.trainable()}
    tables = 1 if policy.model.config.tie_word_embeddings else 2
    frozen = [parameter for parameter in policy.model.parameters() if id(parameter) not in trained]
    bias = [(24,)] * (architecture == "phi")  # of the head
    assert [tuple(parameter.shape) for parameter in frozen] == [(24, 32)] * tables + bias
    assert not any(len(parameter) == 24 for parameter in policy.trainable())


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_a_checkpoint_is_an_ordinary_hugging_face_folder(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AutoModelForCausalLM and AutoTokenizer load it as it is, and compute the same."""
    monkeypatch.setattr(products, "PAYS", False)  # the same products on both sides: equal to the bit
    # Rows to spare: for a model of type qwen2 AutoTokenizer adds the end of text Qwen's own tokenizer has.
    policy = made(card=Card("latent", "high", 7), architecture=architecture, vocabulary=270)
    policy.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind = policy.model.config._attn_implementation
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=kind)
        tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = policy.prompt_ids(PROBLEM, latent=True)
    turn = [{"role": "user", "content": USER}]
    assert tokens.apply_chat_template(turn, add_generation_prompt=True).input_ids + policy.begin_ids == ids
    assert (tokens.eos_token_id, tokens.pad_token_id) == (policy.eos_ids[0], policy.pad_id)
    assert model.generation_config.eos_token_id in (policy.eos_ids, policy.eos_ids[0])
    with torch.no_grad():
        expected = policy.model(input_ids=torch.tensor([ids])).logits
        assert torch.equal(model(input_ids=torch.tensor([ids])).logits, expected)
        again = Policy.load(tmp_path)
        width = len(ids)
        causal = torch.ones(1, width, width).bool().tril()
        hidden = again.hidden(again.embedding(torch.tensor([ids])), causal, torch.arange(width)[None])
        assert torch.allclose(again.head(hidden), expected, atol=1e-4)
    assert (again.card, again.latent) == (policy.card, True)
    assert (again.begin_ids, again.end_ids, again.eos_ids) == (policy.begin_ids, policy.end_ids, policy.eos_ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_the_one_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    made().save(tmp_path)
    assert Policy.load(tmp_path, dtype=dtype).dtype == dtype
    assert Policy.load(tmp_path).dtype == torch.float32  # on a CPU


@pytest.mark.parametrize(
    "knobs", [{"temperature": 0.6, "top_p": 0.9, "top_k": 20}, {"min_p": 0.1}, {"length_penalty": 2.0}]
)
def test_a_generation_config_that_contradicts_itself_does_not_stop_saving(
    knobs: dict[str, float], tmp_path: Path
) -> None:
    """Some published models keep what is for sampling or beams beside neither, which transformers refuses to save."""
    policy = made()
    policy.model.generation_config.update(do_sample=False, bos_token_id=3, **knobs)
    policy.save(tmp_path)
    again = Policy.load(tmp_path)
    assert again.eos_ids == policy.eos_ids
    assert again.model.generation_config.bos_token_id == 3


def test_a_generation_config_that_does_not_is_kept(tmp_path: Path) -> None:
    policy = made()
    policy.model.generation_config.update(temperature=0.6, min_p=0.1, do_sample=True)
    policy.save(tmp_path)
    assert Policy.load(tmp_path).model.generation_config.min_p == 0.1


def test_a_mixture_of_experts_is_saved_and_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In memory the weights of all experts are one tensor; in the files each has its own, as it is published."""
    monkeypatch.setitem(models.ARCHITECTURES, "mixtral", ("MixtralConfig", {"num_local_experts": 2}))
    policy = made(architecture="mixtral")
    policy.save(tmp_path)
    ours, read = policy.model.state_dict(), Policy.load(tmp_path).model.state_dict()
    assert ours.keys() == read.keys()
    assert all(torch.equal(ours[name], read[name]) for name in ours)


def test_a_folder_without_a_card_is_an_explicit_model(tmp_path: Path) -> None:
    made().save(tmp_path)
    (tmp_path / CARD).unlink()
    policy = Policy.load(tmp_path)
    assert policy.card == Card("explicit")
    assert not policy.latent


def without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def truncated(name: str) -> Any:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:1000])


def written(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


def reshaped(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))


def deepened(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


def image_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config.json"), "has no config.json"),
        (without("model.safetensors"), "has no model.safetensors"),
        (without("tokenizer.json"), "cannot be loaded"),
        (truncated("model.safetensors"), "not a whole safetensors file"),
        (written("config.json", "{"), "cannot be loaded"),
        (written("tokenizer.json", "{}"), "cannot be loaded"),
        (reshaped, "missing or have another shape|cannot be loaded"),
        (deepened, "tensors are missing"),
        (image_model, "no architecture of causal language models"),
        (written(CARD, "not json"), "not a card"),
        (written(CARD, '{"flavour": 1}'), "not a card"),
        (written(CARD, "[1, 2]"), "not a card"),
        (written(CARD, "3"), "not a card"),
        (written(CARD, '{"mode": "quantum"}'), "latent or explicit"),
        (written(CARD, '{"mode": "latent", "k": 0}'), "positive"),
        (written(CARD, '{"mode": "latent", "k": true}'), "positive"),
        (written(CARD, '{"mode": "latent", "k": 100000}'), "lower k"),
    ],
)
def test_a_broken_checkpoint_is_one_line_to_the_user(damage: Any, message: str, tmp_path: Path) -> None:
    made().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        Policy.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value) or tmp_path.name in str(caught.value)


@pytest.mark.parametrize("source", ["no/such-model", "nowhere", "/no/such/folder", ""])
def test_a_checkpoint_that_is_none_is_one_line_to_the_user(source: str) -> None:
    with pytest.raises(UserError) as caught:
        Policy.load(source)
    assert "\n" not in str(caught.value)
