"""Who holds a port, and how to free it: `python -m server.ports show|release PORT...`.

`lsof -i :PORT | kill -9` also ends the clients connected to the port, killing one worker of a pre-fork server frees
nothing because it is replaced, and killing only its parent leaves orphans on the port. So here the way is:

    look      every socket on the port, the processes that have it open, and the part each one plays
    climb     from a listener to the topmost ancestor with the same listening socket: the pre-fork parent
    guard     never a client, pid 1, ourselves or our ancestors; others only when told
    end       TERM to the parent, wait, then KILL parent first and workers after, through pidfds
    verify    by really binding the address

Three rules make it safe. A port is all or nothing: where one holder is refused the others are left alone too, since
the port would not become free. A process is signalled only if, after its pidfd was opened, its start time and its
socket are still the ones seen. And the goal is the port, not the process: a server that has let go of the port and is
finishing its connections is not killed.

`show` has to keep up with lsof, Python's start included, and most of that time is imports. So this file takes nothing
that is slow to load: it reads /proc itself (psutil's import takes as long as the whole look, its net_connections()
15 to 128 ms a process), its command line is argparse (click takes half of lsof's time before it does anything), its
values are named tuples, and the server's state file is read through a late import.
"""

import argparse
import errno
import gc
import os
import pwd
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from server import output, sockets
from server.sockets import kernel_text
from server.units import format_age, parse_duration

# What a process does with the port. Bound means bound without listening or being connected.
LISTENER, CLIENT, ACCEPTED_ONLY, BOUND = "listener", "client", "accepted-only", "bound"
ROLES = (LISTENER, CLIENT, ACCEPTED_ONLY, BOUND)  # of several the first counts: who is a client too is left alone

# Exit codes; of several ports the worst one counts, in the order of `_BY_WEIGHT`.
FREE, HELD, USAGE, REFUSED, NOTHING = range(5)
_BY_WEIGHT = (FREE, NOTHING, HELD, REFUSED)

# Programs that start others and pass their descriptors on, but are nobody's supervisor: climbing ends below them.
_SHELLS = ("sh", "bash", "dash", "zsh", "fish", "ksh", "csh", "tcsh", "busybox")
LAUNCHERS = frozenset((*_SHELLS, "make", "gmake", "init", "systemd", "tini", "dumb-init", "docker-init"))

ROUNDS = 3  # so often is a port freed that somebody takes again
_POLL_S = 0.02
_KILL_TAKES_S = 0.8
# How long a freed port is watched. Who respawns a process in a loop does so at once, systemd after 100 ms by default.
_WATCH_OURS_S, _WATCH_OTHERS_S = 0.05, 0.5

_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "disk-wait",
    "T": "stopped",
    "t": "traced",
    "Z": "zombie",
    "X": "dead",
    "I": "idle",
}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


# A process for good: pid, and start time in clock ticks since boot.
Identity = tuple[int, int]


class Listener(NamedTuple):
    """A listening socket, or a UDP socket that takes from everybody."""

    link: str
    """What an open descriptor of it reads in /proc: `socket:[INODE]`. Everywhere here this text names a socket."""
    family: socket.AddressFamily
    address: str
    port: int
    uid: int
    queue: int
    """Of TCP: connections waiting to be accepted."""

    @property
    def place(self) -> str:
        """Address and port as people write them."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Process(NamedTuple):
    """A process as seen at one moment. `start_ticks`, in clock ticks since boot, tells it from a later one."""

    pid: int
    parent: int
    start_ticks: int
    uid: int
    name: str
    state: str
    argv: tuple[str, ...]
    role: str = ""
    links: frozenset[str] = frozenset()
    """The sockets on the asked port that it has open, those of its role only."""

    @property
    def identity(self) -> Identity:
        return self.pid, self.start_ticks

    @property
    def command(self) -> str:
        """The command line in one line, without the program's folder; a process without one has only a name."""
        program, *arguments = self.argv or (f"[{self.name}]",)
        return " ".join([Path(program).name, *arguments])

    @property
    def age_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start_ticks / _TICKS_PER_S

    def __str__(self) -> str:
        return f"pid {self.pid} ({_shortened(self.command, 80)})"


