"""Files that are either whole or absent, and where the repository has them."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; renamed to it on success, removed on failure.

    A run that is killed leaves no half-written file, and of two processes that write, one wins whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(name: str, folder: Path) -> None:
    """See that a folder can be made and written to, before hours are spent on what goes there.

    Raises:
        ValueError: it cannot; the message starts with ``name``.
    """
    try:
        with write_atomically(folder / "probe") as temporary:
            temporary.write_bytes(bytes(4096))
        (folder / "probe").unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"{name}: cannot write to the folder {folder} ({error}); choose another") from error


def remove_stale(folder: Path) -> None:
    """Remove what `write_atomically` left in a folder a day or longer ago, when its process was killed."""
    with suppress(OSError):  # no such folder; or another process was faster
        for path in folder.glob(".*"):
            if re.fullmatch(r"\.[0-9a-f]{32}(\.\w+)?", path.name) and path.stat().st_mtime < time.time() - 86_400:
                path.unlink()


def repository_root() -> Path:
    """Return the folder that holds ``notebooks/`` and ``data/``.

    It is found from where the package lies, so it does not depend on the working directory.

    Raises:
        FileNotFoundError: the package was installed without the repository around it.
    """
    root = Path(__file__).resolve().parents[1]
    if not all((root / name).is_dir() for name in ("notebooks", "data")):
        raise FileNotFoundError(
            f"there is no notebooks/ and data/ beside the package in {root}: it was installed without its "
            "repository. Clone the repository and, inside it, run: pip install -e '.[notebooks]'"
        )
    return root
