"""Writing files: every one appears whole or not at all, and what the system refuses is one line.

Where several processes share a run, the first one writes its files.
"""

import contextlib
import errno
import glob
import json
import os
import secrets
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # on Windows, which removes no file that is open
    fcntl = None

from . import distributed
from .errors import UserError, reason, say

NO_LOCKS = errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP  # of file systems without them
MOST_TEXT = 2**28  # bytes: more than any run's options, metrics and losses
NO_LINK, NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)  # which Windows lacks, and needs not


@distributed.main_process_only
def write_whole(path: Path, write) -> None:
    """Calls `write(file)` on a temporary file beside `path`, then renames it into place.

    Raises UserError where the file cannot be written; what was there before stays. Temporary files of processes that
    were killed while they wrote to `path` are removed.
    """
    with writing(path):
        remove_temporary(path.parent, glob.escape(path.name))
        temporary, handle = _new_temporary(path)
        try:
            with open(handle, "wb", closefd=not fcntl) as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong before is what is said
                temporary.unlink(missing_ok=True)
            raise
        finally:
            if fcntl:
                os.close(handle)


def _new_temporary(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, open and locked, so that no other process takes it for one that was left behind."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if fcntl:
            with contextlib.suppress(OSError):  # where there are no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        if temporary.exists():  # not taken before it was locked
            return temporary, handle
        os.close(handle)


@contextlib.contextmanager
def writing(path: Path):
    """Around writing to `path`: what the system refuses (a full disk, a vanished folder) becomes a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); make room or put the folder right, "
                        "then start again, a run with --resume auto") from None


@contextlib.contextmanager
def locked(folder: Path):
    """Holds a folder against other runs. The lock is the system's, which drops it however a process ends."""
    if distributed.rank() > 0:
        yield
        return
    with lock(folder / "lock") as held:
        if not held:
            raise UserError(f"--save_path: another run is writing to {folder}; wait for its end or choose another "
                            "folder")
        yield


@contextlib.contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Holds the system's lock on a file; False where another process holds it. A line where the system has no locks.

    Raises UserError where the file cannot be written, and where it is a link, which would lead out of its folder.
    """
    guard = FileLock(path, timeout=0)
    with writing(path):
        held = _acquired(guard, path)
    try:
        yield held
    finally:
        guard.release()


def _acquired(guard: FileLock, path: Path) -> bool:
    try:
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        guard.acquire()
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:  # the latter is filelock's word for the former
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        say(f"note: {path.parent} cannot be locked ({reason(error)}); start only one run there")
    return True


@distributed.main_process_only
def remove(folder: Path, *names: str) -> None:
    """Removes the files of a folder whose names match one of these patterns."""
    for name in names:
        for path in folder.glob(name):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"{path}: cannot be removed ({error.strerror}); put the folder right, then start "
                                "again, a run with --resume auto") from None


@distributed.main_process_only
def remove_temporary(folder: Path, *names: str) -> None:
    """Removes what `write_whole` left where a process was killed; `names` are patterns of final names.

    What another process is writing stays, and so does what cannot be removed, such as another user's file.
    """
    for path in (path for name in names for path in folder.glob(f".{name}.{'[0-9a-f]' * 8}")):
        with contextlib.suppress(OSError):
            if not fcntl:
                path.unlink()
                continue
            with open(path, "r+b", opener=_open_regular) as file:  # for writing, which locks of NFS need
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def make_folder(path: Path, flag: str = "--save_path") -> Path:
    """Creates a folder that can be written to, or raises UserError, which names the flag."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{flag}: cannot write to {path} ({error.strerror}); choose another folder") from None
    return path


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all. UserError where it cannot be written; so the two below."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def open_to_append(path: Path):
    """A file to append to; OSError where it is a link, which would lead out of its folder, or no regular file."""
    return open(path, "a", opener=lambda name, flags: os.open(name, flags | NO_LINK | NO_WAIT, 0o666))


def append_json(path: Path, content: dict) -> None:
    """Appends one line to a JSON-lines file. UserError where it cannot be written."""
    with writing(path), open_to_append(path) as file:
        file.write(json.dumps(content) + "\n")


def write_json_lines(path: Path, lines: list[dict]) -> None:
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in read_text(path).splitlines()]


def open_regular(path: Path):
    """A file to read in binary; OSError where it is none of the disk, but a pipe or device, which may never end."""
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    handle = os.open(path, flags | NO_WAIT)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.ENODEV, "not a regular file", path)
    return handle


def zip_entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """What is in a zip; BadZipFile where a part is packed so that Python unpacks all of it, whatever its size."""
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in archive.infolist()):
        raise zipfile.BadZipFile("a part of it is neither stored nor deflated")
    return archive.infolist()


def unzip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """A part of a zip, of the size that the zip says, whatever it would unfold to; BadZipFile where it is damaged."""
    with archive.open(entry) as file:
        return file.read(entry.file_size)


def read_text(path: Path) -> str:
    """A text file whole; OSError where it is none of the disk, or larger than what a run leaves."""
    with open_regular(path) as file:
        content = file.read(MOST_TEXT + 1)
    if len(content) > MOST_TEXT:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    return content.decode()