class Holding(NamedTuple):
    """Everything that can be seen of one port at one moment."""

    port: int
    udp: bool
    listening: tuple[Listener, ...]
    processes: tuple[Process, ...]
    time_wait: int
    """Connections of no process any more."""

    def having(self, *roles: str) -> list[Process]:
        """The processes that play one of these parts."""
        return [process for process in self.processes if process.role in roles]

    @property
    def unseen(self) -> list[Listener]:
        """Listening sockets whose owner cannot be seen: another user's, or in another container."""
        seen = _links_of(self.having(LISTENER))
        return [listener for listener in self.listening if listener.link not in seen]


class Orders(NamedTuple):
    """What `release` may do."""

    grace_s: float = 5.0
    udp: bool = False
    include_accepted: bool = False
    any_user: bool = False
    force: bool = False
    dry_run: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        """Whom this may signal. Clients never are among them."""
        return (LISTENER, ACCEPTED_ONLY, BOUND) if self.include_accepted else (LISTENER,)


class Result(NamedTuple):
    """What became of one port: the first look at it, an exit code, and lines for a person."""

    holding: Holding
    code: int
    lines: list[str]


# What a person sees of a release while it goes on, and how a person is asked.
Say = Callable[[str], None]
Ask = Callable[[str], bool]


# --- What other modules ask ---


def look(ports: Collection[int], udp: bool = False) -> list[Holding]:
    """What can be seen of each port. One scan over all processes, however many ports there are."""
    return _holdings(_tables(ports, udp), udp)


class _KnownRoot(NamedTuple):
    pid: int
    start_ticks: int
    descriptor: str
    """Path in /proc of its listening socket, and what that reads."""
    link: str


_known_roots: dict[int, _KnownRoot] = {}


def listening_root(port: int) -> int | None:
    """Pid of the topmost ancestor with a listening TCP socket on `port`; None when nobody visible has one.

    Of several programs that share the port it is the oldest. Meant to be asked each second: as long as the last
    answer still has that socket open, two files in /proc are read and nothing is scanned.
    """
    known = _known_roots.get(port)
    if known and _link(known.descriptor) == known.link and _start_ticks(known.pid) == known.start_ticks:
        return known.pid
    _known_roots.pop(port, None)
    [holding] = look([port])
    roots = _roots(holding.having(LISTENER))
    if not roots:
        return None
    root = min(roots, key=lambda process: (process.start_ticks, process.pid))
    for descriptor, link in _open_sockets(root.pid, root.links).items():
        _known_roots[port] = _KnownRoot(root.pid, root.start_ticks, descriptor, link)
    return root.pid


def describe_holder(port: int) -> str:
    """One line for whoever could not bind TCP `port`: who holds it and what to do."""
    [holding] = look([port])
    if roots := _roots(holding.having(LISTENER)):
        who = " and ".join(str(process) for process in roots)
        return f"port {port} is held by {who}; free it with: make killport PORT={port}"
    if holding.unseen:
        return f"port {port} is in use: {_unseen(holding)}"
    return f"port {port} is in use, but nobody listens on it; what is known: python -m server.ports show {port}"


# --- Look: sockets, their owners, the part each one plays ---


class _Table(NamedTuple):
    """What the kernel lists for one port: sockets by the part that having them open means, without their processes."""

    listening: list[Listener]
    parts: dict[str, set[str]]
    time_wait: list[str]


def _tables(ports: Collection[int], udp: bool) -> dict[int, _Table]:
    """Sort all sockets that have one of the ports at either end."""
    tables = {port: _Table([], {role: set() for role in ROLES}, []) for port in ports}
    lowest, highest = map(int, (kernel_text("/proc/sys/net/ipv4/ip_local_port_range") or "32768 60999").split())
    listens = sockets.UDP_UNCONNECTED if udp else sockets.LISTEN
    for row in sockets.of_ports(ports, udp=udp):
        table = tables[row.here if row.here in tables else row.there]
        if row.state == sockets.TIME_WAIT:
            table.time_wait.append(row.link)
        elif row.here not in tables:
            table.parts[CLIENT].add(row.link)
        elif row.state == listens:
            address = socket.inet_ntop(row.family, row.local[: 16 if row.family == socket.AF_INET6 else 4])
            table.parts[LISTENER].add(row.link)
            table.listening.append(Listener(row.link, row.family, address, row.here, row.uid, row.queue))
        # From a port of the range that the kernel hands out to one outside of it: this was not accepted, some program
        # called out from here. Other connections cannot be told apart, and need an order to end.
        elif lowest <= row.here <= highest and row.there < lowest:
            table.parts[CLIENT].add(row.link)
        else:
            table.parts[ACCEPTED_ONLY].add(row.link)
    return tables


