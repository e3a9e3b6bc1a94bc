"""Changes of files that keep their outer form, so that the fuzzer reaches what is inside.

Each has the signature of an atheris mutator: it takes a file, the largest size of the result and a seed. Half of the
time, and for files without the expected form, the changes are libFuzzer's own.
"""

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import atheris

HOSTILE = (
    None, -1, 0, 1, 2, 3, 255, 1e308, -1e308, 1e-320, float("nan"), float("inf"), "x", "", "nan", "1", [], [1], [[]],
    {}, {"kind": "MADE"}, True, False, 10**12, 2**63, 10**400, 0.5, "\x00", "\ud800", [10**9, 10**9], [1, 2, 2],
    ["a", "a"],
)  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"

Mutator = Callable[[bytes, int, int], bytes]


def within_form(mutate: Callable[[bytes, int, random.Random], bytes]) -> Mutator:
    """Return a mutator that calls another half of the time, and else libFuzzer's own."""

    def mutator(content: bytes, max_size: int, seed: int) -> bytes:
        source = random.Random(seed)
        if source.random() < 0.5:
            try:
                changed = mutate(content, max_size, source)
            except Exception:  # not of this form, after earlier changes
                changed = b""
            if 0 < len(changed) <= max_size:
                return changed
        return bytes(atheris.Mutate(content, min(len(content) + 64, max_size)))

    return mutator


def _changed(content: bytes, source: random.Random) -> bytes:
    """Change bytes as libFuzzer does, or one number in them."""
    if source.random() < 0.5 or not content:
        return bytes(atheris.Mutate(content, len(content) + 16))
    at, size = source.randrange(len(content)), source.choice((1, 2, 4, 8))
    number = source.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), source.getrandbits(8 * size)))
    return content[:at] + number.to_bytes(size, source.choice(("little", "big"))) + content[at + size :]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the containers in a tree with each of their keys."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def _change_tree(tree: Any, source: random.Random) -> None:
    """Replace, remove or add one entry of a tree."""
    container, key = source.choice(list(_places(tree)))
    action = source.random()
    if action < 0.1:
        del container[key]
    elif action < 0.2 and isinstance(container, dict):
        container[source.choice(("x", "kind", "metadata", "order", "condition_net"))] = source.choice(HOSTILE)
    else:
        container[key] = source.choice(HOSTILE)


@within_form
def model(content: bytes, _: int, source: random.Random) -> bytes:
    """Change the configuration, the table of tensors or the values of a model."""
    size = int.from_bytes(content[:8], "little")
    header, values = json.loads(content[8 : 8 + size]), content[8 + size :]
    action = source.random()
    if action < 0.7:
        config = json.loads(header["__metadata__"]["arcsm"])
        for _ in range(source.choice((1, 1, 2))):
            _change_tree(config, source)
        header["__metadata__"]["arcsm"] = json.dumps(config)
    elif action < 0.85:
        _change_tree(header, source)
    else:
        values = _changed(values, source)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a ZIP archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


@within_form
def archive(content: bytes, _: int, source: random.Random) -> bytes:
    """Change a member of a ZIP archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = source.choice(list(members))
    if source.random() < 0.1:
        members[source.choice(("X.npy", "y.npy", "a/../X.npy", ".npy"))] = members.pop(name)
    else:
        members[name] = _changed(members[name], source)
    return zipped(members, source.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


@within_form
def gzipped(content: bytes, _: int, source: random.Random) -> bytes:
    """Change what a gzipped file unpacks to."""
    return gzip.compress(_changed(gzip.decompress(content), source), 1)


@within_form
def image(content: bytes, _: int, source: random.Random) -> bytes:
    """Change a chunk of a PNG file with the right checksum, or a number near the beginning of another image."""
    if content[:8] != _PNG:
        start = _changed(content[:64], source)
        return start + content[64:]
    chunks, at = [], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + size]])
        at += 12 + size
    chunk = source.choice(chunks)
    if chunk[0] == b"IDAT" and source.random() < 0.5:
        chunk[1] = zlib.compress(_changed(zlib.decompress(chunk[1]), source), 1)
    else:
        chunk[1] = _changed(chunk[1], source)
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return _PNG + b"".join(parts)


@within_form
def parquet(content: bytes, _: int, source: random.Random) -> bytes:
    """Change the footer of a Parquet file, with its right length, or a page."""
    size = int.from_bytes(content[-8:-4], "little")
    pages, footer = content[4 : -8 - size], content[-8 - size : -8]
    if source.random() < 0.7:
        footer = _changed(footer, source)
    else:
        pages = _changed(pages, source)
    return b"PAR1" + pages + footer + len(footer).to_bytes(4, "little") + b"PAR1"
