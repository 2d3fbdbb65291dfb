"""The plain client: `python -m loadtest upload FILE...`, with a progress bar in bytes.

Files are read in pieces while they are sent, so that one larger than memory can be uploaded; the digest of what was
read is compared with the server's. What can be seen of all files beforehand is looked at before the first byte is sent:
two of one name, of which the store might keep the second only, names that are no text, and files whose size nobody
knows. Two names that differ in case only are two files to most stores, and one to some: that is said, and left to them.
"""

import os
import stat
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from loadtest import credentials
from loadtest.client import UploadClient, UploadError, name_of
from loadtest.hopeless import why_none_can
from loadtest.option_error import OptionError
from loadtest.wires import FRAMED, Target, parse_target, wire_of
from reports.signals import INTERRUPTED
from server.failure_codes import failure_of
from server.printing import in_words, one_line
from server.protocol import new_hasher

PIECE_BYTES = 1 << 20


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
    130 after Ctrl-C. 2 when nothing was sent: `host` is none, or one of the files in `identity` (keyed as
    `credentials.FIELDS`) or of `files` cannot be used."""
    try:
        target = parse_target(host)
        client = _client(target, identity)
        total_bytes = _check(files, target)
    except (OptionError, OSError) as error:
        print(f"Error: {one_line(in_words(error))}", file=sys.stderr)
        return 2
    sizes: list[int] = []  # of the files that are stored
    doubt = ""
    try:
        _send_all(client, files, total_bytes, sizes, close=close)
    except KeyboardInterrupt:
        print(f"Interrupted: {len(sizes)} of {len(files)} files stored at {host}", file=sys.stderr)
        return INTERRUPTED
    except UploadError as error:
        why = None if sizes else why_none_can({error.code: error.message}, target)
        problem = f"{files[len(sizes)]}: {why or f'{error.code}: {error.message}'} ({host})"
        doubt = ", and perhaps this one" if why is None and failure_of(error.code).stored != "no" else ""
    except OSError as error:
        problem = in_words(error)
    else:
        print(f"{len(files)} file{'s' * (len(files) != 1)}, {sum(sizes):,} bytes stored at {host}")
        return 0
    finally:
        client.close()
    if len(files) > 1:
        problem += f"; {len(sizes)} of {len(files)} files stored{doubt}"
    print(f"Error: {one_line(problem)}", file=sys.stderr)
    return 1


def _send_all(client: UploadClient, files: Sequence[Path], total_bytes: int, sizes: list[int], *, close: bool) -> None:
    """Upload the files in order, and note the size of each that is stored. UploadError at the first that was refused,
    OSError when one cannot be read."""
    with tqdm(total=total_bytes, unit="iB", unit_scale=True, unit_divisor=1024, disable=None) as bar:
        for path in files:
            bar.set_postfix_str(one_line(path.name))
            name = name_of(path)
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


def _check(files: Sequence[Path], target: Target) -> int:
    """How many bytes the files have in all. OptionError for one that cannot be named, and for two of which the store
    might keep the second only; OSError for one whose size is not known."""
    taken: dict[str, Path] = {}
    for path in files:
        name = name_of(path)
        name = name.rpartition("\\")[2] if target.scheme in FRAMED else name  # as a server takes it
        other = taken.setdefault(name, path)
        if other is not path:
            raise OptionError(f"{other} and {path} would both be stored as {name!r}: upload one, or rename it")
    total_bytes = sum(map(size_of, files))
    _tell_names_alike(taken)
    return total_bytes


def _tell_names_alike(names: Iterable[str]) -> None:
    """Two to most stores, which are right to keep both. Whether its own takes them for one, not even the server knows
    before it has them."""
    alike: dict[str, str] = {}
    for name in names:
        other = alike.setdefault(unicodedata.normalize("NFC", name.casefold()), name)
        if other != name:
            what = f"{other!r} and {name!r} are one file to a store that does not tell them apart, such as exFAT"
            print(f"Warning: {what}: it keeps the last", file=sys.stderr)


def _client(target: Target, identity: Mapping[str, str]) -> UploadClient:
    found = credentials.read(target, identity)
    return UploadClient(target, wire=wire_of(target, token=found.token), tls=found.tls)