def _holdings(tables: dict[int, _Table], udp: bool) -> list[Holding]:
    """Find the processes behind these sockets, in one scan."""
    links = {link for table in tables.values() for some in table.parts.values() for link in some}
    owners: dict[int, set[str]] = {}
    if links:
        for name in os.listdir("/proc"):  # noqa: PTH208 - thousands of names: Path objects cost more than the kernel
            if name.isdecimal() and (held := _open_sockets(int(name), links)):
                owners[int(name)] = set(held.values())
    return [
        Holding(port, udp, tuple(table.listening), tuple(_players(table, owners)), len(table.time_wait))
        for port, table in tables.items()
    ]


def _open_sockets(pid: int, links: Collection[str]) -> dict[str, str]:
    """Those of these sockets that a process has open, by path of the descriptor; empty if it may not be looked into."""
    folder = f"/proc/{pid}/fd/"
    found = {}
    try:
        for name in os.listdir(folder):  # noqa: PTH208
            if (link := _link(folder + name)) in links:
                found[folder + name] = link
    except OSError:
        pass
    return found


def _players(table: _Table, owners: dict[int, set[str]]) -> Iterator[Process]:
    """The processes that have sockets of one port open, each with the first of its parts."""
    for pid, held in owners.items():
        role = next((role for role, links in table.parts.items() if held & links), None)
        if role and (process := _process(pid)):
            yield process._replace(role=role, links=frozenset(held & table.parts[role]))


def _links_of(processes: list[Process]) -> set[str]:
    return {link for process in processes for link in process.links}


def _process(pid: int) -> Process | None:
    """A process as it is now; None when it has ended."""
    text = kernel_text(f"/proc/{pid}/stat")
    argv = kernel_text(f"/proc/{pid}/cmdline").rstrip("\0")
    try:
        uid = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None
    if not text:
        return None
    end = text.rindex(")")  # the name before it may hold spaces and brackets
    state, parent, *rest = text[end + 2 :].split()
    return Process(
        pid=pid,
        parent=int(parent),
        start_ticks=int(rest[17]),
        uid=uid,
        name=text[text.index("(") + 1 : end],
        state=_STATES.get(state, state),
        argv=tuple(argv.split("\0")) if argv else (),
    )


def _start_ticks(pid: int) -> int | None:
    process = _process(pid)
    return process.start_ticks if process else None


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115
    except OSError:
        return ""


def _look_closely(ports: Collection[int], udp: bool) -> list[Holding]:
    """As `look`, but where a port cannot be bound although nobody listens, sockets that are only bound count too."""
    tables = _tables(ports, udp)
    for port, table in tables.items():
        if not (udp or table.listening or _is_free(Holding(port, udp, (), (), 0))):
            table.parts[BOUND].update(_bound(port))
    return _holdings(tables, udp)


def _bound(port: int) -> list[str]:
    """Sockets that are bound to the port and nothing else. /proc/net lists none; the diagnostics take 10 ms for it."""
    try:
        return [row.link for row in sockets.diagnosed(1 << sockets.BOUND, local=port)]
    except OSError:
        return []  # as in `sockets.of_ports`


# --- Climb ---


def _ancestors(process: Process) -> Iterator[Process]:
    """Parent, grandparent and so on, without init."""
    seen = {process.pid}  # a pid that is reused while we walk could lead in a circle
    while process.parent > 1 and process.parent not in seen and (parent := _process(process.parent)):
        seen.add(parent.pid)
        yield parent
        process = parent


def _root(process: Process, holders: dict[int, Process], stop: Collection[int] = ()) -> Process:
    """The topmost ancestor that has one of the process's own sockets open."""
    root = process
    for ancestor in _ancestors(process):
        if ancestor.name in LAUNCHERS or ancestor.pid in stop:
            break
        holder = holders.get(ancestor.pid)
        if holder and holder.links & process.links:
            root = holder
    return root


