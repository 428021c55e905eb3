"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file beside `path` and renames it, so that a failure leaves what was there before.

    What is no regular file, such as `/dev/stdout`, is written to directly.

    Raises:
        OSError: the folder is missing or not writable, `path` is a folder, or the disk is full.
    """
    path = path.resolve()  # through a symbolic link, rather than in its place
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_writable(path: Path) -> None:
    """Finds out before long work whether `write_atomically` can succeed.

    Raises:
        OSError: the folder is missing or not writable, or `path` is a folder.
    """
    path = path.resolve()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    if not path.exists() or path.is_file():
        with tempfile.TemporaryFile(dir=path.parent):
            pass
