"""What everything that reads or writes files shares: checked paths, one-line read errors, atomic replacement."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["FilePath", "atomic_path", "check_fits", "check_writable", "existing_file", "free_memory", "reading"]

FilePath = str | os.PathLike[str]


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
    except Exception as error:
        raise ValueError(f"{path}: cannot be read, damaged or not of this format ({_reason(error)})") from error


def check_fits(size: int, what: str) -> None:
    """What is about to be unpacked must fit into the memory that is free.

    Arguments:
        size: In bytes.
        what: Its name in the message.

    Raises:
        ValueError: where it does not; nothing is known of systems without ``/proc/meminfo``.
    """
    free = free_memory()
    if free is not None and size > free:
        raise ValueError(
            f"{what}: takes {size / 2**30:,.1f} GiB to unpack, but {free / 2**30:,.1f} GiB of memory are free"
        )


def free_memory() -> int | None:
    """Bytes that this process may still take: what the system has left, its container and its own limit allow."""
    found = [_left_of_system(), _left_of_container(), _left_of_limit()]
    return min((size for size in found if size is not None), default=None)


def _left_of_system() -> int | None:
    sizes = _sizes("/proc/meminfo")
    return sizes["MemAvailable:"] << 10 if "MemAvailable:" in sizes else None


def _left_of_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """By the second version of control groups, as a container sees its own."""
    try:
        most, taken = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    if most == "max":
        return None
    files = _sizes(folder / "memory.stat").get("inactive_file", 0)  # kept copies of files, which are given up first
    return max(0, int(most) - int(taken) + files)


def _left_of_limit() -> int | None:
    """By ``ulimit -d``."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    most, taken = resource.getrlimit(resource.RLIMIT_DATA)[0], _sizes("/proc/self/status").get("VmData:")
    return None if most == resource.RLIM_INFINITY or taken is None else max(0, most - (taken << 10))


def _sizes(path: FilePath) -> dict[str, int]:
    """Numbers of a file of names and numbers, by name; without any where there is no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines)
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


def check_writable(path: FilePath) -> None:
    """What is to be written in the end is found out to be impossible in the beginning.

    Raises:
        ValueError: The folder of `path` does not exist, or `path` is a folder.
        PermissionError: Nothing may be written there.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: expected an existing folder to write into, but {path.parent} is none")
    if path.is_dir():
        raise ValueError(f"{path}: expected a file name to write, got a folder")
    if not os.access(path.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, f"cannot be written ({os.strerror(errno.EACCES)})", str(path))


@contextmanager
def atomic_path(path: FilePath) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends, and vanishes when the block fails.

    The temporary name keeps the suffix, since several writers choose the format by it.

    Raises:
        ValueError: The folder of `path` does not exist, or `path` is a folder.
        OSError: It cannot be written, for example to a full disk; `path` is then as it was.
    """
    path = Path(path)
    check_writable(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
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
