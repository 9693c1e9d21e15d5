"""Files that are whole or absent after a crash, and a lock on a folder. Knows nothing of runs.

The order is always the same: write beside, flush to disk, rename. A rename within one folder is atomic, so a reader
sees the file or folder that was there before, or the new one, never a half.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, ClassVar

from lgrpo.errors import UserError

if sys.platform == "win32":
    import msvcrt

    def lock(file: IO[Any]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def lock(file: IO[Any]) -> None:
        # A record lock belongs to the process: unlike flock's it is not inherited by a forked helper, which would
        # otherwise go on holding the folder after this process was killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as strict JSON: non-finite numbers become null, scalar tensors numbers, anything unknown its text.

    It is always UTF-8: bytes of a name that are not, which Python keeps as halves of surrogate pairs, are escapes in
    it, and the same halves again where it is read.
    """
    text = json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if hasattr(value, "item"):  # numpy and torch scalars, without importing either
        return _plain(value.item())
    return str(value)


def is_utf8(path: Path) -> bool:
    """Whether readers and writers of tensors and tokenizers, which take a path as UTF-8, mean the same one by it."""
    try:
        return os.fsencode(path) == str(path).encode("utf-8")
    except UnicodeError:
        return False


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, atomically and on disk when this returns. Raises OSError."""
    _replace(path, path.with_name(f".{path.name}.new"), (to_json(value, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same for any content, and for several processes at once: the last one's stays. Raises OSError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        _replace(path, beside, content)
    finally:
        beside.unlink(missing_ok=True)


def _replace(path: Path, beside: Path, content: bytes) -> None:
    beside.unlink(missing_ok=True)  # were it a link, its target would be written
    beside.write_bytes(content)
    sync(beside)
    os.replace(beside, path)
    sync(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, or None where there is none or it is damaged."""
    try:
        return from_json(path.read_bytes())
    except OSError:
        return None


def from_json(text: str | bytes) -> dict[str, Any] | None:
    """The object in `text`, or None where there is none or it is damaged."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def now() -> str:
    """The time, UTC, ISO 8601; such texts sort by time."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def sync(path: Path) -> None:
    """Flush one file, or one folder's list of names, to disk."""
    if path.is_dir() and os.name == "nt":  # there a folder cannot be opened, and needs no flush
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def forget_cached(path: Path) -> None:
    """Ask the system to read a file that is on disk from there the next time, not from memory."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under `folder`, and `folder` itself, to disk."""
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(where, name))
        sync(Path(where))


def publish_folder(beside: Path, target: Path) -> None:
    """Make the complete folder `beside` appear as `target`, in place of what stood there. See `mend_folders`."""
    sync_tree(beside)
    old = target.with_name(f".{target.name}.old")
    remove(old)
    if os.path.lexists(target):
        os.rename(target, old)  # a folder cannot be renamed onto a full one; mend_folders closes the gap after a crash
    os.rename(beside, target)
    sync(target.parent)
    remove(old)


def remove_folder(target: Path) -> None:
    """Remove a folder so that, cut short, it is gone rather than half there."""
    gone = target.with_name(f".{target.name}.gone")
    remove(gone)
    os.rename(target, gone)
    remove(gone)


def remove(path: Path) -> None:
    """Remove a folder as far as that goes, or a link to one: what it points to is somebody else's."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def mend_folders(parent: Path) -> None:
    """Undo what a crash left in `parent`: half-written and half-removed folders go, a half-replaced one comes back."""
    for path in sorted(parent.glob(".*")):
        target = parent / path.stem[1:]
        if path.suffix == ".old" and not os.path.lexists(target):
            os.rename(path, target)
        elif path.suffix in {".new", ".old", ".gone"}:
            remove(path)


def whole_lines(path: Path) -> None:
    """Cut off a last line that a crash left without its end."""
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


class FolderLock:
    """One process at a time in a folder, until `release` or the process's end, however it ends.

    Raises UserError when another process, or this one, has it already. On a file system without locks there is none.
    """

    _held: ClassVar[set[Path]] = set()  # a record lock does not keep out its own process

    def __init__(self, folder: Path) -> None:
        self.path = (folder / "lock").resolve()
        if self.path in self._held:
            raise UserError(f"{folder} is already open in this process; close that run first")
        self._file = self.path.open("a+", encoding="utf-8")
        try:
            lock(self._file)
        except (BlockingIOError, PermissionError):
            self._file.seek(0)
            try:
                holder = self._file.read(80).split("\n")[0] or "another process"
            except OSError:  # Windows does not let the locked byte be read
                holder = "another process"
            self._file.close()
            raise UserError(f"{folder} is in use by {holder}; wait for it to end, or choose another --out") from None
        except OSError:
            pass
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        self._held.add(self.path)

    def release(self) -> None:
        """Let others in. Twice is once."""
        self._held.discard(self.path)
        self._file.close()