def _roots(processes: list[Process], stop: Collection[int] = ()) -> list[Process]:
    """The roots of all trees among these processes, each once."""
    holders = {process.pid: process for process in processes}
    return list({(root := _root(process, holders, stop)).pid: root for process in processes}.values())


# --- Guard ---


def _ourselves() -> set[int]:
    """This process and everybody above it."""
    me = _process(os.getpid())
    assert me is not None
    return {me.pid, *(ancestor.pid for ancestor in _ancestors(me))}


def _is_ours(process: Process) -> bool:
    """Whether this is a socketswarm server or Locust.

    The command line is asked first: it is all that the orphans of a killed supervisor have.
    """
    program, *arguments = (Path(word).name for word in process.argv or ("",))
    if program == "locust":
        return True
    if program.startswith("python"):
        if {("-m", "server"), ("-m", "locust")} & set(pairwise(arguments)):
            return True
        if "locust" in arguments[:1]:  # the script that pip installs, run by its first line
            return True
    from server.scoreboard import read_state

    return read_state(process.pid) is not None


def _never(process: Process, root: Process, orders: Orders, ourselves: Collection[int]) -> str | None:
    """Why this process must not be signalled, whoever asks. What belongs to a server of ours is its user's: the status
    helper of root's gave its own rights up, and is nobody's."""
    if process.pid == 1:
        return f"{process} is init; if it listens for a service, stop that: systemctl list-sockets"
    if process.pid in ourselves:
        return f"{process} is this command itself or started it"
    if process.uid != os.geteuid() and not orders.any_user and not (root.uid == os.geteuid() and _is_ours(root)):
        return f"{process} belongs to user {_user(process.uid)}; --any-user ends it too"
    return None


def _refusals(
    holding: Holding, targets: list[Process], roots: list[Process], orders: Orders, ourselves: set[int], ask: Ask | None
) -> list[str]:
    """Why the port will not be freed; empty when it may be. Only what is refused for nothing else is asked about."""
    holders = {process.pid: process for process in targets}
    reasons = [
        reason
        for process in targets
        if (reason := _never(process, _root(process, holders, ourselves), orders, ourselves))
    ]
    if holding.unseen:
        reasons.append(_unseen(holding))
    if reasons:
        return reasons
    for root in roots:
        if orders.force or _is_ours(root):
            continue
        if not (ask and ask(f"{root} is neither a socketswarm server nor Locust. End it?")):
            reasons.append(f"{root} is neither a socketswarm server nor Locust; --force ends it too")
    return reasons


# --- End ---


def release(ports: Collection[int], orders: Orders, say: Say, ask: Ask | None = None) -> list[Result]:
    """Free each port in turn. `say` gets progress; without `ask` nobody is asked, and what needs a yes is refused."""
    results = []
    for holding in _look_closely(ports, orders.udp):
        try:
            results.append(_release(holding, orders, say, ask))
        except PermissionError as error:  # seen but not to be signalled: rare, as in a sandbox
            results.append(Result(holding, REFUSED, [f"refused: the kernel forbids this user to signal it ({error})"]))
    return results


def _release(first: Holding, orders: Orders, say: Say, ask: Ask | None) -> Result:
    lines: list[str] = []
    ourselves = _ourselves()
    ended: set[Identity] = set()
    holding = first
    for _ in range(ROUNDS):
        if holding.unseen:  # perhaps born or ended between the look at sockets and the look at processes
            [holding] = _look_closely([first.port], first.udp)
        targets = holding.having(*orders.roles)
        if not targets and not holding.unseen:
            break
        if targets and ended >= {process.identity for process in targets}:
            break  # KILL did not end them: another round would not either
        roots = _roots(targets, ourselves)
        if reasons := _refusals(holding, targets, roots, orders, ourselves, ask):
            return Result(first, REFUSED, [*lines, *(f"refused: {reason}" for reason in reasons)])
        who = _named(roots) + _workers(targets, roots)
        if orders.dry_run:
            return Result(first, HELD, [*lines, f"would send TERM to {who}; KILL after {orders.grace_s:g} s"])
        watch_s = _watch_s(roots)
        lines.append(f"{who}: {_end(first, targets, roots, orders, say)}")
        ended |= {process.identity for process in targets}
        _wait(lambda: not _is_free(first), watch_s)
        [holding] = _look_closely([first.port], first.udp)
    return _verified(first, holding, ended, lines)


