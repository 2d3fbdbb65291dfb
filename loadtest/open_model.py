"""The open model inside one load process: uploads start when they are due, however long the earlier ones take.

A closed loop waits for replies, so a server that stalls also stalls its load, and hides it. Here arrivals come from a
schedule (`arrivals.py`); each is timed from the moment it was due. It is no Locust user: users loop, and one for each
arrival would cost more than the upload.

    alarm ─ due ─► dispatch ─► a free uploader of the pool ─► its next upload
                       └─ none free: a new one, up to `max_in_flight`; then the queue, or dropped and counted

Everything runs in gevent's hub: the dispatcher is a callback that switches to each uploader's greenlet directly, and
gets control back as soon as that waits for its socket. So an arrival starts within microseconds of the alarm, and the
hub's scheduling adds nothing to it.

The schedule is one for the whole run; of n load processes the k-th sends every n-th arrival, so together they send what
one would. What was never answered when the drain is over is recorded with its elapsed time, as a lower bound.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import gevent
import gevent.event
import greenlet

from loadtest import arrivals
from loadtest.client import Upload, UploadError
from loadtest.payloads import Payload
from loadtest.phases import PlannedPhase
from loadtest.telemetry import Arrival
from loadtest.uploader import RunningPhase, Uploader, row_of

if TYPE_CHECKING:
    from loadtest.load_process import LoadProcess

BURST = 64  # arrivals started at one wake; then sockets have their turn, since replies are waiting there

log = logging.getLogger("socketswarm")

_Job = tuple[RunningPhase, Payload, str, Arrival]


class _Lane:
    """One of the pool: an uploader and the greenlet it runs in, which waits for jobs between uploads."""

    def __init__(self, model: "OpenModel", uploader: Uploader) -> None:
        self._model = model
        self.uploader = uploader
        self.job: _Job | None = None
        self.greenlet = greenlet.greenlet(self._run, parent=gevent.get_hub())

    def start(self, job: _Job) -> None:
        """From the hub: upload until that has to wait, then come back."""
        self.job = job
        self.greenlet.switch()

    def end(self) -> None:
        """From the hub: cut off the upload under way, if there is one. It is recorded as unfinished."""
        if self.greenlet:
            self.greenlet.throw(gevent.GreenletExit)

    def _run(self) -> None:
        hub = gevent.get_hub()
        try:
            while True:
                while self.job is not None:
                    self.uploader.upload(*self.job)
                    self.job = self._model.next_job(self)
                hub.switch()
        except gevent.GreenletExit:
            pass
        except Exception:  # it would end the hub
            log.exception("an uploader failed for a reason nobody foresaw")
        finally:
            self.uploader.close()


class OpenModel:
    """One load process's share of a run's schedule: arrivals k, k + n, k + 2n… of each phase."""

    def __init__(self, load: "LoadProcess", start_ns: int, k: int, n: int) -> None:
        """The plan starts at `start_ns` of our monotonic clock."""
        self._load = load
        self._max_in_flight = max(1, -(-load.options.max_in_flight // n))
        self._queues = load.options.at_cap == "queue"
        self._due = self._arrivals(load.options.plan, start_ns, k, n)
        self._next = next(self._due, None)
        self._end_ns: int | None = None  # what is due later is not ours any more
        self._idle: list[_Lane] = []
        self._lanes: list[_Lane] = []
        self._waiting: deque[_Job] = deque()
        self.finished = gevent.event.Event()
        """Set when all that was due has ended."""
        self._arm()

    @property
    def queued(self) -> int:
        return len(self._waiting)

    def drain(self, timeout_s: float) -> None:
        """No arrival that is due later than now. Wait until the others have ended; record the rest as unfinished."""
        self._end_ns = time.monotonic_ns()
        self._look_whether_finished()
        self.finished.wait(timeout_s)
        ended = gevent.event.Event()
        gevent.get_hub().loop.run_callback(self._give_up, ended)
        ended.wait()

    # ── in the hub ──

    def _arm(self) -> None:
        following = self._following()
        if following is not None:
            self._load.alarm.at(following[3].intended_ns, self._dispatch)
        else:
            self._look_whether_finished()

    def _following(self) -> _Job | None:
        """The next arrival, due or not; None when there will be none."""
        if self._next is not None and self._end_ns is not None and self._next[3].intended_ns > self._end_ns:
            self._next = None
        return self._next

    def _dispatch(self) -> None:
        for _ in range(BURST):
            now_ns = time.monotonic_ns()
            following = self._following()
            if following is None or following[3].intended_ns > now_ns:
                break
            phase, payload, name, arrival = following
            self._next = next(self._due, None)
            self._start((phase, payload, name, Arrival(arrival.intended_ns, now_ns)))
        self._arm()

    def _start(self, job: _Job) -> None:
        if self._idle:
            self._idle.pop().start(job)  # the one that was used last: its connection is the warmest
        elif len(self._lanes) < self._max_in_flight:
            lane = _Lane(self, Uploader(self._load))
            self._lanes.append(lane)
            lane.start(job)
        elif self._queues:
            self._waiting.append(job)
        else:
            phase, payload, _, _ = job
            self._load.drop(phase, row_of(phase.uploads_per_connection, payload.size_bytes))

    def next_job(self, lane: _Lane) -> _Job | None:
        """What a lane that has just ended an upload does next; None: it is free."""
        if self._waiting:
            return self._waiting.popleft()
        self._idle.append(lane)
        self._look_whether_finished()
        return None

    def _look_whether_finished(self) -> None:
        if self._following() is None and not self._waiting and len(self._idle) == len(self._lanes):
            self.finished.set()

    def _give_up(self, ended: gevent.event.Event) -> None:
        for phase, payload, _, arrival in self._never_started():
            now_ns = time.monotonic_ns()
            never = Upload(error=UploadError("unfinished"), start_ns=now_ns, end_ns=now_ns, connected=False)
            self._load.record(phase, row_of(phase.uploads_per_connection, payload.size_bytes), payload, never, arrival)
        for lane in self._lanes:
            lane.end()
        self.finished.set()
        ended.set()

    def _never_started(self) -> Iterator[_Job]:
        """What waits for an uploader, and what is due and was not come to."""
        while self._waiting:
            yield self._waiting.popleft()
        while (following := self._following()) is not None:
            self._next = next(self._due, None)
            yield following

    # ── the schedule ──

    def _arrivals(self, plan: tuple[PlannedPhase, ...], start_ns: int, k: int, n: int) -> Iterator[_Job]:
        """Ours, in order. Not made before they are due: a schedule may be hours long."""
        options, pick = self._load.options, self._load.payloads.pick_arrival
        for planned in plan:
            end_ns = start_ns + round(planned.duration_s * 1e9)
            phase = RunningPhase(planned.name, planned.uploads_per_connection, end_ns)
            profile = options.profile_of(planned)
            cells = arrivals.cells(profile, planned.duration_s, options.seed) if profile is not None else ()
            for first, offsets in cells:
                indices, ours = arrivals.stripe(first, offsets, k, n)
                for index, offset_ns in zip(indices.tolist(), ours.tolist(), strict=True):
                    due_ns = start_ns + offset_ns
                    yield (phase, *pick(index), Arrival(due_ns, due_ns))
            start_ns = end_ns
