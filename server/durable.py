"""Uploads that survive the loss of power: stored in groups, on a thread of their own.

An upload is durable when its bytes and its folder's entry were fsynced, and the disk takes its time for that. One after
the other, uploads would each pay for it, and the event loop would stand still meanwhile. So they gather: while one
group is at the disk the next one forms, and whoever comes to an idle disk goes at once. `FileStore.put_all_durably`
takes a group, in one thread, so that groups are stored and answered in the order they formed; more threads were no
faster. Only what is durable is counted and answered.

Small uploads are copied out of the arena and written by that thread too: creating a file waits for the journal while
this is being written out, and the loop must not. An upload in pieces has been written when it comes here.

A client that is served here waits: the connection is not read while its uploads are at the disk. That keeps its replies
in order, and what one connection can make us hold at one read.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from server.batch import AT_ONCE, Batch, InPieces, Item, Results, Sender, whole_digest
from server.options import Durability
from server.storage.store import FileStore, IncomingFile
from server.worker_context import WorkerContext

GATHERED_BYTES = 64 << 20
"""The most that is held in memory for a disk that is too slow: over it the loop waits, as it does in write()."""


class _Written(NamedTuple):
    file: IncomingFile
    digest: str | None


_Group = list[Item["bytes | _Written"]]


class DurableBatch(Batch):
    """A batch whose uploads are answered when they are durable. All but `_put_group` happens on the event loop."""

    def __init__(self, worker: WorkerContext, store: FileStore) -> None:
        super().__init__(worker)
        self._files = store
        self._disk = ThreadPoolExecutor(1, "disk")
        self._gathered: _Group = []
        self._held_bytes = 0  # of small uploads, gathered or at the disk
        self._at_disk: tuple[_Group, Future[Results]] | None = None

    def flush(self) -> None:
        """Let all that wait gather for the disk."""
        items, self._items = self._items, []
        self._used = 0
        for sender, upload, body, header_ns, last_byte_ns in items:
            self._gathered.append((sender, upload, bytes(body), header_ns, last_byte_ns))
            self._held_bytes += len(body)
            sender.wait()
        self._start()
        while self._held_bytes > GATHERED_BYTES:
            self._wait_for_disk()

    def complete(self, sender: Sender, upload: InPieces) -> None:
        assert isinstance(upload.incoming, IncomingFile)
        written = _Written(upload.incoming, upload.digest())
        self._gathered.append((sender, upload.started, written, upload.header_ns, time.monotonic_ns()))
        sender.wait()
        self._start()

    def close(self) -> None:
        self.flush()
        while self._at_disk is not None:
            self._wait_for_disk()
        self._disk.shutdown()

    def _start(self) -> None:
        if self._at_disk is not None or not self._gathered:
            return
        group, self._gathered = self._gathered[:AT_ONCE], self._gathered[AT_ONCE:]
        future = self._disk.submit(self._put_group, group)
        self._at_disk = group, future
        future.add_done_callback(lambda _: self._worker.loop.call_soon_threadsafe(self._finish))

    def _put_group(self, group: _Group) -> Results:
        """On the disk's thread."""
        try:
            digests = [
                content.digest if isinstance(content, _Written) else whole_digest(upload, content)
                for _, upload, content, _, _ in group
            ]
            return digests, self._files.put_all_durably(
                [
                    content.file if isinstance(content, _Written) else (upload.file_name, content)
                    for _, upload, content, _, _ in group
                ]
            )
        except Exception:
            for _, _, content, _, _ in group:
                if isinstance(content, _Written):
                    content.file.abort()
            return self._nobody_foresaw(len(group))

    def _finish(self) -> None:
        """Answer the group that has come back, while the next is at the disk."""
        if self._at_disk is None or not self._at_disk[1].done():
            return  # it was answered by `_wait_for_disk` already
        (group, future), self._at_disk = self._at_disk, None
        self._held_bytes -= sum(len(item[2]) for item in group if isinstance(item[2], bytes))
        self._start()
        self._answer(group, future.result())

    def _wait_for_disk(self) -> None:
        assert self._at_disk is not None
        wait([self._at_disk[1]])
        self._finish()


def make_batch(worker: WorkerContext, durability: Durability) -> Batch:
    """The worker's batch; nothing is durable of what is discarded."""
    if durability == "power" and isinstance(worker.store, FileStore):
        return DurableBatch(worker, worker.store)
    return Batch(worker)
