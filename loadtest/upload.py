"""The plain client: `python -m loadtest upload FILE...`, with a progress bar in bytes.

Files are read in pieces while they are sent, so that one larger than memory can be uploaded; the digest of what was
read is compared with the server's.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from loadtest import credentials
from loadtest.client import UploadClient
from loadtest.credentials import CredentialsError
from loadtest.wires import HostError, parse_target, wire_of
from server.printing import one_line
from server.protocol import new_hasher

PIECE_BYTES = 1 << 20


class FileBody:
    """A file as a client `Body`. Its size is taken here; one that has none, or shrinks meanwhile, is an OSError."""

    def __init__(self, path: Path, progress: Callable[[int], object]) -> None:
        self._path = path
        self._progress = progress
        self._hasher = new_hasher("xxh3_128")
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise OSError(f"{path} is not a regular file: how much a pipe or device holds is not known beforehand")
        self.size_bytes = info.st_size

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

    def digest(self) -> str:
        return f"xxh3_128:{self._hasher.hexdigest()}"


def upload(files: Sequence[Path], host: str, identity: Mapping[str, str], *, close: bool) -> int:
    """Upload the files in order and return the exit code: 0, or 1 at the first that was refused or could not be read,
    2 when `host` is none, or one of the files in `identity` (keyed as `credentials.FIELDS`) cannot be used, 130 after
    Ctrl-C."""
    try:
        client = _client(host, identity)
    except (CredentialsError, HostError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    stored = 0
    try:
        total = sum(path.stat().st_size for path in files)
        with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
            for path in files:
                bar.set_postfix_str(one_line(path.name))
                name = os.fsencode(path.name).decode(errors="surrogateescape")  # UTF-8, whatever the locale's encoding
                done = client.upload(name, FileBody(path, bar.update), last=close)
                if done.error is not None:
                    bar.close()
                    print(
                        f"Error: {one_line(str(path))}: {done.error.code}: {done.error.message} ({host})",
                        file=sys.stderr,
                    )
                    return 1
                stored += 1
    except KeyboardInterrupt:
        print(f"Interrupted: {stored} of {len(files)} files stored at {host}", file=sys.stderr)
        return 130
    except UnicodeEncodeError as error:
        print(f"Error: {error.object!r} cannot be uploaded: its name is not UTF-8", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    finally:
        client.close()
    print(f"{len(files)} file{'s' * (len(files) != 1)}, {total:,} bytes stored at {host}")
    return 0


def _client(host: str, identity: Mapping[str, str]) -> UploadClient:
    target = parse_target(host)
    found = credentials.read(target, identity)
    return UploadClient(target, wire=wire_of(target, token=found.token), tls=found.tls)
