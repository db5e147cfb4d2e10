"""The two files of one checkpoint: written and synced, read and checked.

`state.bin` holds the bytes of all arrays, one behind the other. `manifest.json` says what they
are, with a CRC-32 of each, a few numbers and words about the run, and a CRC-32 of itself in its
first line. Checkpoints of version 1, a `state.npz` with a SHA-256, are still read.
"""

import contextlib
import hashlib
import json
import math
import os
import time
import zlib

import ml_dtypes
import numpy as np

VERSION = 2
_CHUNK_BYTES = 2**20  # summed and written while it is in the processor's cache


class Damaged(ValueError):
    """What is wrong with a checkpoint, and with which of its files."""


def write(folder, step, arrays, facts):
    """Write the two files of a checkpoint and sync them.

    Args:
        folder: an empty folder.
        step: updates of the weights so far.
        arrays: NumPy arrays of numbers by name.
        facts: what fits into JSON.

    Raises:
        OSError: if the disk does not take them.
        TypeError: for what cannot be stored without pickle.
    """
    with open(folder / "state.bin", "wb") as file:
        described = [
            [name, _readable(array.dtype), array.shape, _write_array(file, array)]
            for name, array in arrays.items()
        ]
        _sync_file(file)
    content = {"version": VERSION, "step": step, "saved": time.time(), "arrays": described}
    body = json.dumps({**content, "facts": facts})[1:]
    with open(folder / "manifest.json", "w") as file:
        file.write(f'{{"crc32": {zlib.crc32(body.encode())},\n{body}')
        _sync_file(file)
    sync_folder(folder)


def read_manifest(folder):
    """Return the manifest of a checkpoint, checked.

    Args:
        folder: the `pathlib.Path` of a checkpoint.

    Returns:
        A dict with at least "version", "step", "arrays" and "facts".

    Raises:
        Damaged: if there is none, or it is not as it was written.
    """
    with _blaming("manifest.json"):
        content = (folder / "manifest.json").read_bytes()
        manifest = json.loads(content)
        if "sha256" in manifest:
            manifest["version"] = 1
        elif manifest["crc32"] != zlib.crc32(content.partition(b"\n")[2]):
            raise ValueError("its checksum is another")
        missing = [key for key in ("version", "step", "arrays", "facts") if key not in manifest]
        if missing:
            raise ValueError(f"it has no {missing[0]!r}")
        if manifest["version"] not in (1, VERSION):
            raise ValueError(f"its version is {manifest['version']!r}, of another tfscale")
    return manifest


def read_arrays(folder, manifest):
    """Read and check the arrays of a checkpoint, one at a time.

    Args:
        folder: the `pathlib.Path` of a checkpoint.
        manifest: its manifest.

    Yields:
        Pairs of a name and a NumPy array.

    Raises:
        Damaged: as soon as something is not as it was written.
    """
    read = _read_npz if manifest["version"] == 1 else _read_bytes
    yield from read(folder, manifest)


def sync_folder(folder):
    """Make what was made or renamed in a folder last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_array(file, array):
    """Write the bytes of an array; return their checksum."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    checksum = 0
    for begin in range(0, len(content), _CHUNK_BYTES):
        chunk = content[begin : begin + _CHUNK_BYTES]
        checksum = zlib.crc32(chunk, checksum)
        file.write(chunk)
    return checksum


def _read_bytes(folder, manifest):
    with _blaming("state.bin"), open(folder / "state.bin", "rb") as file:
        arrays = [(n, _dtype(kind), shape, crc) for n, kind, shape, crc in manifest["arrays"]]
        expected = sum(kind.itemsize * math.prod(shape) for _, kind, shape, _ in arrays)
        found = os.fstat(file.fileno()).st_size
        if found != expected:
            raise ValueError(f"it has {found} bytes and not {expected}")
        for name, kind, shape, checksum in arrays:
            content = np.empty(kind.itemsize * math.prod(shape), np.uint8)
            file.readinto(content)
            if zlib.crc32(content) != checksum:
                raise ValueError(f"the checksum of {name} is another")
            yield name, content.view(kind).reshape(shape)


def _read_npz(folder, manifest):
    with _blaming("state.npz"), open(folder / "state.npz", "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest["sha256"]:
            raise ValueError("its checksum is another")
        file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            for i, (name, kind, shape) in enumerate(manifest["arrays"]):
                yield name, stored[f"a{i}"].view(_dtype(kind)).reshape(shape)


@contextlib.contextmanager
def _blaming(name):
    """Say of an error in reading which file it was in."""
    try:
        yield
    except OSError as error:
        raise Damaged(f"{name}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{name}: {error}") from None


def _sync_file(file):
    file.flush()
    os.fsync(file.fileno())


def _readable(dtype):
    """The name of a dtype, from which it can be made again."""
    _dtype(dtype.name)
    return dtype.name


def _dtype(name):
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