def _end(first: Holding, targets: list[Process], roots: list[Process], orders: Orders, say: Say) -> str:
    """TERM to the roots; after the grace KILL to them, then to whoever still has their sockets. Says how it went."""
    began = time.monotonic()
    silent = [process for process in targets if process.role != LISTENER]  # a bind may work in spite of these

    def done() -> bool:
        # Bound or not: once nobody has the sockets any more, waiting and killing change nothing.
        return not any(map(_still_holds, silent)) and (_is_free(first) or not any(map(_still_holds, targets)))

    def progress(waited_s: int) -> None:
        states = ", ".join(f"{root.pid} is {_state(root)}" for root in roots if _still_holds(root))
        say(f"port {first.port}: waiting, {waited_s} s of {orders.grace_s:g} s{states and f' (pid {states})'}")

    signalled = [root for root in roots if _signal(root, signal.SIGTERM)]
    if not signalled:
        return "had gone before it was signalled"
    if _wait(done, orders.grace_s, progress):
        return f"let go after TERM, in {time.monotonic() - began:.1f} s"
    for root in roots:  # first, so that none of them can replace a worker
        _signal(root, signal.SIGKILL)
    links = _links_of(targets)
    allowed = {process.identity for process in targets}
    ourselves = _ourselves()
    deadline = time.monotonic() + _KILL_TAKES_S
    while not _wait(done, _POLL_S) and time.monotonic() < deadline:
        [now] = _look_closely([first.port], first.udp)
        for process in now.having(*orders.roles):
            # Whoever has the very socket of a target got it from there. Workers forked since count too.
            if process.links & links and (
                process.identity in allowed or not _never(process, process, orders, ourselves)
            ):
                _signal(process, signal.SIGKILL)
    return f"killed, {orders.grace_s:g} s after TERM"


def _signal(process: Process, number: signal.Signals) -> bool:
    """Signal this very process if it still has its sockets; False when it has ended or let go of them.

    The pidfd comes first: from then on the pid cannot turn into somebody else between check and signal.
    """
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not _still_holds(process):
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def _still_holds(process: Process) -> bool:
    return _start_ticks(process.pid) == process.start_ticks and bool(_open_sockets(process.pid, process.links))


def _wait(condition: Callable[[], bool], timeout_s: float, progress: Callable[[int], None] = lambda _: None) -> bool:
    """Poll until the condition holds (True) or the time is over (False); tell the progress once a second."""
    began = time.monotonic()
    told_s = 0
    while not condition():
        waited_s = time.monotonic() - began
        if waited_s >= timeout_s:
            return False
        if waited_s >= told_s + 1:
            told_s = int(waited_s)
            progress(told_s)
        time.sleep(min(_POLL_S, timeout_s - waited_s))
    return True


def _watch_s(roots: list[Process]) -> float:
    """How long to watch for a respawn: our own server has nobody above it who does that, unless systemd runs it."""
    return _WATCH_OURS_S if all(_is_ours(root) and not _unit(root) for root in roots) else _WATCH_OTHERS_S


# --- Verify ---


