"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import os
import re
import secrets
import tempfile
from pathlib import Path

_PART = re.compile(r"\.[0-9a-f]{16}\.part")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file beside `path` and renames it, so that a failure leaves what was there before.

    When this returns, the file is on the disk, its name too. A killed process can leave its unfinished file behind:
    see `remove_parts`.

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
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes renames in a folder last through a power cut, where the system has such a call."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot, and say so like this
            raise
    finally:
        os.close(descriptor)


def remove_parts(folder: Path) -> None:
    """Removes the unfinished files that killed processes left in a folder; nobody may be writing there.

    Raises:
        OSError: the folder cannot be read or changed.
    """
    for path in folder.iterdir():
        if _PART.fullmatch(path.name):
            path.unlink(missing_ok=True)


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
