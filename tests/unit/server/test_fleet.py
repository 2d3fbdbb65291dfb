"""What is to be done about workers that come, go and are asked for, step by step and without a process: in examples,
and in whatever order things happen."""

import dataclasses
import itertools
import math
from array import array
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server import scoreboard
from server.fleet import (
    HANDSHAKE_S,
    LONG_LIFE_S,
    MAX_BACKOFF_S,
    Change,
    Deaths,
    Fleet,
    Fork,
    Resize,
    Slot,
    Wait,
    WorkerProcess,
    respawn_delay_s,
)
from server.options import ServerConfig
from server.scoreboard import SEATS

ROOM = 5
CONFIG = ServerConfig(port=0, workers=2, discard=True)


class World:
    """A fleet, and a supervisor that takes its steps at once. Nothing else happens of itself: no worker becomes ready
    and no time passes unless told."""

    def __init__(self, workers: int = 2, *, ready: bool = True) -> None:
        self.now_s = 100.0
        self.pids = itertools.count(1)
        self.fleet = Fleet(dataclasses.replace(CONFIG, workers=workers), ROOM)
        self.taken: list[Fork | Change] = []
        self.settle()
        if ready:
            self.become_ready()
        self.taken.clear()

    def settle(self) -> float:
        """Take every step there is. Returns until when to wait."""
        while not isinstance(step := self.fleet.next_step(self.now_s), Wait):
            assert self.fleet.next_step(self.now_s) == step, "asked twice, it says the same"
            assert len(self.taken) < 1000, "it comes to an end"
            self.taken.append(step)
            in_service = {slot.number for slot in self.fleet.slots if slot.is_ready}
            self.take(step)
            if step is Change.REMOVE_SLOT:
                in_service.discard(self.fleet.count)
            assert in_service <= {slot.number for slot in self.fleet.slots if slot.is_ready}, "who serves goes on"
        assert step.until_s > self.now_s
        return step.until_s

    def take(self, step: Fork | Change) -> None:
        match step:
            case Fork(slot):
                seat = slot.free_seat()
                assert seat is not None
                record = memoryview(array("Q", [0] * scoreboard.FAILURES))
                record[scoreboard.STATE] = scoreboard.STARTING
                worker = WorkerProcess(slot.number, seat, record, self.fleet.config, self.now_s, next(self.pids))
                if slot.worker is None:
                    slot.worker = worker
                else:
                    assert slot.successor is None
                    slot.successor = worker
            case Change.ADD_SLOT:
                self.fleet.add_slot()
            case Change.STEER_AWAY:
                self.fleet.steered_away(self.now_s)
            case Change.REMOVE_SLOT:
                assert not self.fleet.slots[-1].is_starting, "whoever waits for it would be reset"
                self.fleet.remove_slot()
            case Change.STEER_TO_ALL:
                assert self.fleet.resize is not Resize.JOINING or self.fleet.slots[-1].is_ready
                self.fleet.resize = Resize.SETTLED
            case Change.END_RELOAD:
                assert all(one.config is self.fleet.config or not one.may_accept for one in self.fleet.living)
                self.fleet.before_reload = None

    def become_ready(self, workers: Iterable[WorkerProcess] | None = None) -> None:
        for worker in self.fleet.living if workers is None else workers:
            worker.is_ready = True
            if worker.may_accept:
                worker.record[scoreboard.STATE] = scoreboard.READY
        for slot in self.fleet.slots:
            if slot.successor is not None and slot.successor.is_ready:
                slot.succeed()
                assert slot.is_ready
        self.settle()

    def retired(self) -> list[tuple[Slot, WorkerProcess]]:
        return [(slot, worker) for slot in self.fleet._places for worker in slot.retiring]

    def close_sockets(self, worker: WorkerProcess) -> None:
        worker.record[scoreboard.STATE] = scoreboard.DRAINING

    def end(self, worker: WorkerProcess) -> None:
        """However it comes about."""
        found = self.fleet.find(worker.pid)
        assert found is not None
        slot, _ = found
        if worker in slot.retiring:
            slot.retiring.remove(worker)
        elif worker is slot.successor:
            slot.successor = None
            if worker.config is self.fleet.config:
                self.fleet.give_up_reload()
        else:
            slot.worker = None
            if self.fleet.resize is Resize.JOINING and slot is self.fleet.slots[-1] and not worker.is_ready:
                self.fleet.remove_slot()
                self.fleet.want(slot.number)
            else:
                slot.died(worker, self.now_s)
        self.settle()

    def reload(self) -> None:
        self.fleet.reload(dataclasses.replace(self.fleet.config))
        self.settle()

    def want(self, workers: int) -> str | None:
        problem = self.fleet.want(workers)
        self.settle()
        return problem

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.settle()


