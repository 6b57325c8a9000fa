"""Where the repository is, for what works on its notebooks and recorded results."""

from pathlib import Path


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
