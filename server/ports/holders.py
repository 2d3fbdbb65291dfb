"""Who holds a port: the sockets on it, the processes that have these open, and which of them began it.

    look      every socket on the port, the processes that have it open, and the part each one plays
    climb     from a listener to the topmost ancestor with the same listening socket: the pre-fork parent

Whoever only wants to know, as the reports' recorder does each second, needs no more than this file: it signals nobody
and prints nothing; the most it does is to try whether an address can be bound. Why a port is as it is, in words, is
here too, since `release` and the command both say so.

It reads /proc itself. psutil.net_connections() names one process for each socket, but the listening socket of a
pre-forked server is open in all of its processes, and which of them began it is the question. Asking psutil about each
process takes 15 to 128 ms a process, and its import as long as the whole look here. For the same reason values are
named tuples: `python -m server.ports show` waits for every import.
"""

import errno
import os
import pwd
import socket
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from server.ports import sockets
from server.ports.sockets import kernel_text
from server.printing import one_line

# What a process does with the port. Bound means bound without listening or being connected.
# A server is one that a client calls from the port, at another port of its own.
LISTENER, CLIENT, SERVER, ACCEPTED_ONLY, BOUND = "listener", "client", "server", "accepted-only", "bound"
ROLES = (LISTENER, CLIENT, SERVER, ACCEPTED_ONLY, BOUND)  # of several the first counts: who is a client is left alone

# Programs that start others and pass their descriptors on, but are nobody's supervisor: climbing ends below them.
_SHELLS = ("sh", "bash", "dash", "zsh", "fish", "ksh", "csh", "tcsh", "busybox")
LAUNCHERS = frozenset((*_SHELLS, "make", "gmake", "init", "systemd", "tini", "dumb-init", "docker-init"))

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
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


# A port, or the path of a unix socket, which is held and freed in the same way.
Place = int | str

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
    """Connections waiting to be accepted; says nothing of a UDP socket."""

    @property
    def place(self) -> str:
        """Address and port as people write them."""
        if self.family == socket.AF_UNIX:
            return self.address
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
        """The command line in one line, without the program's folder; a process without one has only a name. Every
        process chooses both: escaped, or it could write lines of its own here."""
        program, *arguments = self.argv or (f"[{self.name}]",)
        name = program if ": " in program else Path(program).name  # a title may name a path, as nginx's does
        return one_line(" ".join([name, *arguments]))

    @property
    def age_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start_ticks / TICKS_PER_S

    def __str__(self) -> str:
        command = self.command
        return f"pid {self.pid} ({command if len(command) <= 80 else command[:79] + '…'})"


class Holding(NamedTuple):
    """Everything that can be seen of one port at one moment."""

    port: Place
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
        seen = links_of(self.having(LISTENER))
        return [listener for listener in self.listening if listener.link not in seen]


# --- What other modules ask ---


def look(ports: Collection[Place], udp: bool = False) -> list[Holding]:
    """What can be seen of each port. One scan over all processes, however many ports there are."""
    return _holdings(_tables(ports, udp), udp)


def look_closely(ports: Collection[Place], udp: bool) -> list[Holding]:
    """What `look` finds; where a port cannot be bound though nobody listens, sockets that are only bound count too."""
    tables = _tables(ports, udp)
    for port, table in tables.items():
        if isinstance(port, int) and not (udp or table.listening or is_free(Holding(port, udp, (), (), 0))):
            table.parts[BOUND].update(_bound(port))
    return _holdings(tables, udp)


def is_free(first: Holding) -> bool:
    """Whether every address that was listened on (or any, if none was) can be bound now.

    TCP is tried with SO_REUSEADDR, as servers do, which gets past TIME_WAIT and connections still being finished. UDP
    is tried without: there the option would let two programs share the port. Where a path is, nobody may listen.
    """
    if isinstance(first.port, str):
        return not sockets.listening_at(first.port)
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


def still_holds(process: Process) -> bool:
    """Whether this very process, and no later one of its pid, still has one of its sockets open."""
    return _start_ticks(process.pid) == process.start_ticks and bool(_open_sockets(process.pid, process.links))


_known_roots: dict[int, tuple[Process, str]] = {}
"""What `listening_root` found last, by port, and the path in /proc of a listening socket that it has open."""


def listening_root(port: int) -> int | None:
    """Pid of the topmost ancestor with a listening TCP socket on `port`; None when nobody visible has one.

    Of several programs that share the port it is the oldest. Meant to be asked each second: as long as the last
    answer still has that socket open, two files in /proc are read and nothing is scanned.
    """
    if port in _known_roots:
        root, descriptor = _known_roots.pop(port)
        if _link(descriptor) in root.links and _start_ticks(root.pid) == root.start_ticks:
            _known_roots[port] = root, descriptor
            return root.pid
    [holding] = look([port])
    roots = roots_of(holding.having(LISTENER))
    if not roots:
        return None
    root = min(roots, key=lambda process: (process.start_ticks, process.pid))
    for descriptor in _open_sockets(root.pid, root.links):
        _known_roots[port] = root, descriptor
    return root.pid


