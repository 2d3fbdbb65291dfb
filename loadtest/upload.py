"""The plain client: `python -m loadtest upload FILE...`, with a progress bar in bytes.

Files are read in pieces while they are sent, so that one larger than memory can be uploaded; the digest of what was
read is compared with the server's. What can be seen of all files beforehand is looked at before the first byte is sent:
two of one name, of which the store might keep the second only, and files whose size nobody knows.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from loadtest import credentials
from loadtest.client import UploadClient, UploadError
from loadtest.option_error import OptionError
from loadtest.wires import FRAMED, Target, parse_target, wire_of
from server.failure_codes import failure_of
from server.printing import one_line
from server.protocol import new_hasher

PIECE_BYTES = 1 << 20


class SameNameError(ValueError):
    """Two files would have one name in the store; the text says which."""


class FileBody:
    """A file as a client `Body`. Its size is taken here; one that has none, or shrinks meanwhile, is an OSError. Of one
    that grows the first `size_bytes` are taken."""

    def __init__(self, path: Path, progress: Callable[[int], object]) -> None:
        self._path = path
        self._progress = progress
        self._hasher = new_hasher("xxh3_128")
        self.size_bytes = size_of(path)
        self.grew = False

    def pieces(self) -> Iterator[memoryview]:
        remaining = self.size_bytes
        buffer = memoryview(bytearray(min(PIECE_BYTES, remaining)))
        with self._path.open("rb", buffering=0) as file:
            while remaining:
                count = file.readinto(buffer[:remaining])
                if not count:
                    raise OSError(f"{self._path} became shorter while it was read")
                piece = buffer[:count]
                self._hasher.update(piece)
                yield piece
                remaining -= count
                self._progress(count)
            self.grew = os.fstat(file.fileno()).st_size > self.size_bytes

    def digest(self) -> str:
        return f"xxh3_128:{self._hasher.hexdigest()}"


def size_of(path: Path) -> int:
    """How many bytes a file has. OSError where that is not known beforehand: of a pipe, a device, and what has a size
    of 0 and can be read nevertheless, as most files of /proc."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise OSError(f"{path} is not a regular file: how much a pipe or device holds is not known beforehand")
    if not info.st_size:
        with path.open("rb", buffering=0) as file:
            if file.read(1) and not os.fstat(file.fileno()).st_size:
                raise OSError(f"{path} has a size of 0, but can be read: upload a copy of it")
    return info.st_size


def upload(files: Sequence[Path], host: str, identity: Mapping[str, str], *, close: bool) -> int:
    """Upload the files in order and return the exit code: 0, or 1 at the first that was refused or could not be read,
    2 when `host` is none, one of the files in `identity` (keyed as `credentials.FIELDS`) cannot be used, or two of
    `files` would have one name, 130 after Ctrl-C."""
    try:
        target = parse_target(host)
        client = _client(target, identity)
        _check_names(files, target)
    except (OptionError, SameNameError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    sizes: list[int] = []  # of the files that are stored
    doubt = ""
    try:
        _send_all(client, files, sizes, close=close)
    except KeyboardInterrupt:
        print(f"Interrupted: {len(sizes)} of {len(files)} files stored at {host}", file=sys.stderr)
        return 130
    except UploadError as error:
        problem = f"{one_line(str(files[len(sizes)]))}: {error.code}: {error.message} ({host})"
        doubt = ", and perhaps this one" if failure_of(error.code).stored != "no" else ""
    except UnicodeEncodeError as error:
        problem = f"{error.object!r} cannot be uploaded: its name is not UTF-8"
    except OSError as error:
        problem = str(error)
    else:
        print(f"{len(files)} file{'s' * (len(files) != 1)}, {sum(sizes):,} bytes stored at {host}")
        return 0
    finally:
        client.close()
    if len(files) > 1:
        problem += f"; {len(sizes)} of {len(files)} files stored{doubt}"
    print(f"Error: {problem}", file=sys.stderr)
    return 1


def _send_all(client: UploadClient, files: Sequence[Path], sizes: list[int], *, close: bool) -> None:
    """Upload the files in order, and note the size of each that is stored. UploadError at the first that was refused,
    OSError or UnicodeEncodeError when one cannot be read or named."""
    total = sum(map(size_of, files))
    with tqdm(total=total, unit="iB", unit_scale=True, unit_divisor=1024, disable=None) as bar:
        for path in files:
            bar.set_postfix_str(one_line(path.name))
            name = os.fsencode(path.name).decode(errors="surrogateescape")  # UTF-8, whatever the locale's encoding
            body = FileBody(path, bar.update)
            done = client.upload(name, body, last=close)
            if done.error is not None:
                raise done.error
            sizes.append(body.size_bytes)
            if done.file_name not in (None, name):
                tqdm.write(f"{one_line(str(path))} is stored as {done.file_name!r}")
            if body.grew:
                what = f"{one_line(str(path))} grew while it was read: its first {body.size_bytes:,} bytes are stored"
                tqdm.write(f"Warning: {what}", file=sys.stderr)


def _check_names(files: Sequence[Path], target: Target) -> None:
    """SameNameError for two files of which the store might keep the second only."""
    taken: dict[str, Path] = {}
    for path in files:
        name = path.name.rpartition("\\")[2] if target.scheme in FRAMED else path.name  # as a server takes it
        other = taken.setdefault(name, path)
        if other is not path:
            raise SameNameError(f"{other} and {path} would both be stored as {name!r}: upload one, or rename it")


def _client(target: Target, identity: Mapping[str, str]) -> UploadClient:
    found = credentials.read(target, identity)
    return UploadClient(target, wire=wire_of(target, token=found.token), tls=found.tls)
