"""What everything that reads or writes files shares: checked paths, one-line read errors, atomic replacement."""

import errno
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "FilePath",
    "atomic_path",
    "check_separate",
    "check_writable",
    "existing_file",
    "reading",
    "write_text",
]

FilePath = str | os.PathLike[str]

#: Files of control groups: what they may take, what they take, and what of it are kept copies of files.
_STEM = 40  # letters of a name that a temporary one keeps: file systems allow 255 bytes


def existing_file(path: FilePath) -> Path:
    """The path of a file that exists and is not empty.

    Raises:
        ValueError: There is no such file, it is a folder, or it has no bytes.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: expected a file, but it does not exist")
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, got a folder or a special file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")
    return path


@contextmanager
def reading(path: FilePath) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into a one-line ValueError that names the file.

    Decoders raise many types (zlib.error, struct.error, EOFError, SyntaxError, ArrowInvalid, ...), so all are caught:
    keep only the decoder's own call inside the block.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not in UTF-8; save it in that encoding") from error
    except Exception as error:
        raise ValueError(f"{path}: cannot be read, damaged or not of this format ({_reason(error)})") from error


def check_writable(path: FilePath) -> None:
    """What is to be written in the end is found out to be impossible in the beginning.

    Raises:
        ValueError: `path` is a folder, or a file is in its way.
        PermissionError: Nothing may be written there.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: expected a file name to write, got a folder")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{path}: expected a folder to write into, but {folder} is a file")
    if not os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, f"cannot be written ({os.strerror(errno.EACCES)})", str(path))


def check_separate(written: Mapping[str, FilePath | None], read: Sequence[FilePath] = ()) -> None:
    """What is written must not replace what is read, or written, too.

    Arguments:
        written: Paths by the option that asks for them.
        read: Others.

    Raises:
        ValueError: which names the option.
    """
    taken = {Path(path).resolve(): "read" for path in read}
    for option, path in written.items():
        if path is None:
            continue
        place = Path(path).resolve()
        if place in taken:
            raise ValueError(f"{option} {path}: is {taken[place]}, too; give another file")
        taken[place] = f"what {option} writes"


@contextmanager
def atomic_path(path: FilePath) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends, and vanishes when the block fails.

    The temporary name keeps the suffix, since several writers choose the format by it.

    Raises:
        ValueError: The folder of `path` does not exist, or `path` is a folder.
        OSError: It cannot be written, for example to a full disk; `path` is then as it was.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: expected an existing folder to write into, but {path.parent} is none")
    check_writable(path)
    temporary = path.with_name(f".{path.stem[:_STEM]}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # some writers leave their files readable by the owner alone
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, str(temporary)):  # of a file that was read meanwhile
            raise
        raise OSError(error.errno or errno.EIO, f"cannot be written ({error.strerror or error})", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