# ── Births and deaths ──


def test_at_first_every_slot_gets_a_worker() -> None:
    fleet = Fleet(CONFIG, ROOM)
    assert [slot.number for slot in fleet.slots] == [0, 1]
    world = World(ready=False)
    assert [slot.worker is not None for slot in world.fleet.slots] == [True, True]
    assert world.settle() == math.inf


def test_a_slot_is_filled_when_it_is_due_and_others_do_not_wait_for_it() -> None:
    world = World()
    one, other = world.fleet.slots
    for _ in range(2):
        assert one.worker is not None
        world.end(one.worker)
    assert one.worker is None
    assert world.settle() == one.due_s == pytest.approx(world.now_s + 0.1)
    assert other.worker is not None
    world.end(other.worker)
    assert other.worker is not None, "its first death"
    world.sleep(0.1)
    assert one.worker is not None


def test_a_worker_that_keeps_dying_is_replaced_ever_later() -> None:
    delays = [respawn_delay_s(deaths) for deaths in range(10)]
    assert delays == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])
    assert respawn_delay_s(10**9) == MAX_BACKOFF_S  # no overflow after a month


def test_who_lived_long_died_of_an_accident() -> None:
    world = World(1)
    [slot] = world.fleet.slots
    worker = slot.worker
    assert worker is not None
    assert [slot.died(worker, world.now_s) for _ in range(3)] == pytest.approx([0, 0.1, 0.2])
    assert slot.died(worker, world.now_s + LONG_LIFE_S + 1) == 0
    assert slot.replaces == worker.pid


def test_a_fork_that_fails_is_tried_again_ever_later() -> None:
    slot = Slot(0)
    assert [slot.could_not_fork(100.0) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.4])
    assert slot.due_s == pytest.approx(100.4)


def test_deaths_within_the_window_are_counted() -> None:
    deaths = Deaths()
    assert [deaths.count(now_s, 10) for now_s in (100, 105, 110, 110.1, 130)] == [1, 2, 3, 3, 1]


def test_why_a_worker_is_killed() -> None:
    [worker] = World(1).fleet.living
    born_s = worker.born_s

    def reason(now_s: float, trusted_from_s: float = 0.0) -> str | None:
        return worker.find_reason_to_kill(now_s, 30, trusted_from_s)

    assert reason(born_s + 30) is None
    assert reason(born_s + 31) == "it hung: its loop has not turned for 31 s"
    assert reason(born_s + 31, trusted_from_s=born_s + 5) is None
    worker.record[scoreboard.HEARTBEAT_NS] = int((born_s + 20) * 1e9)
    assert reason(born_s + 49) is None
    worker.drains_until_s = born_s + 40
    assert reason(born_s + 39) is None
    assert reason(born_s + 40) == "it did not end within the drain timeout"


# ── Reload ──


def test_a_reload_goes_slot_by_slot_and_ends_when_no_old_worker_accepts() -> None:
    world = World()
    old = world.fleet.living
    world.reload()
    one, other = world.fleet.slots
    assert world.taken == [Fork(one)]
    world.become_ready()
    assert world.taken == [Fork(one), Fork(other)]
    assert one.retiring == [old[0]]
    world.become_ready()
    assert world.fleet.before_reload is not None
    assert world.settle() < math.inf, "the old ones still accept"
    for worker in old:
        world.close_sockets(worker)
    world.sleep(1)
    assert world.taken[-1] is Change.END_RELOAD
    assert all(slot.worker is not None and slot.worker.config is world.fleet.config for slot in (one, other))


