"""What a user can get wrong in checkpoints and data, through the real command line: one line, code 2, nothing written.

Options are in test_cli.py. Here each damaged checkpoint meets all commands, and each damaged file all that read it.
"""

import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import lgrpo

from lgrpo import plan
from lgrpo.policy import Card, Policy, policy

Damage = Callable[[Path], Any]
WITH_MODEL = {
    "init": lambda model: ["init", model],
    "train": lambda model: ["train", model],
    "sample": lambda model: ["sample", "What is 3 + 4?", "--model", model],
    "eval": lambda model: ["eval", model],
}
DEEP, DIGITS = "[" * 100_000, '{"hidden_size": ' + "9" * 10_000 + "}"


def listing() -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in sorted(Path().rglob("*"))}


def refused(arguments: list[str], message: str, stdin: str | None = None) -> None:
    before = listing()
    result = lgrpo(*arguments, stdin=stdin)
    case = f"lgrpo {' '.join(arguments)[:100]}: {result.exit_code} {result.stderr[:600]!r}"
    assert result.exit_code == 2, case
    assert result.stdout == "", case
    assert result.stderr.startswith("Error: "), case
    assert message in result.stderr, case
    assert result.stderr.count("\n") == 1, case
    assert len(result.stderr) < 500, case
    assert result.stderr.rstrip("\n").isprintable(), case
    assert listing() == before, case


# -- checkpoints


