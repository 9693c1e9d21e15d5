"""Before anything is written into a folder: whose it is. And while it is: what a user can mend, in words."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lgrpo.errors import UserError
from lgrpo.runs.durable import is_utf8, read_json

_FRESH = {"lock", ".run.json.new"}  # all that a process killed before its run.json stood can have left
_PATHS = {"base", "checkpoint", "data"}  # parts of an identity that may be paths; hashes say what is there
_NEW = {"held_out_hash"}  # parts that a run of an earlier version has not
_FULL = {errno.ENOSPC, errno.EDQUOT}
_ELSEWHERE = {
    errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip


def check_folder(folder: Path) -> None:
    """Raises UserError where no run can ever be in `folder`: quick, and asked before anything takes time."""
    if not is_utf8(folder):  # or checkpoints could not be written there, after the first steps
        raise UserError(f"{folder}: the name, or the locale, is not UTF-8; choose another --out")
    try:
        is_file = folder.exists() and not folder.is_dir()
    except OSError as error:  # a name too long, a folder that may not be entered
        reason = error.strerror or error
        raise UserError(f"{str(folder)[:200]} cannot be used ({reason}); choose another --out") from error
    if is_file:
        raise UserError(f"{folder} is a file; choose another --out")


def refuse(folder: Path, command: str, identity: dict[str, Any], overwrite: bool) -> bool:
    """Whether the run of `command` and `identity` is in `folder`; a UserError where another is. Writes nothing."""
    check_folder(folder)
    record = read_json(folder / "run.json")
    if record is None:
        strange = sorted({path.name for path in folder.glob("*")} - _FRESH)
        if "run.json" in strange:
            _readable(folder / "run.json")
            raise UserError(f"{folder / 'run.json'} is damaged; remove the folder, or choose another --out")
        if strange:
            raise UserError(f"{folder} holds files that are no run ({strange[0]}); choose another --out")
        return False
    if overwrite:
        inside = [text for text in identity.values() if isinstance(text, str) and _is_inside(Path(text), folder)]
        if inside:
            raise UserError(f"--overwrite would delete {inside[0]}, which this run starts from; choose another --out")
        return True
    if not isinstance(known := record.get("identity", {}), dict):
        raise UserError(f"{folder / 'run.json'} is damaged (identity); choose another --out, or add --overwrite")
    before = {"command": record.get("command"), **known}
    after = {"command": command, **identity}
    for name in [*after, *before]:
        if not _same(name, before, after):
            raise UserError(
                f"{folder} holds another run ({name[:60]} {_short(before.get(name))}, now {_short(after.get(name))}); "
                "choose another --out, or add --overwrite to replace it"
            )
    return True


def unfinished(folder: Path, command: str, identity: dict[str, Any]) -> bool:
    """Whether that run itself is there and has not ended: then it goes on, and is not what --overwrite replaces."""
    try:
        return refuse(folder, command, identity, overwrite=False) and not (read_json(folder / "run.json") or {}).get(
            "finished"
        )
    except UserError:
        return False


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Raises UserError where one of these is a link: what it points to would be written, and cut."""
    for name in names:
        if (folder / name).is_symlink():
            raise UserError(f"{folder / name} is a link, and lgrpo writes nothing through one; remove it")


def _readable(path: Path) -> None:
    """Raises UserError where a file may not be read: it need not be damaged."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); choose another --out") from error


def _same(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a part of two identities is equal. A path is wherever it leads to the same place, or the same content."""
    one, other = before.get(name), after.get(name)
    if one == other or (name in _NEW and one is None):
        return True
    if name not in _PATHS:
        return False
    content = f"{name}_hash"
    moved = before.get(content) is not None and before.get(content) == after.get(content)
    return moved or (isinstance(one, str) and isinstance(other, str) and same_place(one, other))


def same_place(one: str | Path, other: str | Path) -> bool:
    """Whether two paths, of something that need not be there any more, lead to the same place from here."""
    try:
        return len({os.path.realpath(os.path.expanduser(path)) for path in (one, other)}) == 1
    except (OSError, ValueError):  # what no file can be called
        return False


def _short(value: Any) -> str:
    return str(value) if len(str(value)) <= 100 else f"{str(value)[:100]}..."


def _is_inside(path: Path, folder: Path) -> bool:
    return path.exists() and path.resolve().is_relative_to(folder.resolve())


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what a user can mend (disk full, folder not writable) into a UserError; other errors pass."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _number_of(error)
        if number is None:
            raise
        if number in _FULL:
            remedy = "free some space and run the same command again"
        elif number in _ELSEWHERE:
            remedy = "choose another --out"
        elif number == errno.EIO:
            remedy = "the disk may be failing: choose another --out; the checkpoints before it are untouched"
        else:
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or os.strerror(number)
        raise UserError(f"cannot write in {folder}: {reason}; {remedy}") from error


def _number_of(error: Exception) -> int | None:
    """The system's error number in what safetensors raises, which is no OSError; None in anything else."""
    if type(error).__name__ != "SafetensorError":
        return None
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None
