"""Checks of paths, one-line read errors, and atomic replacement of files."""

import errno
import os
import platform
import re
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

FilePath = str | os.PathLike[str]

_MAX_STEM = 40  # characters of the name that a temporary name keeps; file systems allow 255 bytes
_TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{8}-([0-9]+)-[0-9a-f]{16}\.tmp")  # with the number of the process


def existing_file(path: FilePath) -> Path:
    """Return the path of a file, or raise a ``ValueError`` if it is missing, empty or not a file."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: expected a file, but it does not exist")
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, got a folder or a special file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")
    return path


@contextmanager
def reading(path: FilePath, kind: str | None = None) -> Iterator[None]:
    """Turn anything that a decoder raises on a damaged file into a one-line ValueError that names the file.

    Decoders raise many types (zlib.error, struct.error, EOFError, SyntaxError, ArrowInvalid, ...), so all are caught:
    keep only the decoder's own call inside the block. With a ``kind`` of file, such as "a Parquet file", the message
    names it in place of the decoder's own words.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not in UTF-8; save it in that encoding") from error
    except MemoryError as error:
        raise ValueError(
            f"{path}: takes more memory to read than is free; make the file smaller, or free memory"
        ) from error
    except Exception as error:
        if kind is not None:
            reason = getattr(error, "strerror", None) or f"damaged, or not {kind}"
            raise ValueError(f"{path}: cannot be read: {reason}") from error
        first_line = str(error).strip().partition("\n")[0]
        reason = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
        raise ValueError(f"{path}: cannot be read, damaged or not of this format ({reason})") from error


def check_writable(path: FilePath) -> None:
    """Raise a ``ValueError`` or ``PermissionError`` if a file could not be written; for use before costly work."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: expected a file name to write, got a folder")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{path}: expected a folder to write into, but {folder} is a file")
    if not os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, f"cannot be written ({os.strerror(errno.EACCES)})", str(path))


def check_separate(written: Mapping[str, FilePath | None], read: Sequence[FilePath] = ()) -> None:
    """Raise a ``ValueError`` if an output, given by command line option, replaces an input or another output."""
    uses = {Path(path).resolve(): "read" for path in read}
    for option, path in written.items():
        if path is None:
            continue
        resolved = Path(path).resolve()
        if resolved in uses:
            raise ValueError(f"{option} {path}: is {uses[resolved]}, too; give another file")
        uses[resolved] = f"what {option} writes"


@contextmanager
def atomic_path(path: FilePath) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it if the block succeeds and is removed if it fails.

    The temporary name keeps the suffix, because some writers choose the format by it. If writing fails, for example
    because the disk is full, an ``OSError`` names `path`. Temporary files that killed processes left in the folder are
    removed.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: expected an existing folder to write into, but there is no folder {path.parent}")
    check_writable(path)
    _remove_leftovers(path.absolute().parent)
    unique = f"{_process_space()}-{os.getpid()}-{uuid.uuid4().hex[:16]}"
    temporary = path.with_name(f".{path.stem[:_MAX_STEM]}.{unique}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # some writers make their files readable by the owner only
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename not in (None, str(temporary)):  # from a file that the block reads
            raise
        raise OSError(error.errno or errno.EIO, f"cannot be written ({error.strerror or error})", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@lru_cache
def _process_space() -> str:
    """Return eight characters that differ between machines, and between containers, which number processes anew."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux
        space = 0
    return f"{zlib.crc32(f'{platform.node()} {space}'.encode()):08x}"


@lru_cache(maxsize=1024)  # once for each folder, as some commands write many files to one
def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of processes of this machine that no longer run."""
    for file in folder.glob(f".*.{_process_space()}-*.tmp*"):
        match = _TEMPORARY_NAME.search(file.name)
        if match is not None and not _is_running(int(match[1])):
            with suppress(OSError):  # removed meanwhile, or somebody else's
                shutil.rmtree(file) if file.is_dir() else file.unlink()


def _is_running(process: int) -> bool:
    if os.name != "posix":  # elsewhere, signal 0 is a real one
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to someone else
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Make a replacement survive a power failure, on file systems that can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically; create its folder."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