def why_unseen(port: int, way: str) -> str | None:
    """As `describe_unseen`; None where somebody visible listens, or nobody at all."""
    [holding] = look([port])
    return describe_unseen(holding, way) if holding.unseen else None


def describe_holder(port: int) -> str:
    """One line for whoever could not bind TCP `port`: who holds it and what to do."""
    [holding] = look([port])
    if roots := roots_of(holding.having(LISTENER)):
        return f"port {port} is held by {named(roots)}; free it with: make killport PORT={port}"
    if holding.unseen:
        return f"port {port} is in use: {describe_unseen(holding, f'try: sudo make killport PORT={port} ANY_USER=1')}"
    return f"port {port} is in use, but nobody listens on it; what is known: python -m server.ports show {port}"


# --- Look: sockets, their owners, the part each one plays ---


class _Table(NamedTuple):
    """What the kernel lists for one port: sockets by the part that having them open means, without their processes."""

    listening: list[Listener]
    parts: dict[str, set[str]]
    time_wait: list[str]


def _tables(places: Collection[Place], udp: bool) -> dict[Place, _Table]:
    """Sort all sockets that have one of the ports at either end, or listen at one of the paths."""
    tables = {place: _Table([], {role: set() for role in ROLES}, []) for place in places}
    for path in [place for place in places if isinstance(place, str)]:
        for link in sockets.listening_at(path):
            tables[path].parts[LISTENER].add(link)
            tables[path].listening.append(Listener(link, socket.AF_UNIX, path, 0, _owner_of(path), 0))
    ports = [place for place in places if isinstance(place, int)]
    lowest, highest = map(int, (kernel_text("/proc/sys/net/ipv4/ip_local_port_range") or "32768 60999").split())
    listens = sockets.UDP_UNCONNECTED if udp else sockets.LISTEN
    rows = sockets.of_ports(ports, udp=udp) if ports else []
    listened_on = {row.here for row in rows if row.state == listens}
    is_left = not udp and any(row.here in tables and row.here not in listened_on for row in rows)
    called = _listened_on() if is_left else set()

    def calls_out(here: int, there: int) -> bool:
        """From a port of the range that the kernel hands out to one outside of it, or from where nobody listens to
        where somebody does: this was not accepted, some program called out from the port asked for."""
        return (lowest <= here <= highest and there < lowest) or (here not in listened_on and there in called)

    for row in rows:
        table = tables[row.here if row.here in tables else row.there]
        if row.state == sockets.TIME_WAIT:
            table.time_wait.append(row.link)
        elif row.here not in tables:
            is_called = row.there not in listened_on and calls_out(row.there, row.here)
            table.parts[SERVER if is_called else CLIENT].add(row.link)
        elif row.state == listens:
            address = socket.inet_ntop(row.family, row.local[: 16 if row.family == socket.AF_INET6 else 4])
            table.parts[LISTENER].add(row.link)
            table.listening.append(Listener(row.link, row.family, address, row.here, row.uid, row.queue))
        else:  # connections that were not called out cannot be told apart, and need an order to end
            table.parts[CLIENT if calls_out(row.here, row.there) else ACCEPTED_ONLY].add(row.link)
    return tables


def _listened_on() -> set[int]:
    """All TCP ports that somebody here listens on."""
    try:
        return {row.here for row in sockets.diagnosed(1 << sockets.LISTEN)}
    except OSError:
        return set()  # as in `sockets.of_ports`


def _owner_of(path: str) -> int:
    try:
        return os.stat(path).st_uid  # noqa: PTH116
    except OSError:
        return 0  # removed, or in a folder that is closed to us


def _bound(port: int) -> list[str]:
    """Sockets that are bound to the port and nothing else. /proc/net lists none; the diagnostics take 10 ms for it."""
    try:
        return [row.link for row in sockets.diagnosed(1 << sockets.BOUND, local=port)]
    except OSError:
        return []  # as in `sockets.of_ports`


def _holdings(tables: dict[Place, _Table], udp: bool) -> list[Holding]:
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
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return {}
    if not names and (thread := living_thread(pid)) != pid:
        return _open_sockets(thread, links)
    return {folder + name: link for name in names if (link := _link(folder + name)) in links}


def _players(table: _Table, owners: dict[int, set[str]]) -> Iterator[Process]:
    """The processes that have sockets of one port open, each with the first of its parts."""
    for pid, held in owners.items():
        role = next((role for role, links in table.parts.items() if held & links), None)
        if role and (process := read_process(pid)):
            yield process._replace(role=role, links=frozenset(held & table.parts[role]))


def links_of(processes: list[Process]) -> set[str]:
    """All sockets on the port that these have open."""
    return {link for process in processes for link in process.links}


