"""Which workers there are, which there should be, and the next step from the one to the other.

Nothing here acts or waits. The supervisor writes down what it sees, a birth, a death, a wish, asks for the next step,
takes it, and asks again until the answer is to wait. A step follows from the state alone, not from the way there: so a
death in the midst of a reload, or a wish that comes while another is being granted, is no case of its own.

    reload      slot by slot a successor is forked beside the worker; when it is ready, the worker retires. It is over
                when none that retired accepts any more
    one more    the new slot gets no connection before its worker is ready: if that cannot start, none is lost
    one less    new connections are steered away from the last slot, those being made arrive, and its worker retires

The number of slots changes by one at a time, at the end: the kernel numbers their sockets.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from server import scoreboard
from server.options import ServerConfig

LONG_LIFE_S = 5.0  # who lived this long died of an accident; a shorter life counts towards the back-off
MAX_BACKOFF_S = 10.0
HANDSHAKE_S = 1.0  # that a connection being made may take before its listening socket goes
LOOK_AGAIN_S = 0.01


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A worker as its supervisor knows it. Times are monotonic."""

    slot: int
    seat: int
    record: memoryview
    """Its words of the scoreboard."""
    config: ServerConfig
    """It was born with, and has until its end."""
    born_s: float
    pid: int = 0
    is_ready: bool = False
    drains_until_s: float = math.inf
    killed_because: str | None = None
    """Why it was told to end in a way that looks like a death."""
    is_killed: bool = False

    @property
    def place(self) -> str:
        """The name of its folder for temporary files: two workers of one slot must not meet."""
        return str(self.slot) if self.seat == 0 else f"{self.slot}.{self.seat}"

    @property
    def may_accept(self) -> bool:
        """Whether it still has its listening socket: it says that it drains when it has closed that."""
        return self.record[scoreboard.STATE] in (scoreboard.STARTING, scoreboard.READY)

    def find_reason_to_kill(self, now_s: float, hang_timeout_s: float, trusted_from_s: float) -> str | None:
        """Its event loop writes down when it turns. That it did not before `trusted_from_s` proves nothing."""
        silent_s = now_s - max(self.born_s, self.record[scoreboard.HEARTBEAT_NS] / 1e9, trusted_from_s)
        if silent_s > hang_timeout_s:
            return f"it hung: its loop has not turned for {silent_s:.0f} s"
        return "it did not end within the drain timeout" if now_s >= self.drains_until_s else None


@dataclass(slots=True, eq=False)
class Slot:
    number: int
    worker: WorkerProcess | None = None
    successor: WorkerProcess | None = None
    """Who takes over in a reload, until it is ready."""
    retiring: list[WorkerProcess] = field(default_factory=list)
    due_s: float = 0.0
    """When it gets a worker, if it has none."""
    quick_deaths: int = 0
    replaces: int = 0
    """The pid of a worker that died."""

    @property
    def living(self) -> list[WorkerProcess]:
        return [one for one in (self.worker, self.successor, *self.retiring) if one is not None]

    @property
    def is_ready(self) -> bool:
        return self.worker is not None and self.worker.is_ready

    @property
    def is_starting(self) -> bool:
        return self.worker is not None and not self.worker.is_ready

    @property
    def is_deaf(self) -> bool:
        """Whether those that retire have closed their listening sockets."""
        return not any(worker.may_accept for worker in self.retiring)

    def free_seat(self) -> int | None:
        taken = {one.seat for one in self.living}
        return next((seat for seat in range(scoreboard.SEATS) if seat not in taken), None)

    def succeed(self) -> WorkerProcess | None:
        """The successor takes over. Returns who retires for it."""
        old, self.worker, self.successor = self.worker, self.successor, None
        if old is not None:
            self.retiring.append(old)
        return old

    def retire(self) -> list[WorkerProcess]:
        """Nobody serves here any more. Returns who did, or was about to."""
        retired = [one for one in (self.worker, self.successor) if one is not None]
        self.retiring += retired
        self.worker = self.successor = None
        return retired

    def died(self, worker: WorkerProcess, now_s: float) -> float:
        """Its worker has. Returns in how many seconds the next one is due: at once at first, ever later while that
        keeps happening."""
        self.quick_deaths = 0 if now_s - worker.born_s > LONG_LIFE_S else self.quick_deaths + 1
        self.replaces = worker.pid
        return self._put_off(max(0, self.quick_deaths - 1), now_s)

    def could_not_fork(self, now_s: float) -> float:
        """Returns in how many seconds it is tried again."""
        self.quick_deaths += 1
        return self._put_off(self.quick_deaths, now_s)

    def _put_off(self, quick_deaths: int, now_s: float) -> float:
        delay_s = respawn_delay_s(quick_deaths)
        self.due_s = now_s + delay_s
        return delay_s


def respawn_delay_s(quick_deaths: int) -> float:
    """How long to wait before the next worker after that many short lives in a row: 0, 0.1, 0.2, 0.4 ... 10 s."""
    return 0.0 if quick_deaths == 0 else min(MAX_BACKOFF_S, 0.1 * 2.0 ** min(quick_deaths - 1, 10))


@dataclass(frozen=True, slots=True)
class Wait:
    """There is nothing to do until then, a monotonic time, unless something happens."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Fork:
    """A worker for a slot that has none, or the successor of the one that it has."""

    slot: Slot


class Change(Enum):
    """A step that is not one slot's alone."""

    ADD_SLOT = auto()
    STEER_AWAY = auto()  # from the last slot
    REMOVE_SLOT = auto()  # the last
    STEER_TO_ALL = auto()  # who is there now
    END_RELOAD = auto()


