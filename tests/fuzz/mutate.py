"""Damage to files: of their bytes, of the JSON in them, and of lengths in headers. Every mutant follows from its seed.

A mutator of our own, and not Hypothesis: what is wanted is ten thousand damaged copies of real files at the price of
their reading, without a data base of examples or shrinking, and again by number when one of them ends the process.
"""

from __future__ import annotations

import copy
import json
import struct
from typing import Any

import numpy as np

__all__ = ["mutant"]

_HUGE = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x" * 5000, "\ud800", "../../x", [], {}, [[]], {"a": {}}, [1, 2, 3], "1e999", 10**9, 4096),
)
_FORBIDDEN = (b"cos\nsystem\n(S'exit 3'\ntR.", b"\x80\x02cbuiltins\neval\nX\x06\x00\x00\x00exit()\x85R.")


def mutant(content: bytes, seed: int) -> bytes:
    """Return a damaged copy.

    Args:
        content: the whole file.
        seed: decides the damage.
    """
    random = np.random.default_rng(seed)
    choices = [_flip, _cut, _splice, _overwrite, _number, _pickle]
    choices += [_json] * 6 if content[:1] in b"{[" else []
    choices += [_header] * 6 if _header_length(content) else []
    choices += [_text] * 6 if content[:1] not in b"{[" and content.isascii() else []
    for _ in range(random.integers(1, 4)):
        content = choices[random.integers(len(choices))](content, random)
    return content


def _place(content: bytes, random: np.random.Generator) -> int:
    """Draw a place; headers, which are small, as often as all the rest."""
    if random.random() < 0.5:
        return int(random.integers(min(len(content), 256) + 1))
    return int(random.integers(len(content) + 1))


def _flip(content: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(random.integers(1, 9)):
        if (place := _place(content, random)) < len(changed):
            changed[place] ^= 1 << random.integers(8)
    return bytes(changed)


def _cut(content: bytes, random: np.random.Generator) -> bytes:
    place = _place(content, random)
    return content[:place] if random.random() < 0.7 else content[place:]


def _splice(content: bytes, random: np.random.Generator) -> bytes:
    begin, end = sorted(_place(content, random) for _ in range(2))
    piece, to = content[begin:end][:100_000], _place(content, random)
    return content[:to] + piece + content[to + (0 if random.random() < 0.5 else len(piece)) :]


def _overwrite(content: bytes, random: np.random.Generator) -> bytes:
    place, length = _place(content, random), int(random.integers(1, 33))
    return content[:place] + random.bytes(length) + content[place + length :]


def _number(content: bytes, random: np.random.Generator) -> bytes:
    value, size = _HUGE[random.integers(len(_HUGE))], int(random.choice([1, 2, 4, 8]))
    order = "big" if random.random() < 0.5 else "little"
    packed = (value % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
    place = _place(content, random)
    return content[:place] + packed + content[place + size :]


def _pickle(content: bytes, random: np.random.Generator) -> bytes:
    found = _FORBIDDEN[random.integers(len(_FORBIDDEN))]
    place = 0 if random.random() < 0.3 else _place(content, random)
    return content[:place] + found + content[place + len(found) :]


def _text(content: bytes, random: np.random.Generator) -> bytes:
    words = content.split(b",")
    values = [b"nan", b"inf", b"1e999", b"", b'"', b"\0", b"9" * 5000, b"\xff", b"\r", b"[" * 20_000]
    words[random.integers(len(words))] = values[random.integers(len(values))]
    return b",".join(words)


def _header_length(content: bytes) -> int:
    """Return the length of a safetensors file's header; 0 for other files."""
    length = struct.unpack("<Q", content[:8])[0] if len(content) > 9 else 0
    return int(length) if content[8:9] == b"{" and length < len(content) else 0


def _header(content: bytes, random: np.random.Generator) -> bytes:
    length = _header_length(content)
    if not length:
        return content
    header = _json(content[8 : 8 + length], random)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _json(content: bytes, random: np.random.Generator) -> bytes:
    if random.random() < 0.1:
        deep = int(random.choice([500, 5000, 100_000]))
        return b"[" * deep + content + b"]" * deep
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return content
    for _ in range(random.integers(1, 3)):
        _change(tree, random)
    changed = json.dumps(tree)
    if random.random() < 0.1 and changed.startswith("{"):  # the same key twice
        changed = changed[:-1] + ", " + changed[1:]
    return changed.encode()


def _change(tree: Any, random: np.random.Generator) -> None:
    """Change one value, at any depth, also of JSON in a text."""
    while isinstance(tree, (dict, list)) and tree:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        # descriptions and settings are few among many tensors
        special = [key for key in keys if key in ("__metadata__", "config", "settings", "sr_models.description")]
        key = special[0] if special and random.random() < 0.5 else keys[random.integers(len(keys))]
        value = tree[key]
        if isinstance(value, str) and value[:1] == "{":
            tree[key] = _json(value.encode(), random).decode()
            return
        if isinstance(value, (dict, list)) and value and random.random() < 0.9:
            tree = value
            continue
        if random.random() < 0.15:
            del tree[key]
        else:
            tree[key] = copy.deepcopy(_VALUES[random.integers(len(_VALUES))])  # else the next change would change it
        return
