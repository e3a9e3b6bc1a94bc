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
    "check_fits",
    "check_separate",
    "check_writable",
    "existing_file",
    "free_memory",
    "reading",
]

FilePath = str | os.PathLike[str]

#: Files of control groups: what they may take, what they take, and what of it are kept copies of files.
_STEM = 40  # letters of a name that a temporary one keeps: file systems allow 255 bytes
_OF_GROUPS = ("memory.max", "memory.current", "inactive_file")
_OF_OLD_GROUPS = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


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
    found = [_left_of_system(), _left_of_container(), *_left_of_limits()]
    return min((size for size in found if size is not None), default=None)


def _left_of_system() -> int | None:
    sizes = _sizes("/proc/meminfo")
    return sizes["MemAvailable:"] << 10 if "MemAvailable:" in sizes else None


def _left_of_container(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """By the control groups that this process is in (both versions), as a container or a scheduler sets them."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers in ("", "memory"):
            base = root / controllers
            names = _OF_OLD_GROUPS if controllers else _OF_GROUPS
            found += [_left_of_group(folder, *names) for folder in (base, base / path.lstrip("/"))]
    return min((size for size in found if size is not None), default=None)


def _left_of_group(folder: Path, most: str, taken: str, kept: str) -> int | None:
    """By one control group; kept copies of files are given up before memory is short."""
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in (most, taken))
    except OSError:
        return None
    if limit == "max" or int(limit) >= 1 << 60:
        return None
    return max(0, int(limit) - int(used) + _sizes(folder / "memory.stat").get(kept, 0))


def _left_of_limits() -> list[int]:
    """By ``ulimit -d`` and ``ulimit -v``."""
    try:
        import resource
    except ImportError:  # not on Windows
        return []
    found, taken = [], _sizes("/proc/self/status")
    for limit, name in ((resource.RLIMIT_DATA, "VmData:"), (resource.RLIMIT_AS, "VmSize:")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and name in taken:
            found.append(max(0, most - (taken[name] << 10)))
    return found


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