def test_a_successor_that_dies_ends_the_reload_and_the_old_workers_go_on() -> None:
    world = World()
    config, old = world.fleet.config, [slot.worker for slot in world.fleet.slots]
    world.reload()
    successor = world.fleet.slots[0].successor
    assert successor is not None
    world.end(successor)
    assert (world.fleet.config, world.fleet.before_reload) == (config, None)
    assert [slot.worker for slot in world.fleet.slots] == old
    assert world.settle() == math.inf


def test_a_reload_that_fails_later_tells_how_many_new_workers_there_are() -> None:
    world = World(3)
    world.reload()
    world.become_ready()
    world.become_ready()
    assert world.fleet.give_up_reload() == 2


def test_a_reload_overtakes_another() -> None:
    world = World()
    before = world.fleet.config
    world.reload()
    successor = world.fleet.slots[0].successor
    assert successor is not None
    world.reload()
    world.end(successor)  # its failure is not that of the second
    assert world.fleet.before_reload is before
    assert world.taken == [Fork(world.fleet.slots[0])] * 2
    for _ in range(2):
        world.become_ready()
    assert all(slot.worker is not None and slot.worker.config is world.fleet.config for slot in world.fleet.slots)


def test_a_slot_whose_seats_all_drain_waits_for_one() -> None:
    world = World(1)
    [slot] = world.fleet.slots
    for _ in range(SEATS - 1):
        world.reload()
        world.become_ready()
    assert slot.free_seat() is None
    world.reload()
    assert slot.successor is None
    assert world.settle() == math.inf, "a death will wake it"
    world.end(slot.retiring[0])
    assert slot.successor is not None


def test_who_replaces_a_dead_worker_in_a_reload_needs_no_successor() -> None:
    world = World(2)
    worker = world.fleet.slots[1].worker
    world.reload()
    assert worker is not None
    world.end(worker)
    world.become_ready()
    assert [step for step in world.taken if isinstance(step, Fork)] == [Fork(slot) for slot in world.fleet.slots]


# ── More and fewer ──


def test_one_more_is_added_when_its_worker_is_ready() -> None:
    world = World()
    assert world.want(3) is None
    assert world.taken == [Change.ADD_SLOT, Fork(world.fleet.slots[2])]
    assert world.settle() == math.inf
    world.become_ready()
    assert world.taken[2:] == [Change.STEER_TO_ALL]


def test_one_more_that_cannot_start_is_given_up() -> None:
    world = World()
    world.want(3)
    worker = world.fleet.slots[2].worker
    assert worker is not None
    world.end(worker)
    assert (world.fleet.count, world.fleet.wanted, world.fleet.resize) == (2, 2, Resize.SETTLED)


def test_one_less_leaves_when_connections_that_are_being_made_have_arrived() -> None:
    world = World()
    [worker] = world.fleet.slots[1].living
    world.want(1)
    assert world.taken == [Change.STEER_AWAY]
    assert world.settle() == world.now_s + HANDSHAKE_S
    world.sleep(HANDSHAKE_S)
    assert world.taken == [Change.STEER_AWAY, Change.REMOVE_SLOT]
    assert [retired for _, retired in world.retired()] == [worker]
    world.close_sockets(worker)
    world.sleep(1)
    assert world.taken[2:] == [Change.STEER_TO_ALL]
    world.want(2)
    assert world.fleet.slots[1].living[1:] == [worker], "its slot is back while it drains"


def test_one_less_that_is_about_to_start_is_waited_for() -> None:
    world = World()
    worker = world.fleet.slots[1].worker
    assert worker is not None
    world.end(worker)
    world.want(1)
    world.sleep(HANDSHAKE_S)
    assert Change.REMOVE_SLOT not in world.taken
    world.become_ready()
    assert Change.REMOVE_SLOT in world.taken


