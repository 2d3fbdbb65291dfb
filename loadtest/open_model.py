"""The open model inside one load process: uploads start when they are due, however long the earlier ones take.

A closed loop waits for replies, so a server that stalls also stalls its load, and hides it. Here arrivals come from a
schedule (`schedule.py`); each is timed from the moment it was due. It is no Locust user: users loop, and one for each
arrival would cost more than the upload.

    alarm ─ due ─► dispatch ─► a free uploader of the pool ─► its next upload
                       └─ none free: a new one, up to `max_in_flight`; then it waits, or is dropped and counted

Everything runs in gevent's hub: the dispatcher is a callback that switches to each uploader's greenlet directly, and
gets control back as soon as that waits for its socket. So an arrival starts within microseconds of the alarm, and the
hub's scheduling adds nothing to it.

What waits stays in the schedule. There is no alarm then: who ends an upload takes the next arrival that is due.

What was never answered when the drain is over is recorded with its elapsed time, as a lower bound.
"""

import logging
import time

import gevent
import gevent.event
import greenlet

from loadtest.client import Upload, UploadError
from loadtest.load import Load
from loadtest.schedule import Job, Schedule
from loadtest.uploader import Uploader

BURST = 64  # arrivals started, or given up, at one wake; then sockets have their turn, since replies are waiting there

log = logging.getLogger("socketswarm")


class _Lane:
    """One of the pool: an uploader and the greenlet it runs in, which waits for jobs between uploads."""

    def __init__(self, model: "OpenModel", uploader: Uploader) -> None:
        self._model = model
        self.uploader = uploader
        self.job: Job | None = None
        self.greenlet = greenlet.greenlet(self._run, parent=gevent.get_hub())

    def start(self, job: Job) -> None:
        """Upload until that has to wait, then come back. Called in the hub."""
        self.job = job
        self.greenlet.switch()

    def end(self) -> None:
        """Cut off the upload under way, if there is one: it is recorded as unfinished. Called in the hub."""
        if self.greenlet:
            self.greenlet.throw(gevent.GreenletExit)

    def _run(self) -> None:
        hub = gevent.get_hub()
        try:
            while True:
                while self.job is not None:
                    done = self.uploader.upload(*self.job)
                    if done.error is not None:  # perhaps at once, as all that are due would: others have a turn first
                        gevent.sleep(0)
                    self.job = self._model.next_job(self)
                hub.switch()
        except gevent.GreenletExit:
            pass
        except Exception:  # it would end the hub
            log.exception("an uploader failed for a reason nobody foresaw")
        finally:
            self.uploader.close()


class OpenModel:
    """One load process's share of a run's schedule: the k-th of n."""

    def __init__(self, load: Load, start_ns: int, k: int, n: int) -> None:
        """The plan starts at `start_ns` of our monotonic clock. `max_in_flight` is dealt out to the load processes; it
        must be at least as many, since one that may not upload could not send its share."""
        self._load = load
        most, left_over = divmod(load.options.max_in_flight, n)
        self._max_in_flight = max(1, most + (k < left_over))
        self._queues = load.options.at_cap == "queue"
        self._schedule = Schedule(load.options, load.payloads, start_ns, k, n)
        self._idle: list[_Lane] = []
        self._lanes: list[_Lane] = []
        self._full_ns: int | None = None
        """Since when all uploaders are busy while arrivals wait for them."""
        self.finished = gevent.event.Event()
        """Set when all that was due has ended or is given up. Nothing is started any more."""
        self._arm()

    @property
    def queued(self) -> int:
        """Arrivals that are due and wait for an uploader."""
        waiting = self._schedule.waiting(time.monotonic_ns())  # in any case: it counts on from the last time
        return waiting if self._full_ns is not None else 0

    def drain(self, timeout_s: float) -> None:
        """No arrival that is due later than now. Wait until the others have ended; record the rest as unfinished."""
        self._schedule.end(time.monotonic_ns())
        self._look_whether_finished()
        self.finished.wait(timeout_s)
        self.finished.set()
        self._end_lanes()
        self._give_up()

    def _end_lanes(self) -> None:
        """One callback each: every 5 ms the hub leaves the rest for later and looks after its sockets."""
        ended = gevent.event.Event()
        loop = gevent.get_hub().loop
        for lane in self._lanes:
            loop.run_callback(lane.end)
        loop.run_callback(ended.set)
        ended.wait()

    def _give_up(self) -> None:
        """What is due and was not come to. It may be a great deal, and heartbeats must go out meanwhile."""
        given_up = 0
        while (due_ns := self._schedule.due_ns) is not None:
            phase, payload, name, arrival = self._schedule.take(due_ns)
            now_ns = time.monotonic_ns()
            never = Upload(error=UploadError("unfinished"), start_ns=now_ns, end_ns=now_ns, connected=False)
            self._load.record(phase, payload, name, never, arrival)
            given_up += 1
            if given_up % BURST == 0:
                gevent.sleep(0)

    # ── in the hub ──

    def _arm(self) -> None:
        due_ns = self._schedule.due_ns
        if due_ns is not None:
            self._load.alarm.at(due_ns, self._dispatch)
        else:
            self._look_whether_finished()

    def _dispatch(self) -> None:
        if self.finished.is_set():
            return
        for _ in range(BURST):
            now_ns = time.monotonic_ns()
            due_ns = self._schedule.due_ns
            if due_ns is None or due_ns > now_ns:
                break
            lane = self._free_lane()
            if lane is not None:
                lane.start(self._schedule.take(now_ns))
            elif self._queues:
                self._full_ns = now_ns
                return
            else:
                phase, payload, _, _ = self._schedule.take(now_ns)
                self._load.drop(phase, payload)
        self._arm()

    def _free_lane(self) -> _Lane | None:
        """The one that was used last, whose connection is the warmest, or a new one."""
        if self._idle:
            return self._idle.pop()
        if len(self._lanes) == self._max_in_flight:
            return None
        lane = _Lane(self, Uploader(self._load))
        self._lanes.append(lane)
        return lane

    def next_job(self, lane: _Lane) -> Job | None:
        """What a lane that has just ended an upload does next; None: it is free."""
        if self._full_ns is not None:
            due_ns = self._schedule.due_ns
            if due_ns is not None and due_ns <= time.monotonic_ns():
                # What was due before all became busy was late by our own fault until then; since, it waits for one.
                return self._schedule.take(max(due_ns, self._full_ns))
            self._full_ns = None
            self._arm()
        self._idle.append(lane)
        self._look_whether_finished()
        return None

    def _look_whether_finished(self) -> None:
        if self._schedule.due_ns is None and len(self._idle) == len(self._lanes):
            self.finished.set()