def put(name: str, text: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def changed(name: str, **entries: Any) -> Damage:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return change


def config(**entries: Any) -> Damage:
    return changed("config.json", **entries)


def without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def a_folder(name: str) -> Damage:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return make


def a_loop(name: str) -> Damage:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return make


def cut(name: str, end: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def write(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path)
        change(weights)
        path.unlink()
        save_file(weights, path, {"format": "pt"})

    return write


def valued(number: float) -> Damage:
    return tensors(lambda weights: weights["model.norm.weight"].fill_(number))


def flipped(folder: Path) -> None:
    """One bit of the header: a shape is another."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"shape":[', b'"shape":{', 1))


def index(weight_map: Any) -> Damage:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return write


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def tokens(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def write(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return write


def numbered(folder: Path) -> None:
    """A letter has a number that the embedding has no row for, though there are not more tokens than rows."""
    tokens(lambda content: content["model"]["vocab"].update(A=5000))(folder)


def words_only(folder: Path) -> None:
    """A vocabulary of words without a way to write markers."""
    content = json.loads((folder / "tokenizer.json").read_text())
    kept = [one for one in content["added_tokens"] if "think" not in one["content"]]
    vocabulary = {"[UNK]": 0, "what": 1, "is": 2}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    content |= {"added_tokens": kept, "model": model, "pre_tokenizer": {"type": "Whitespace"}}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    changed("tokenizer_config.json", unk_token="[UNK]")(folder)


def card(**entries: Any) -> Damage:
    return changed("lgrpo.json", **entries)


NOT_LOADED, NO_CARD = "cannot be loaded as a causal language model", "not a card lgrpo wrote"
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLES = "{% set n = namespace(s='x') %}{% for a in range(24) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"
UNUSABLE = "tokenizer or configuration cannot be used"
CHECKPOINTS: dict[str, tuple[Damage, str]] = {
    "config-missing": (without("config.json"), "neither a run (run.json) nor a model (config.json)"),
    "config-folder": (a_folder("config.json"), "has no config.json"),
    "config-loop": (a_loop("config.json"), "neither a run (run.json) nor a model (config.json)"),
    "config-empty": (put("config.json", ""), NOT_LOADED),
    "config-cut": (cut("config.json", 40), NOT_LOADED),
    "config-list": (put("config.json", "[]"), NOT_LOADED),
    "config-number": (put("config.json", "3"), NOT_LOADED),
    "config-null": (put("config.json", "null"), NOT_LOADED),
    "config-bytes": (put("config.json", b"\xff\xfe\x00{}"), NOT_LOADED),
    "config-deep": (put("config.json", DEEP), NOT_LOADED),
    "config-digits": (put("config.json", DIGITS), NOT_LOADED),
    "config-megabytes": (put("config.json", '{"model_type": "' + "x" * 5_000_000), NOT_LOADED),
    "config-nothing": (put("config.json", "{}"), NOT_LOADED),
    "config-unknown": (config(model_type="mamba9000"), NOT_LOADED),
    "config-type-number": (config(model_type=3), NOT_LOADED),
    "config-escape": (config(model_type="\x1b[2J"), NOT_LOADED),
    "image": (put("config.json", '{"model_type": "vit"}'), "is no architecture of causal language models"),
    "seq2seq": (put("config.json", '{"model_type": "t5"}'), "is no architecture of causal language models"),
    "wide": (config(hidden_size=10**9), "do not belong together"),
    "deep": (config(num_hidden_layers=10**9, layer_types=None), "layers, but there are"),
    "vocabulary": (config(vocab_size=10**12), "do not belong together"),
    "endless": (config(hidden_size=10**30), NOT_LOADED),
    "zero-heads": (config(num_attention_heads=0, head_dim=None), NOT_LOADED),
    "three-heads": (config(num_attention_heads=3, head_dim=None), NOT_LOADED),
    "hidden-text": (config(hidden_size="many"), NOT_LOADED),
    "hidden-negative": (config(hidden_size=-32), NOT_LOADED),
    "window-text": (config(sliding_window="x"), UNUSABLE),
    "window-list": (config(sliding_window=[4]), UNUSABLE),
    "kinds-number": (config(layer_types=3, sliding_window=4), NOT_LOADED),
    "cap-text": (config(final_logit_softcapping="x"), UNUSABLE),
    "cap-object": (config(final_logit_softcapping={}), UNUSABLE),
    "cap-zero": (config(final_logit_softcapping=0), "computes its logits in a way lgrpo does not support"),
    "positions-text": (config(max_position_embeddings="x"), NOT_LOADED),
    "rope-list": (config(rope_parameters=[1]), NOT_LOADED),
    "rope-text": (
        config(rope_parameters={"rope_type": "longrope", "original_max_position_embeddings": "x"}),
        NOT_LOADED,
    ),
    "rope-less": (config(rope_parameters={"rope_type": "longrope"}), NOT_LOADED),
    "other-shape": (config(intermediate_size=64), "tensors are missing or have another shape"),
    "more-layers": (config(num_hidden_layers=3, layer_types=None), "tensors are missing or have another shape"),
    "fewer-layers": (config(num_hidden_layers=1, layer_types=None), "tensors have no place in this architecture"),
    "other-weights": (config(transformers_weights="../x.safetensors"), "transformers_weights"),
    "eos-text": (config(eos_token_id="end"), NOT_LOADED),
    "adapter": (put("adapter_config.json", "{}"), "is an adapter (adapter_config.json)"),
    "weights-missing": (without("model.safetensors"), "has no model.safetensors"),
    "weights-folder": (a_folder("model.safetensors"), "has no model.safetensors"),
    "weights-empty": (put("model.safetensors", b""), "not a whole safetensors file"),
    "weights-text": (put("model.safetensors", b"no weights at all"), "not a whole safetensors file"),
    "weights-cut": (cut("model.safetensors", -1000), "not a whole safetensors file"),
    "weights-header-cut": (cut("model.safetensors", 300), "not a whole safetensors file"),
    "weights-length": (put("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), "not a whole safetensors file"),
    "weights-flipped": (flipped, "not a whole safetensors file"),
    "weights-pickle": (pickled, "are pickles, which lgrpo does not read"),
    "tensor-missing": (tensors(lambda w: w.pop("model.norm.weight")), "1 tensors are missing or have another shape"),
    "tensor-extra": (tensors(lambda w: w.update(extra=torch.ones(3))), "1 tensors have no place in this architecture"),
    "tensor-shape": (
        tensors(lambda w: w.update({"model.norm.weight": torch.ones(31)})),
        "1 tensors are missing or have another shape",
    ),
    "nan": (valued(float("nan")), "model.norm.weight holds numbers that are not finite"),
    "infinite": (valued(float("inf")), "model.norm.weight holds numbers that are not finite"),
    "overflowing": (valued(3e38), "its logits are no finite numbers"),
    "index-outside": (index({"a": "../other.safetensors"}), "only .safetensors beside it are read"),
    "index-absolute": (index({"a": "/etc/passwd"}), "only .safetensors beside it are read"),
    "index-missing": (index({"a": "model-1.safetensors"}), "the weight file model-1.safetensors is missing"),
    "index-list": (index([1]), "has no weight_map from tensors to files"),
    "tokenizer-missing": (without("tokenizer.json"), NOT_LOADED),
    "tokenizer-empty": (put("tokenizer.json", ""), NOT_LOADED),
    "tokenizer-nothing": (put("tokenizer.json", "{}"), NOT_LOADED),
    "tokenizer-cut": (cut("tokenizer.json", 900), NOT_LOADED),
    "tokenizer-deep": (put("tokenizer.json", DEEP), NOT_LOADED),
    "tokenizer-sparse": (numbered, "use the tokenizer this model was trained with"),
    "no-markers": (words_only, "the tokenizer cannot write <think>"),
    "tokenizer-config-list": (put("tokenizer_config.json", "[]"), NOT_LOADED),
    "tokenizer-config-cut": (cut("tokenizer_config.json", 20), NOT_LOADED),
    "tokenizer-config-deep": (put("tokenizer_config.json", DEEP), NOT_LOADED),
    "tokenizer-length": (changed("tokenizer_config.json", model_max_length=[]), "tokenizer or configuration cannot be"),
    "template-cut": (put("chat_template.jinja", "{% for"), "its chat template fails"),
    "template-raises": (put("chat_template.jinja", "{{ raise_exception('no') }}"), "its chat template fails"),
    "template-divides": (put("chat_template.jinja", "{{ 1 / 0 }}"), "its chat template fails"),
    "template-endless": (put("chat_template.jinja", LOOPS), "fails (it takes more than 1 seconds for an empty problem"),
    "template-doubling": (put("chat_template.jinja", DOUBLES), "fails (it makes 16,777,216 letters of a problem of 0"),
    "card-empty": (put("lgrpo.json", ""), NO_CARD),
    "card-list": (put("lgrpo.json", "[]"), NO_CARD),
    "card-bytes": (put("lgrpo.json", b"\xff"), NO_CARD),
    "card-deep": (put("lgrpo.json", DEEP), NO_CARD),
    "card-digits": (put("lgrpo.json", DIGITS), NO_CARD),
    "card-unknown": (card(flavour=1), NO_CARD),
    "card-folder": (a_folder("lgrpo.json"), "lgrpo.json: cannot be read"),
    "card-mode": (card(mode="quantum"), "mode must be latent or explicit"),
    "card-mode-list": (card(mode=[]), "mode must be latent or explicit"),
    "card-k-zero": (card(k=0), "k a positive number"),
    "card-k-real": (card(k=4.0), "k a positive number"),
    "card-k-huge": (card(k=10**100), "lower k"),
    "card-data": (card(data=["a"]), "data must be a text or null"),
    "card-recipe": (card(recipe=3), "recipe must be a text or null"),
    "card-recipe-unknown": (card(recipe="huge", mode="explicit"), "the checkpoint names the recipe 'huge'"),
    "card-rollout": (card(rollout=[1]), "rollout must hold settings by name"),
    "card-length-real": (card(rollout={"max_response": 12.0}), "max_response of rollout must be a whole number"),
    "card-length-zero": (card(rollout={"max_response": 0}), "max_response of rollout must be a whole number"),
    "card-length-huge": (card(rollout={"max_response": 10**400}), "max_response of rollout must be a whole number"),
    "card-tau-zero": (card(rollout={"tau": 0}), "tau of rollout must be a number"),
    "card-tau-nan": (card(rollout={"tau": float("nan")}), "tau of rollout must be a number"),
    "card-heat": (card(rollout={"temperature": -0.5}), "temperature of rollout must be a number"),
    "card-heat-infinite": (card(rollout={"temperature": float("inf")}), "temperature of rollout must be a number"),
    "card-top-p": (card(rollout={"top_p": 1.5}), "top_p of rollout must be a number"),
    "card-top-k": (card(rollout={"top_k": True}), "top_k of rollout must be a whole number"),
    "card-noise": (card(rollout={"noise_scale": "loud"}), "noise_scale of rollout must be a number"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent model of a few kilobytes."""
    words = models.tokenizer()
    folder = tmp_path_factory.mktemp("model")
    made = models.model("llama", len(words), torch.float32)
    Policy(made, words, Card("latent", "tiny", 4, "arithmetic", {"max_response": 16}), "made").save(folder)
    return folder


def copied(model: Path, name: str) -> Path:
    folder = Path(name)
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused_by_every_command(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(policy, "PATIENCE", 1)
    damage, message = CHECKPOINTS[name]
    damage(copied(model, "damaged"))
    for command in WITH_MODEL.values():
        refused(command("damaged"), message)


@pytest.mark.parametrize("heat", [0, 1])
def test_a_card_may_hold_whole_numbers_where_others_are_meant(
    heat: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 is 1.0 to whoever writes it by hand, and 0 the most probable token."""
    monkeypatch.chdir(tmp_path)
    for name, kind in (("whole", int), ("real", float)):
        settings = {key: kind(value) for key, value in {"temperature": heat, "noise_scale": 1, "tau": 1}.items()}
        card(rollout={"max_response": 9, "top_p": kind(1), "noise_top_p": kind(1), **settings})(copied(model, name))
    told = {}
    for name in ("whole", "real"):
        asked = lgrpo("sample", "3?", "--model", name, "--json", "--explore", "-n", "3")
        scored = lgrpo("eval", name, "--json", "--limit", "2", "--runs", "1")
        assert (asked.exit_code, scored.exit_code) == (0, 0), asked.stderr + scored.stderr
        rows = [json.loads(line) for line in asked.stdout.splitlines()]
        assert [type(rows[0]["settings"][key]) for key in ("temperature", "noise_scale", "tau")] == [float] * 3
        told[name] = [(row["tokens"], row["chain"]) for row in rows]
    assert told["whole"] == told["real"]


@pytest.mark.parametrize("source", ["x" * 300, "x" * 5_000, "no\nwhere\x1b[2J", "loop", "dangling", "/dev/null"])
def test_a_name_that_is_no_checkpoint_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("gone")
    for command in WITH_MODEL.values():
        refused(command(source), "name " if source != "/dev/null" else "is a file; name the folder")


CODE = "import pathlib\npathlib.Path('{mark}').write_text('run')\n" + "".join(
    f"class {name}:\n    pass\n" for name in ("Config", "Model", "Tokenizer")
)


@pytest.mark.parametrize("known", [True, False])
def test_code_that_comes_with_a_checkpoint_is_never_run(
    known: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of an architecture that transformers has, too, nor of its own; nobody is asked, whatever they'd say."""
    monkeypatch.chdir(tmp_path)
    folder, mark = copied(model, "coded"), tmp_path / "executed"
    (folder / "code.py").write_text(CODE.format(mark=mark))
    kinds = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    config(auto_map=kinds, **({} if known else {"model_type": "own"}))(folder)
    changed("tokenizer_config.json", auto_map={"AutoTokenizer": [None, "code.Tokenizer"]})(folder)
    for command in WITH_MODEL.values():
        if known:
            lgrpo(*command("coded"), *(["--limit", "1"] if command("") == ["eval", ""] else []), stdin="y\n")
            break  # sample and eval of a whole model take their time; the way to it is one
        refused(command("coded"), "cannot be loaded as a causal language model", stdin="y\n" * 9)
    assert not mark.exists()


# -- run folders

RECORD = {
    "command": "train", "identity": {}, "settings": {"steps": {"value": 3, "reason": ""}}, "finished": None,
    "options": {"checkpoint": None, "seed": 0, "overrides": []},
}  # fmt: skip
RUNS: dict[str, tuple[str, str]] = {
    "empty": ("", "run holds no checkpoint yet"),
    "list": ("[]", "run holds no checkpoint yet"),
    "deep": (DEEP, "run holds no checkpoint yet"),
    "options-list": (json.dumps({**RECORD, "options": [1]}), "run.json is damaged (options)"),
    "options-text": (json.dumps({**RECORD, "options": "x"}), "run.json is damaged (options)"),
    "options-unknown": (json.dumps({**RECORD, "options": {"x": 1}}), "run.json is damaged (options)"),
    "options-steps": (json.dumps({**RECORD, "options": {"steps": "many"}}), "run.json is damaged (options)"),
    "options-seed": (json.dumps({**RECORD, "options": {"seed": 1.5}}), "run.json is damaged (options)"),
    "options-overrides": (json.dumps({**RECORD, "options": {"overrides": [1]}}), "run.json is damaged (options)"),
    "command": (json.dumps({**RECORD, "command": ["train"]}), "run.json is damaged (options)"),
    "settings-number": (json.dumps({**RECORD, "settings": 3}), "run.json is damaged (settings)"),
    "settings-steps": (json.dumps({**RECORD, "settings": {"steps": []}}), "run.json is damaged (settings)"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_damaged_record_of_a_run_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    text, message = RUNS[name]
    Path("run/run.json").write_text(text)
    refused(["train", "run"], message)
    refused(["sample", "3?", "--model", "run"], "run holds no checkpoint yet")


# -- data

ROW = {"problem": "What is 3 + 4?", "answer": "7", "cot": "3+4=7"}
LINE = json.dumps(ROW)
FILES: dict[str, tuple[str | bytes, str]] = {
    "empty.jsonl": ("", "holds no problems"),
    "blank.jsonl": ("\n \n", "holds no problems"),
    "empty.json": ("", "not JSON"),
    "empty.csv": ("", "holds no problems"),
    "header.csv": ("problem,answer\n", "holds no problems"),
    "empty.txt": ("", "holds no problems"),
    "empty.parquet": ("", "not a Parquet file"),
    "text.parquet": ("PAR1 no PAR1", "not a Parquet file"),
    "notes.md": ("no data", "unknown type of file"),
    "none": ("no data", "unknown type of file"),
    "cut.jsonl": (LINE + "\n" + LINE[:20], "cut.jsonl, line 2: not JSON"),
    "list.jsonl": (LINE + "\n[1]\n", "list.jsonl, line 2: holds a list where an object with fields is needed"),
    "number.jsonl": (LINE + "\n3\n", "line 2: holds a number"),
    "bytes.jsonl": (LINE.encode() + b"\n\xff\xfe\n", "line 2: not UTF-8"),
    "deep.jsonl": (LINE + "\n" + '{"a":' * 100_000, "line 2: nested too deeply"),
    "digits.jsonl": (LINE + "\n" + DIGITS, "line 2: not JSON that can be read"),
    "fields.jsonl": (
        LINE + '\n{"text": "a", "label": 1}\n',
        "line 2: no field for the problem; fields found: text, lab",
    ),
    "null.jsonl": ('{"problem": null, "answer": "1"}', "line 1: the field `problem` is null"),
    "spaces.jsonl": ('{"problem": "  ", "answer": "1"}', "line 1: the field `problem` is empty"),
    "control.jsonl": ('{"\\u001b[2J": 1}', "fields found: ?[2J"),
    "object.json": ('{"a": 1}', "object.json, line 1: no field for the problem"),
    "text.json": ('"a"', "holds text where a list of rows is needed"),
    "rows.json": (f"[{LINE}, 3]", "row 2: holds a number"),
    "uneven.json": ('{"problem": ["a"], "answer": []}', "its columns differ in length"),
    "deep.json": (DEEP, "nested too deeply"),
    "cells.csv": ("problem,answer\na,1\nb\n", "line 3: not as many fields as the 2 names"),
    "quote.csv": ('problem,answer\n"a,1\n', "not CSV"),
    "bytes.csv": (b"problem,answer\n\xff,1\n", "not UTF-8"),
    "names.csv": ("text,label\na,1\n", "fields found: text, label"),
    "bytes.txt": (b"\xff\xfe\n", "line 1: not UTF-8"),
}
WITH_ANSWER: dict[str, tuple[str, str]] = {
    "answerless.jsonl": (LINE + '\n{"problem": "a"}\n', "line 2: no field for the answer; fields found: problem"),
    "null-answer.jsonl": ('{"problem": "a", "answer": null}', "the field `answer` is null"),
    "no-answer.jsonl": ('{"problem": "a", "answer": " "}', "the field `answer` is empty"),
    "nan.jsonl": ('{"problem": "a", "answer": NaN}', "`answer` holds nan"),
    "true.jsonl": ('{"problem": "a", "answer": true}', "`answer` holds bool"),
    "plain.txt": ("What is 3 + 4?\n", "line 1: not of the form `question||chain #### answer`"),
    "unreadable.jsonl": (
        "".join(json.dumps({**ROW, "problem": f"{i}?", "answer": "$ $"}) + "\n" for i in range(9)),
        "none of the 9 answers can be checked",
    ),
    "endless.jsonl": (
        "".join(json.dumps({**ROW, "problem": f"{i}?", "answer": "7" * 3000}) + "\n" for i in range(9)),
        "none of the 9 answers can be checked",
    ),
}
TRAINED: dict[str, tuple[str, str]] = {
    "one.jsonl": (LINE, "1 of 1 different problems cannot be held out; give more problems"),
    "copies.jsonl": ((LINE + "\n") * 50, "of 1 different problems cannot be held out; give more problems"),
    "long.jsonl": (
        "".join(json.dumps({**ROW, "problem": f"{i} " * 5000}) + "\n" for i in range(9)),
        "every prompt is longer than 512 positions",
    ),
}


@pytest.fixture
def data(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copied(model, "latent")
    for name, (content, _) in {**FILES, **WITH_ANSWER, **TRAINED}.items():
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    Path("folder.jsonl").mkdir()
    Path("loop.jsonl").symlink_to("loop.jsonl")
    os.mkfifo("pipe.jsonl")


MISSING = {
    "nowhere.jsonl": "no such file or folder; data may also be arithmetic",
    "loop.jsonl": "no such file or folder; data may also be arithmetic",
    "folder.jsonl": "no data file",
    "pipe.jsonl": "is no regular file",
    "x" * 5_000: "cannot be read",
    "a\x00b": "no such file or folder",
    "../../\x1b[2J": "no such file or folder",
}
COMMANDS = {"init": ["init", "--data"], "train": ["train", "latent", "--data"], "eval": ["eval", "latent", "--data"]}


@pytest.mark.parametrize("extra", ["parquet", "tensorboard", "wandb", "trackio"])
def test_the_package_that_is_missing_is_named_as_it_can_be_installed_from_anywhere(
    extra: str, data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lgrpo is on no index, and nobody need stand in its source: what its extra would install, by its own name."""
    package = {"parquet": "pyarrow"}.get(extra, extra)
    assert f'\n{extra} = ["{package}>=' in (Path(plan.__file__).parents[1] / "pyproject.toml").read_text()
    for name in (package, f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("lgrpo.trackers.available", lambda name: False)
    command = ["train", "latent", *(["--data", "text.parquet"] if extra == "parquet" else ["--log-to", extra])]
    refused(command, f"needs a package that is not installed: pip install {package}\n")


@pytest.mark.parametrize("command", [*COMMANDS, "sample"])
def test_damaged_data_is_refused_with_its_place(command: str, data: None) -> None:
    words = COMMANDS.get(command, ["sample", "--model", "latent", "--file"])
    cases = {**{name: message for name, (_, message) in FILES.items()}, **MISSING}
    if command != "sample":
        cases |= {name: message for name, (_, message) in WITH_ANSWER.items()}
    if command in ("init", "train"):
        cases |= {name: message for name, (_, message) in TRAINED.items()}
    if command == "eval":
        cases = {name: message for name, message in cases.items() if name not in ("unreadable.jsonl", "endless.jsonl")}
    for name, message in cases.items():
        refused([*words, name], message)
