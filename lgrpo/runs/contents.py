"""What a checkpoint's files hold: compared with memory when they are written, with their record when they are read.

    saved.json    {"sequence": 3, "saved": time, "score": 0.81, "files": {name: hash, ...}, "seal": hash of the rest}

A hash is BLAKE2b of a file's bytes. It finds what a crash, a full or a dying disk, or a careless copy left; it is no
signature, and keeps out nobody who means harm.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lgrpo.errors import UserError
from lgrpo.runs.durable import forget_cached, read_json, sync, sync_tree, to_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

NOTE = "saved.json"
_STATE = ("train_state", "init_state", "trained_on", NOTE)  # beside a model of ours, and no part of it
_MODEL_FILES = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}
_READERS = 4  # files that are hashed at a time


def seal(folder: Path, note: Mapping[str, Any]) -> None:
    """Flush `folder` to disk, read it back from there, and write its record with `note` in it. Raises OSError."""
    sync_tree(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in names:
        forget_cached(folder / name)
    record = {**note, "files": file_hashes(folder, names)}
    write_json(folder / NOTE, {**record, "seal": short_hash(record)})


def damage(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> str | None:
    """What is wrong with the `wanted` files of a checkpoint; None where they are what was saved.

    A folder without a record, such as a model from elsewhere, has nothing to be compared with: None.
    """
    if not (folder / NOTE).exists():
        return None
    files = _recorded(folder)
    if files is None:
        return f"{NOTE} is not what was written"
    if any(PurePath(name).is_absolute() or ".." in PurePath(name).parts for name in files):
        return f"{NOTE} names a file outside"  # whatever stands there is no part of this checkpoint
    names = [name for name in files if wanted(name)]
    try:
        for name in names:
            if not (folder / name).is_file():
                return f"{name} is missing"
        found = file_hashes(folder, names)
    except OSError as error:
        return f"it cannot be read to its end: {error.strerror or error}"
    changed = [name for name in names if found[name] != files[name]]
    return f"{changed[0]} is not what was written" if changed else None


def _recorded(folder: Path) -> dict[str, str] | None:
    """The hashes in a checkpoint's record; None where it is not what was written."""
    note = read_json(folder / NOTE) or {}
    files = note.get("files")
    return files if note.pop("seal", None) == short_hash(note) and isinstance(files, dict) else None


def is_model_file(name: str) -> bool:
    """Whether a file decides what a checkpoint answers: weights, configuration, tokenizer, card."""
    return Path(name).suffix in _MODEL_FILES and not name.startswith(_STATE)


def content_hash(folder: Path) -> str:
    """Of all files of a model's folder that decide what it answers. Raises UserError where they cannot be read.

    Of a checkpoint of ours the hashes are those of its record, which `damage` compares with the files: a large model is
    not read twice for them.
    """
    try:
        names = [path.name for path in sorted(folder.iterdir()) if is_model_file(path.name) and path.is_file()]
        recorded = _recorded(folder) or {}
        hashes = file_hashes(folder, [name for name in names if name not in recorded])
        return short_hash({name: recorded.get(name) or hashes[name] for name in names})
    except OSError as error:  # a run that goes on removes the checkpoint it has a better one for
        raise UserError(f"{folder} cannot be read to its end ({error.strerror or error}); try again") from error


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """32 hexadecimal digits of each file's bytes. Raises OSError."""
    names = list(names)
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(names, pool.map(lambda name: _file_hash(folder / name), names), strict=True))


def short_hash(value: Any) -> str:
    """12 hexadecimal digits of anything JSON can hold."""
    return hashlib.blake2b(to_json(value).encode(), digest_size=6).hexdigest()


def compare(files: Iterable[Path], tensors: Mapping[str, Tensor]) -> None:
    """Read safetensors files back from disk and compare every bit with `tensors`, one at a time.

    A tensor that was renamed on its way (transformers does so for some architectures), or stands for several that share
    memory, is looked for by its content. Raises OSError where one is missing, is another, or is too many.
    """
    from safetensors import safe_open

    missing, strange, there = dict(tensors), {}, set()
    for path in files:
        sync(path)
        forget_cached(path)
        with safe_open(path, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 - it is no mapping
                read, written = reader.get_tensor(name), missing.pop(name, None)
                if written is None:
                    strange[_bits_hash(read)] = name
                elif _equal(read, written):
                    there.add(written.data_ptr())
                else:
                    raise _differs(name)
    renamed = {_bits_hash(tensor): name for name, tensor in missing.items() if tensor.data_ptr() not in there}
    if odd := renamed.keys() ^ strange.keys():
        raise _differs(min((renamed | strange)[bits] for bits in odd))


def _differs(name: str) -> OSError:
    return OSError(errno.EIO, f"the tensor {name} reads back from disk as another than was written")


def _bits(tensor: Tensor) -> Tensor:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _equal(read: Tensor, written: Tensor) -> bool:
    import torch

    alike = read.dtype == written.dtype and read.shape == written.shape
    return alike and torch.equal(_bits(read), _bits(written))


def _bits_hash(tensor: Tensor) -> bytes:
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.blake2b(head + _bits(tensor).numpy().tobytes(), digest_size=16).digest()


def _file_hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
