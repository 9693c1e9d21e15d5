"""Data sets of the Hugging Face hub: the files of a split, fetched or from the cache."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from lgrpo.data.files import choose, folder_files
from lgrpo.errors import UserError

ALIASES = {
    "gsm8k-aug": "whynlp/gsm8k-aug",
    "gsm8k": "openai/gsm8k:main",
    "math": "DigitalLearningGmbH/MATH-lighteval",
    "math500": "HuggingFaceH4/MATH-500",
    "math-500": "HuggingFaceH4/MATH-500",
    "gsm-hard": "reasoning-machines/gsm-hard",
    "svamp": "ChilleD/SVAMP",
    "multiarith": "ChilleD/MultiArith",
    "aime24": "HuggingFaceH4/aime_2024",
    "aime25": "math-ai/aime25",
    "gpqa": "Idavidrein/gpqa:gpqa_diamond.csv",
    "dapo-math-17k": "open-r1/DAPO-Math-17k-Processed:en",
}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?::[\w./-]+)?", re.ASCII)


def is_name(source: str) -> bool:
    """Whether a source looks like a data set of the hub: an alias, `owner/name`, or `owner/name:FOLDER`."""
    return source in ALIASES or _NAME.fullmatch(source) is not None


def fetch(source: str, split: str) -> list[Path]:
    """The local files of a split of `owner/name`, `owner/name:FOLDER` or an alias. Raises UserError.

    Where the hub cannot be asked (no network, or HF_HUB_OFFLINE is set), what the cache holds is used.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    name, _, part = ALIASES.get(source, source).partition(":")
    with _quiet():
        try:
            if constants.HF_HUB_OFFLINE:
                raise ConnectionError("HF_HUB_OFFLINE is set")
            names = huggingface_hub.HfApi().list_repo_files(name, repo_type="dataset")
        except GatedRepoError as error:
            raise _gated(source, name) from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"{source}: no such file or folder, and the hub shows no data set {name}; check the name, or log in "
                "with `hf auth login` if it is a private one"
            ) from error
        except Exception as error:  # each release raises others: its own, the HTTP library's, the system's
            folder = _cached(name)
            if folder is None:
                raise UserError(
                    f"{source}: no such file or folder, and the data set {name} is not in the cache and cannot be "
                    f"fetched from the hub ({_first_line(error)}); check the name and the network"
                ) from error
            return [folder / file for file in choose(folder_files(folder), split, source, part)]
        try:
            return [
                Path(huggingface_hub.hf_hub_download(name, file, repo_type="dataset"))
                for file in choose(names, split, source, part)
            ]
        except GatedRepoError as error:  # anybody may list its files
            raise _gated(source, name) from error
        except (OSError, EntryNotFoundError) as error:
            raise UserError(f"{source}: fetching from the hub failed ({_first_line(error)}); try again") from error


def _gated(source: str, name: str) -> UserError:
    return UserError(
        f"{source}: the hub gives {name} only to those who accepted its conditions; accept them on its page there, "
        "then log in with `hf auth login`"
    )


def _cached(name: str) -> Path | None:
    """The folder of a data set in the hub's cache, as far as it was fetched."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, repo_type="dataset", local_files_only=True))
    except (OSError, ValueError):  # not in the cache; no name the hub could have
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the hub library's warning for each attempt: one line is said at the end."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