def _is_free(first: Holding) -> bool:
    """Whether every address that was listened on (or any, if none was) can be bound now.

    TCP is tried with SO_REUSEADDR, as servers do, which gets past TIME_WAIT and connections still being finished. UDP
    is tried without: there the option would let two programs share the port.
    """
    places = {(listener.family, listener.address) for listener in first.listening}
    for family, address in places or {(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")}:
        try:
            with socket.socket(family, socket.SOCK_DGRAM if first.udp else socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, not first.udp)
                probe.bind((address, first.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            # A port below 1024, an address that went away, no IPv6: this place cannot be tried, only looked at.
            if any(listener.family == family for listener in _tables([first.port], first.udp)[first.port].listening):
                return False
    return True


def _verified(first: Holding, last: Holding, ended: set[Identity], lines: list[str]) -> Result:
    """The end of a release: whether the port is free now, and if not, why."""
    listeners = last.having(LISTENER)
    survivors = [process for process in listeners if process.identity in ended]
    if not last.listening and _is_free(first):
        code, verdict = (FREE if ended else NOTHING), "free"
    elif survivors:
        code, verdict = HELD, f"still held: {_named(survivors)} did not end, not even by KILL"
    elif last.listening:
        code, verdict = HELD, f"still held: taken again by {_named(listeners) or 'somebody'}, {_starter(listeners)}"
    elif last.having(ACCEPTED_ONLY, BOUND, CLIENT):
        code, verdict = HELD, "still held, though nobody listens"
    else:
        # TIME_WAIT and its like keep the SO_REUSEADDR of the socket they come from; binding takes both sides' consent.
        code, verdict = HELD, "not free yet: a server without SO_REUSEADDR left connections that end by themselves"
    return Result(first, code, [*lines, verdict, *_notes(last)])


def _starter(processes: list[Process]) -> str:
    """Who keeps starting these, and what to do about it."""
    for process in processes:
        if unit := _unit(process):
            return f"which systemd starts: systemctl stop {unit}"
        parent = _process(process.parent)
        if parent and parent.pid != 1:
            return f"which is started by {parent}: end that first"
    return "started by somebody who cannot be named"


def _unit(process: Process) -> str | None:
    """The systemd service that a process belongs to; None for login sessions and outside systemd."""
    for line in kernel_text(f"/proc/{process.pid}/cgroup").splitlines():
        name = line.rpartition("/")[2]
        if name.endswith(".service") and not name.startswith("user@"):
            return name
    return None


# --- Tell ---


def _notes(holding: Holding) -> list[str]:
    """Why a port is as it is: one line for each thing that a person may trip over."""
    notes = []
    listeners = holding.having(LISTENER)
    for state, meaning in _STUCK.items():
        if stuck := [process for process in listeners if process.state == state]:
            notes.append(f"{_pids(stuck)} {meaning}")
    if len(roots := _roots(listeners)) > 1:
        notes.append(f"{len(roots)} programs share it: {_named(roots)}")
    if waiting := sum(listener.queue for listener in holding.listening if not holding.udp):
        notes.append(f"waiting to be accepted: {_connections(waiting)}")
    if accepted := holding.having(ACCEPTED_ONLY, BOUND):
        notes.append(
            f"on it without listening: {_pids(accepted)}. Whoever does not set SO_REUSEADDR cannot bind meanwhile, "
            "and nobody can if the old listener did not; release --include-accepted ends it too"
        )
    if holding.unseen:
        notes.append(_unseen(holding))
    if holding.time_wait:
        notes.append(
            f"{_connections(holding.time_wait)} in TIME_WAIT: of no process any more, and over within 60 s. "
            "A server that sets SO_REUSEADDR need not wait for this, unless the old one did not set it"
        )
    return notes


_STUCK = {
    "stopped": "stopped (Ctrl-Z or SIGSTOP): acts on TERM only after `kill -CONT`; KILL works",
    "traced": "held by a debugger: acts on TERM only when that lets go; KILL works",
    "disk-wait": "waiting inside the kernel, usually for a disk: no signal acts until that is over",
}


def _unseen(holding: Holding) -> str:
    user = _user(holding.unseen[0].uid)
    way = (
        "another container or the kernel has it"
        if os.geteuid() == 0
        else f"try: sudo make killport PORT={holding.port}"
    )
    return f"a process of user {user} listens that cannot be seen from here; {way}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _state(process: Process) -> str:
    now = _process(process.pid)
    return now.state if now else "gone"


def _named(processes: list[Process]) -> str:
    return " and ".join(map(str, processes))


def _pids(processes: list[Process]) -> str:
    return "pid " + ", ".join(str(process.pid) for process in processes)


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"


def _workers(targets: list[Process], roots: list[Process]) -> str:
    count = len(targets) - len(roots)
    return f" and {count} more below" if count else ""


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _headline(holding: Holding) -> str:
    places = sorted({listener.place for listener in holding.listening})
    what = f"listening on {', '.join(places)}" if places else "nobody listens"
    return f"port {holding.port}/{'udp' if holding.udp else 'tcp'}: {what}"


def _table(holding: Holding) -> list[str]:
    """One line a process: listeners first, parents before their workers."""
    processes = sorted(holding.processes, key=lambda p: (ROLES.index(p.role), p.start_ticks, p.pid))
    if not processes:
        return []
    head = f"  {'PID':>8}  {'USER':<10} {'AGE':>7}  {'ROLE':<13}  {'STATE':<9}  COMMAND"
    return [head] + [
        f"  {p.pid:>8}  {_user(p.uid):<10} {format_age(p.age_s):>7}  {p.role:<13}  {p.state:<9}  {p.command}"
        for p in processes
    ]


def _as_json(result: Result) -> dict[str, Any]:
    holding = result.holding
    return {
        "port": holding.port,
        "protocol": "udp" if holding.udp else "tcp",
        "outcome": _OUTCOMES[result.code],
        "listening": sorted({listener.place for listener in holding.listening}),
        "time_wait": holding.time_wait,
        "processes": [
            {
                "pid": process.pid,
                "parent": process.parent,
                "user": _user(process.uid),
                "age_s": round(process.age_s, 2),
                "role": process.role,
                "state": process.state,
                "command": process.argv,
            }
            for process in holding.processes
        ],
        "lines": result.lines,
    }


_OUTCOMES = {FREE: "free", NOTHING: "free", HELD: "held", REFUSED: "refused"}


def _told(results: list[Result], as_json: bool) -> str:
    if as_json:
        import json

        return json.dumps([_as_json(result) for result in results], indent=2)
    return "\n".join(
        line
        for result in results
        for line in (_headline(result.holding), *_table(result.holding), *(f"  {line}" for line in result.lines))
    )


# --- The command line ---


def _ports(text: str) -> range:
    """`12345` or `5557-5560`."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    ports = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a port (1 to 65535) nor a range such as 5557-5560")
    return ports


def _duration_s(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server.ports",
        description="Who holds a port, and how to free it.",
        epilog="Exit codes: 0 free, 1 held, 2 wrong usage, 3 refused or no permission, "
        "4 nothing was there (release --strict only).",
        allow_abbrev=False,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("ports", metavar="PORT", nargs="+", type=_ports, help="a port or a range such as 5557-5560")
    common.add_argument("--udp", action="store_true", help="UDP ports instead of TCP")
    common.add_argument("--json", action="store_true", help="print JSON for scripts")
    commands = parser.add_subparsers(dest="command", metavar="show | release", required=True)
    what = "Say who holds each port and why it is stuck. Touches nothing."
    commands.add_parser("show", parents=[common], help=what, description=what, allow_abbrev=False)
    what = "Free each port: TERM to its server, KILL after the grace. Clients are never touched."
    freeing = commands.add_parser("release", parents=[common], help=what, description=what, allow_abbrev=False)
    freeing.add_argument("--grace", type=_duration_s, default=5.0, help="time between TERM and KILL (default: 5s)")
    for flag, meaning in {
        "--include-accepted": "also end who is on the port without listening, but no client",
        "--any-user": "also end other users' processes",
        "--force": "also end what is neither a socketswarm server nor Locust",
        "--dry-run": "say what would be done, and do nothing",
        "--strict": "exit with 4 if nothing was there",
    }.items():
        freeing.add_argument(flag, action="store_true", help=meaning)
    return parser


def _show(ports: list[int], udp: bool) -> list[Result]:
    results = []
    for holding in _look_closely(ports, udp):
        held = bool(holding.listening) or not _is_free(holding)
        results.append(Result(holding, HELD if held else FREE, ["held" if held else "free", *_notes(holding)]))
    return results


def _confirm(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    asked = _parser().parse_args(arguments)
    ports = list(dict.fromkeys(port for some in asked.ports for port in some))
    if asked.command == "show":
        results = _show(ports, asked.udp)
    else:
        orders = Orders(asked.grace, asked.udp, asked.include_accepted, asked.any_user, asked.force, asked.dry_run)
        at_terminal = sys.stdin.isatty() and sys.stderr.isatty()
        results = release(
            ports,
            orders,
            say=lambda line: print(line, file=sys.stderr, flush=True),
            ask=_confirm if at_terminal and not orders.dry_run else None,
        )
    output.show(_told(results, asked.json))
    code = max((result.code for result in results), key=_BY_WEIGHT.index)
    return code if code != NOTHING or asked.strict else FREE


if __name__ == "__main__":
    gc.disable()  # a short life with thousands of small tuples: collecting took a tenth of it and found nothing
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