def test_somebody_thinks_better_of_one_less() -> None:
    world = World()
    world.want(1)
    world.want(2)
    world.sleep(HANDSHAKE_S)
    assert world.taken == [Change.STEER_AWAY, Change.STEER_TO_ALL]


def test_there_can_be_neither_none_nor_too_many() -> None:
    world = World(1)
    assert world.want(0) == "not one worker less: the last worker stays"
    assert world.want(ROOM + 1) == f"no more than {ROOM} workers: there is no room for others"
    assert world.fleet.wanted == ROOM


def test_who_stops_begins_nothing_more() -> None:
    world = World()
    worker = world.fleet.slots[0].worker
    world.fleet.is_stopping = True
    world.reload()
    world.want(3)
    assert worker is not None
    world.end(worker)
    assert world.taken == []
    assert world.settle() == math.inf


def test_a_slot_that_comes_back_while_all_its_seats_drain_waits_for_one() -> None:
    world = World()
    slot = world.fleet.slots[1]
    for _ in range(SEATS - 1):
        world.reload()
        world.become_ready()
        world.become_ready()
    world.want(1)
    world.sleep(HANDSHAKE_S)
    assert len(slot.retiring) == SEATS
    for worker in slot.retiring:
        world.close_sockets(worker)
    world.sleep(1)
    world.want(2)
    assert (world.fleet.resize, slot.worker) == (Resize.JOINING, None)
    world.end(slot.retiring[0])
    assert slot.worker is not None


# ── In whatever order ──


class AnyOrder(RuleBasedStateMachine):
    """Births, readiness, deaths, HUP, TTIN and TTOU; each step is judged by `World.settle`."""

    @initialize(workers=st.integers(1, 3), ready=st.booleans())
    def start(self, workers: int, ready: bool) -> None:
        self.world = World(workers, ready=ready)

    @property
    def fleet(self) -> Fleet:
        return self.world.fleet

    @rule()
    def hup(self) -> None:
        self.world.reload()

    @rule(change=st.sampled_from([1, -1]))
    def ttin_or_ttou(self, change: int) -> None:
        self.world.want(self.fleet.wanted + change)

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.sleep(seconds)

    @precondition(lambda self: any(not worker.is_ready for worker in self.fleet.living))
    @rule(data=st.data())
    def one_becomes_ready(self, data: st.DataObject) -> None:
        self.world.become_ready([data.draw(st.sampled_from([one for one in self.fleet.living if not one.is_ready]))])

    @precondition(lambda self: self.fleet.living)
    @rule(data=st.data())
    def one_dies(self, data: st.DataObject) -> None:
        self.world.end(data.draw(st.sampled_from(self.fleet.living)))

    @precondition(lambda self: self.world.retired())
    @rule(data=st.data())
    def one_closes_its_sockets(self, data: st.DataObject) -> None:
        self.world.close_sockets(data.draw(st.sampled_from(self.world.retired()))[1])
        self.world.settle()

    @invariant()
    def slots_and_seats_are_within_bounds(self) -> None:
        assert 1 <= self.fleet.count <= ROOM
        assert 1 <= self.fleet.wanted <= ROOM
        for slot in self.fleet._places:
            seats = [worker.seat for worker in slot.living]
            assert len(set(seats)) == len(seats) <= SEATS
        assert sum(slot.successor is not None for slot in self.fleet.slots) <= 1
        assert all(slot.worker is slot.successor is None for slot in self.fleet._places[self.fleet.count :])

    def teardown(self) -> None:
        """When nothing bad happens any more, every wish comes true: reload and change of size end."""
        for _ in range(5 * ROOM):
            for _, worker in self.world.retired():
                self.world.close_sockets(worker)
                self.world.end(worker)
            self.world.sleep(MAX_BACKOFF_S)
            self.world.become_ready()
        assert (self.fleet.count, self.fleet.resize) == (self.fleet.wanted, Resize.SETTLED)
        assert self.fleet.before_reload is None
        assert all(slot.is_ready and slot.living == [slot.worker] for slot in self.fleet.slots)
        assert self.world.settle() == math.inf


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(stateful_step_count=30)