def living_thread(pid: int) -> int:
    """The thread that has what its process has: the main one, whose number is the pid, unless that ended before others.
    The kernel then calls the process a zombie, and shows no descriptors, memory or command line in /proc/PID any more,
    but in /proc/TID of each of the others, which it does not list."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
    except OSError:
        return pid
    if len(threads) == 1:
        return pid
    return next((int(thread) for thread in (str(pid), *threads) if not _is_zombie(thread)), pid)


def _is_zombie(thread: str) -> bool:
    text = kernel_text(f"/proc/{thread}/stat")
    return text[text.rfind(")") + 2 :][:1] in ("", "Z", "X")


def read_process(pid: int) -> Process | None:
    """A process as it is now; None when it has ended."""
    text = kernel_text(f"/proc/{pid}/stat")
    argv = kernel_text(f"/proc/{pid}/cmdline") or kernel_text(f"/proc/{living_thread(pid)}/cmdline")
    argv = argv.rstrip("\0")
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
    process = read_process(pid)
    return process.start_ticks if process else None


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115
    except OSError:
        return ""


# --- Climb ---


def ancestors(process: Process) -> Iterator[Process]:
    """Parent, grandparent and so on, without init."""
    seen = {process.pid}  # a pid that is reused while we walk could lead in a circle
    while process.parent > 1 and process.parent not in seen and (parent := read_process(process.parent)):
        seen.add(parent.pid)
        yield parent
        process = parent


def root_of(process: Process, holders: dict[int, Process], stop: Collection[int] = ()) -> Process:
    """The topmost ancestor that has one of the process's own sockets open."""
    root = process
    for ancestor in ancestors(process):
        if ancestor.name in LAUNCHERS or ancestor.pid in stop:
            break
        holder = holders.get(ancestor.pid)
        if holder and holder.links & process.links:
            root = holder
    return root


def roots_of(processes: list[Process], stop: Collection[int] = ()) -> list[Process]:
    """The roots of all trees among these processes, each once."""
    holders = {process.pid: process for process in processes}
    return list({(root := root_of(process, holders, stop)).pid: root for process in processes}.values())


# --- Tell ---


def notes_on(holding: Holding) -> list[str]:
    """Why a port is as it is: one line for each thing that a person may trip over."""
    notes = []
    listeners = holding.having(LISTENER)
    for state, meaning in _STUCK.items():
        if stuck := [process for process in listeners if process.state == state]:
            notes.append(f"{_pids(stuck)} {meaning}")
    if len(roots := roots_of(listeners)) > 1:
        notes.append(f"{len(roots)} programs share it: {named(roots)}")
    if waiting := sum(listener.queue for listener in holding.listening if not holding.udp):
        notes.append(f"waiting to be accepted: {_connections(waiting)}")
    if accepted := holding.having(ACCEPTED_ONLY, BOUND):
        notes.append(
            f"on it without listening: {_pids(accepted)}. Whoever does not set SO_REUSEADDR cannot bind meanwhile, "
            "and nobody can if the old listener did not; release --include-accepted ends it too, if it is not ours "
            "with --force (INCLUDE_ACCEPTED=1 FORCE=1 of make)"
        )
    if holding.unseen:
        place = holding.port if isinstance(holding.port, int) else f"unix://{one_line(holding.port)}"
        notes.append(describe_unseen(holding, f"see it with: sudo python -m server.ports show {place}"))
    if holding.time_wait:
        notes.append(
            f"{_connections(holding.time_wait)} in TIME_WAIT: of no process any more, and over within 60 s. "
            "A server that sets SO_REUSEADDR need not wait for this, unless the old one did not set it"
        )
    return notes


_STUCK = {
    "zombie": "lost its main thread while others go on: TERM ends it only if it does not wait for that; KILL works",
    "stopped": "stopped (Ctrl-Z or SIGSTOP): acts on TERM only after `kill -CONT`; KILL works",
    "traced": "held by a debugger: acts on TERM only when that lets go; KILL works",
    "disk-wait": "waiting inside the kernel, usually for a disk: no signal acts until that is over",
}


def describe_unseen(holding: Holding, way: str) -> str:
    """One clause for a port with a listener whose owner cannot be seen: whose it is, and what helps who is not root."""
    user = user_name(holding.unseen[0].uid)
    if os.geteuid() == 0:
        way = "another container or the kernel has it"
    return f"a process of user {user} listens that cannot be seen from here; {way}"


def for_make(place: Place) -> str:
    """As `make killport` takes it."""
    return f"PORT={place}" if isinstance(place, int) else f"SOCKET={one_line(place)}"


def user_name(uid: int) -> str:
    """The user's name, or the number of one who has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def named(processes: list[Process]) -> str:
    """All of these in one clause, each by pid and command."""
    return " and ".join(map(str, processes))


def _pids(processes: list[Process]) -> str:
    return "pid " + ", ".join(str(process.pid) for process in processes)


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"
