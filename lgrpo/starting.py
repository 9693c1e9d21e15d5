"""Where a run of `init` or `train` starts from, and what becomes of that while it is under way.

A run keeps to the checkpoint it began from: the run that checkpoint lies in may have a better one by now, or have
removed this one. Without it `train` goes on from its own last checkpoint, unless something needs the first weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lgrpo import session
from lgrpo.errors import UserError
from lgrpo.policy import Policy, files
from lgrpo.runs import checkpoints
from lgrpo.runs.durable import read_json
from lgrpo.runs.guard import same_place

_NAMES = {"init": "base", "train": "checkpoint"}  # of a start in a run's identity; its hash is there, too


class Start(NamedTuple):
    """What a run starts from."""

    name: str  # a folder or a hub name; `tiny` is the embedded model
    model: str  # the folder or hub name that is loaded: a checkpoint of the run itself, where the start is gone
    gone: Any = None  # the hash of a start that is no longer there, or is damaged
    moved: str = ""  # for people, where the run in the folder began from something else than the same words mean now
    lost: str = ""  # for people, where it is gone
    remedy: str = ""

    def hash(self, policy: Policy) -> Any:
        """Of the start's content; `policy` is `model`, loaded."""
        return self.gone or session.model_hash(policy, self.model)


def start_of(command: str, asked: str | None, out: Path, overwrite: bool = False, anew: bool = False) -> Start:
    """What `asked` means where the run of `command` is in `out`, or will be. Raises UserError where there is no such.

    overwrite: where its start is gone, and `asked` means another by now, the run there is replaced. anew: it is.
    """
    if session.is_tiny(asked) or asked is None:
        return Start(session.TINY, session.find(None))
    record = {} if anew else read_json(out / "run.json") or {}
    known = record.get("identity") if record.get("command") == command else None
    name, content = (known.get(_NAMES[command] + end) if isinstance(known, dict) else None for end in ("", "_hash"))
    if not isinstance(name, str) or not content or not (_means(asked, name) or _made_from(asked, name)):
        found = session.find(asked)
        return Start(found, found)
    lost = f"{name}, which {out} began from, is gone"
    if not _is_gone(name):
        try:
            return Start(name, session.find(name), moved=_moved(asked, name, out))
        except UserError:
            if command == "init":
                raise
            lost = f"{name}, which {out} began from, is damaged"
    today = _today(asked)
    if today is not None and same_place(today, name):
        today = None  # damaged, and nothing else
    if today is not None and overwrite:
        return Start(today, session.find(today))
    by_now = f"; {asked} means {today} by now: another --out, or --overwrite, begins from that" if today else ""
    remedy = by_now.removeprefix("; ") or "put it back"
    if command == "init":
        ended = f"{out} is finished, and `lgrpo train {out}` goes on from there"
        raise UserError(f"{lost}; {ended if record.get('finished') else remedy + ': it is needed to go on'}")
    if checkpoints.latest_saved(out) is None:
        raise UserError(f"{lost}, and there is no other checkpoint to go on from; {remedy}")
    if record.get("finished") and today:
        raise UserError(f"{lost}, and {out} is finished{by_now}")
    return Start(name, session.find(str(out)), content, f"{lost}, and is not needed to go on{by_now}", lost, remedy)


def _means(asked: str, name: str) -> bool:
    """Whether it may have meant this start: it is itself, or the run that it is a checkpoint of."""
    folder = Path(name).parent
    return same_place(asked, name) or (folder.name == "checkpoints" and same_place(asked, folder.parent))


def _made_from(asked: str, name: str) -> bool:
    """Whether `asked` was a model that is no longer there, and `init` made this start of it."""
    identity = (read_json(Path(name).parent.parent / "run.json") or {}).get("identity")
    base = identity.get("base") if isinstance(identity, dict) else None
    return isinstance(base, str) and _means(asked, base) and _is_gone(asked)


def _is_gone(name: str) -> bool:
    if Path(name).is_dir():
        return False
    try:
        checkpoints.candidates(name)
    except UserError:
        return True
    return files.found(name, files.CONFIG) is None  # of the hub


def _moved(asked: str, name: str, out: Path) -> str:
    today = _today(asked)
    if today is None:  # its run has no checkpoint any more
        return f"{out} stays with {name}, which it began from"
    if same_place(today, name) or same_place(asked, name):
        return ""
    return f"{out} stays with {name}, which it began from; {asked} means {today} by now: another --out begins from that"


def _today(asked: str) -> str | None:
    """The checkpoint that `asked` means now; None where it means none."""
    try:
        today = checkpoints.candidates(asked)[0]
    except UserError:
        return None
    return None if _is_gone(today) else today  # what is no folder any more may look like a hub name