class Resize(Enum):
    """How far a change of the number of slots is."""

    SETTLED = auto()
    JOINING = auto()  # the last slot's first worker is not ready yet
    STEERED_AWAY = auto()  # from the last slot, where connections that are being made still arrive
    EMPTYING = auto()  # the kernel counts a slot that went until none of its workers has the socket any more


class Fleet:
    """The slots with their workers, and what has been asked of them."""

    def __init__(self, config: ServerConfig, room: int) -> None:
        """`room` is for so many slots at most."""
        self._places = [Slot(number) for number in range(room)]
        self.count = self.wanted = config.workers
        self.config = config
        """What the next worker is born with."""
        self.resize = Resize.SETTLED
        self.steered_until_s = 0.0
        self.before_reload: ServerConfig | None = None
        """What a reload that is going on returns to if it fails."""
        self.is_stopping = False

    @property
    def slots(self) -> list[Slot]:
        """Those that are served. In others workers may still drain."""
        return self._places[: self.count]

    @property
    def living(self) -> list[WorkerProcess]:
        return [worker for slot in self._places for worker in slot.living]

    @property
    def empty_slots(self) -> list[Slot]:
        """Those that have no worker and can get one: they may have to wait for a seat."""
        return [slot for slot in self.slots if slot.worker is None and slot.free_seat() is not None]

    def next_step(self, now_s: float) -> Fork | Change | Wait:
        """What to do now. It changes nothing: asked twice, it says the same."""
        until_s = math.inf
        for step in self._steps(now_s):
            if not isinstance(step, Wait):
                return step
            until_s = min(until_s, step.until_s)
        return Wait(until_s)

    def _steps(self, now_s: float) -> Iterator[Fork | Change | Wait]:
        if self.is_stopping:
            return
        for slot in self.empty_slots:
            yield Fork(slot) if slot.due_s <= now_s else Wait(slot.due_s)
        yield from self._of_resize(now_s)
        yield from self._of_reload(now_s)

    def _of_resize(self, now_s: float) -> Iterator[Change | Wait]:
        last = self.slots[-1]
        match self.resize:
            case Resize.SETTLED if self.wanted > self.count:
                yield Change.ADD_SLOT
            case Resize.SETTLED if self.wanted < self.count:
                yield Change.STEER_AWAY
            case Resize.JOINING if last.is_ready:
                yield Change.STEER_TO_ALL
            case Resize.STEERED_AWAY if now_s < self.steered_until_s:
                yield Wait(self.steered_until_s)
            case Resize.STEERED_AWAY if self.wanted >= self.count:  # somebody thought better of it
                yield Change.STEER_TO_ALL
            case Resize.STEERED_AWAY if not last.is_starting:  # whoever waits for it would be reset
                yield Change.REMOVE_SLOT
            case Resize.EMPTYING:
                is_over = self._places[self.count].is_deaf
                yield Change.STEER_TO_ALL if is_over else Wait(now_s + LOOK_AGAIN_S)

    def _of_reload(self, now_s: float) -> Iterator[Fork | Change | Wait]:
        """One successor at a time, so that the first that cannot start ends the reload, and the old workers go on. A
        slot whose seats are all taken by workers that drain waits for one of them."""
        if self.before_reload is None or any(slot.successor is not None for slot in self.slots):
            return
        for slot in self.slots:
            if slot.worker is not None and slot.worker.config is not self.config:
                if slot.free_seat() is not None:
                    yield Fork(slot)
                return
        is_over = all(slot.is_deaf for slot in self._places)  # or who connects now could be served by an old one
        yield Change.END_RELOAD if is_over else Wait(now_s + LOOK_AGAIN_S)

    def want(self, workers: int) -> str | None:
        """Ask for so many workers, or as many as can be. Returns why there cannot be so many, or so few."""
        room = len(self._places)
        self.wanted = min(room, max(1, workers))
        if workers < 1:
            return "not one worker less: the last worker stays"
        return f"no more than {room} workers: there is no room for others" if workers > room else None

    def add_slot(self) -> None:
        self.count += 1
        self.resize = Resize.JOINING

    def steered_away(self, now_s: float) -> None:
        self.resize, self.steered_until_s = Resize.STEERED_AWAY, now_s + HANDSHAKE_S
        self.slots[-1].due_s = 0.0  # whoever waits for a worker that has died is served too

    def remove_slot(self) -> list[WorkerProcess]:
        """Returns who retires with it."""
        self.count -= 1
        self.resize = Resize.EMPTYING
        slot = self._places[self.count]
        slot.due_s, slot.quick_deaths, slot.replaces = 0.0, 0, 0
        return slot.retire()

    def reload(self, config: ServerConfig) -> None:
        """A reload begins, or overtakes the one that is going on."""
        if self.before_reload is None:
            self.before_reload = self.config
        self.config = config

    def give_up_reload(self) -> int:
        """The old workers go on. Returns how many new ones there are beside them."""
        assert self.before_reload is not None
        new = sum(slot.worker is not None and slot.worker.config is self.config for slot in self.slots)
        self.config, self.before_reload = self.before_reload, None
        return new

    def find(self, pid: int) -> tuple[Slot, WorkerProcess] | None:
        return next(((slot, worker) for slot in self._places for worker in slot.living if worker.pid == pid), None)


class Deaths:
    """Those of the last while that nobody else caused."""

    def __init__(self) -> None:
        self._times_s: deque[float] = deque()

    def count(self, now_s: float, window_s: float) -> int:
        """One more, now. Returns how many there were within the window."""
        self._times_s.append(now_s)
        while self._times_s[0] < now_s - window_s:
            self._times_s.popleft()
        return len(self._times_s)
