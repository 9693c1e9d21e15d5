"""A checkpoint's files, looked at before a model is made of them.

What a configuration asks for is only believed where the weights beside it have that size: a wrong number in a JSON
file must not take hours or all memory. Nothing here executes code that comes with a checkpoint, and nothing reads
pickles: weights are safetensors, the rest is JSON.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from lgrpo.errors import UserError, first_line

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_BESIDE = (  # what is read with every model, besides weights and vocabulary
    CONFIG, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "lgrpo.json",
)  # fmt: skip
SMALLEST = 0.5  # bytes of a weight in a file: four bits
BUFFERS = 1 << 28  # numbers that a model may keep beside its weights and its files need not hold, such as masks


def check(source: str | Path) -> None:
    """Raises UserError unless configuration and weights of a folder or a hub name fit each other by size.

    Takes no memory in proportion to the model. Other errors mean that the files cannot be read at all.
    """
    import transformers

    if Path(source).is_dir() and found(source, CONFIG) is None:
        raise UserError(f"{source}: has no {CONFIG}; name the folder of a model, as `save_pretrained` writes it")
    if found(source, ADAPTER) is not None:
        raise UserError(
            f"{source}: is an adapter ({ADAPTER}); merge it into its model and name the folder of the result"
        )
    config = transformers.AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        kind = str(config.model_type)[:60]
        raise UserError(f"{source}: {kind!r} is no architecture of causal language models that transformers has")
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{source}: {config.model_type!r} is an encoder with a decoder; a decoder alone is needed")
    if getattr(config, "transformers_weights", None) is not None:
        raise UserError(f"{source}: {CONFIG} names other weights (transformers_weights); call them {WEIGHTS}")
    tensors, size = 0, 0
    for path in _weights(source):
        tensors += _tensors(path)
        size += path.stat().st_size
    _check_size(source, config, tensors, size)


def _check_size(source: str | Path, config: Any, tensors: int, size: int) -> None:
    """Compare what a configuration describes with `tensors` and `size` bytes of weight files."""
    import transformers

    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > tensors:  # before a model is made of them, if only an empty one
        raise UserError(f"{source}: {CONFIG} has {str(layers)[:20]} layers, but there are {tensors} tensors; mend it")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    numbers = sum(one.numel() for one in model.parameters())
    beside = sum(one.numel() for one in model.buffers())
    if numbers * SMALLEST > size or beside > BUFFERS:
        raise UserError(
            f"{source}: {CONFIG} describes {numbers:.3g} weights and {beside:.3g} numbers beside them, and the weight "
            f"files have {size:.3g} bytes; they do not belong together"
        )


def _weights(source: str | Path) -> list[Path]:
    """The files of the weights. Raises UserError where there are none."""
    if single := found(source, WEIGHTS):
        return [single]
    index = found(source, INDEX)
    if index is None:
        raise UserError(
            f"{source}: has no {WEIGHTS}; write it with `save_pretrained` (weights in .bin files are pickles, which "
            "lgrpo does not read)"
        )
    try:
        names = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{source}: {INDEX} has no weight_map from tensors to files; fetch the model again") from error
    paths = []
    for name in names:
        if PurePosixPath(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{source}: {INDEX} names the file {name[:60]!r}; only .safetensors beside it are read")
        path = found(source, name)
        if path is None:
            raise UserError(f"{source}: the weight file {name[:60]} is missing; the checkpoint is incomplete")
        paths.append(path)
    return paths


def _tensors(path: Path) -> int:
    """How many tensors a file holds. Raises UserError where its header does not describe it."""
    from safetensors import SafetensorError, safe_open

    try:
        path.open("rb").close()  # for its reason: safetensors calls a file that may not be read one that is not there
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        with safe_open(path, "pt") as file:
            return len(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        why = str(error).split("\n")[0][:120]
        raise UserError(f"{path}: not a whole safetensors file ({why}); copy or fetch it again") from error


def fetched(name: str, tokenizer: Any) -> tuple[Path, list[str]]:
    """(the folder of a loaded hub model in the cache, its files that were read): others may come to lie beside them."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, CONFIG)
    if not isinstance(config, str):
        raise UserError(f"{name}: is no longer in the hub's cache; run the same command again")
    folder = Path(config).parent
    names = {*_BESIDE, *tokenizer.vocab_files_names.values(), *(path.name for path in _weights(folder))}
    return folder, sorted(name for name in names if (folder / name).is_file())


def found(source: str | Path, name: str) -> Path | None:
    """A file of a folder or a hub name, fetched or from the cache; None where none can be had."""
    return look_for(source, name)[0]


def look_for(source: str | Path, name: str) -> tuple[Path | None, bool]:
    """(what `found` finds, whether that is certain): a hub that cannot be asked may have what its cache does not know.

    The cache keeps what was fetched, and a mark for what was asked for and was not there.
    """
    if Path(source).is_dir():
        path = Path(source) / name
        return (path if path.is_file() else None), True
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(str(source), name)), True
    except LocalEntryNotFoundError:
        return None, try_to_load_from_cache(str(source), name) is _CACHED_NO_EXIST
    except EntryNotFoundError:
        return None, True
    except HfHubHTTPError:  # not given to everybody, or no such repository: whoever reads its configuration says so
        return None, False
    except OSError as error:  # a network that breaks off, a disk that is full
        raise UserError(f"{source}: {name} cannot be fetched ({first_line(error)}); try again") from error
