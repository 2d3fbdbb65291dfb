"""How to free a port: end who listens on it, and nobody who only uses it.

`lsof -i :PORT | kill -9` also ends the clients connected to the port, killing one worker of a pre-fork server frees
nothing because it is replaced, and killing only its parent leaves orphans on the port. So here the way, from the
pre-fork parents that `holders` has found, is:

    guard     never a client, pid 1, ourselves or our ancestors; others only when told
    end       TERM to the parent, wait, then KILL parent first and workers after, through pidfds
    verify    by really binding the address

Three rules make it safe. A port is all or nothing: where one holder is refused the others are left alone too, since
the port would not become free. A process is signalled only if, after its pidfd was opened, its start time and its
socket are still the ones seen. And the goal is the port, not the process: a server that has let go of the port and is
finishing its connections is not killed.

Nothing is printed or asked here: progress and questions go through what the caller hands in. `server.ports` says why
imports stay light.
"""

import os
import signal
import time
from collections.abc import Callable, Collection
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from server.ports.holders import (
    ACCEPTED_ONLY,
    BOUND,
    CLIENT,
    LISTENER,
    SERVER,
    Holding,
    Identity,
    Place,
    Process,
    ancestors,
    describe_unseen,
    for_make,
    is_free,
    links_of,
    look_closely,
    named,
    notes_on,
    read_process,
    root_of,
    roots_of,
    still_holds,
    user_name,
)
from server.ports.sockets import kernel_text
from server.printing import one_line

# What became of a port, and the command's exit codes, but for the last: there is nothing to free then either.
FREE, HELD, USAGE, REFUSED, NOTHING, ONLY_CLIENTS = range(6)

ROUNDS = 3  # so often is a port freed that somebody takes again
_POLL_S = 0.02
_KILL_TAKES_S = 0.8
# How long a freed port is watched. Who respawns a process in a loop does so at once, systemd after 100 ms by default.
_WATCH_OURS_S, _WATCH_OTHERS_S = 0.05, 0.5


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


# --- Release ---


def release(ports: Collection[Place], orders: Orders, say: Say, ask: Ask | None = None) -> list[Result]:
    """Free each port in turn. `say` gets progress; without `ask` nobody is asked, and what needs a yes is refused."""
    results = []
    for holding in look_closely(ports, orders.udp):
        try:
            results.append(_release(holding, orders, say, ask))
        except PermissionError as error:  # seen but not to be signalled: rare, as in a sandbox
            results.append(
                Result(holding, REFUSED, [f"refused: the kernel forbids this user to signal it ({error.strerror})"])
            )
    return results


def _release(first: Holding, orders: Orders, say: Say, ask: Ask | None) -> Result:
    lines: list[str] = []
    ourselves = _ourselves()
    ended: set[Identity] = set()
    holding = first
    for _ in range(ROUNDS):
        if holding.unseen:  # perhaps born or ended between the look at sockets and the look at processes
            [holding] = look_closely([first.port], first.udp)
        targets = holding.having(*orders.roles)
        if not targets and not holding.unseen:
            break
        if targets and ended >= {process.identity for process in targets}:
            break  # KILL did not end them: another round would not either
        roots = roots_of(targets, ourselves)
        if reasons := _refusals(holding, targets, roots, orders, ourselves, ask):
            return Result(first, REFUSED, [*lines, *(f"refused: {reason}" for reason in reasons)])
        below = len(targets) - len(roots)
        who = named(roots) + (f" and {below} more below" if below else "")
        if orders.dry_run:
            return Result(first, HELD, [*lines, f"would send TERM to {who}; KILL after {orders.grace_s:g} s"])
        watch_s = _watch_s(roots)
        lines.append(f"{who}: {_end(first, targets, roots, orders, say)}")
        ended |= {process.identity for process in targets}
        _wait(lambda: not is_free(first), watch_s)
        [holding] = look_closely([first.port], first.udp)
    return _verified(first, holding, ended, lines)


# --- Guard ---


def _ourselves() -> set[int]:
    """This process and everybody above it."""
    me = read_process(os.getpid())
    assert me is not None
    return {me.pid, *(ancestor.pid for ancestor in ancestors(me))}


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
    return _shows_state(process)


def _shows_state(process: Process) -> bool:
    """Whether it is the supervisor of a running server, as `scoreboard.read_state` says. That needs more than the
    standard library, and `make killport` takes any Python."""
    import json

    path = Path(f"/dev/shm/socketswarm-{process.uid}/{process.pid}/state.json")
    try:
        state = json.loads(path.read_bytes()) if path.lstat().st_uid == process.uid else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(state, dict) and state.get("start_ticks") == process.start_ticks


def _forbidden(process: Process, root: Process, orders: Orders, ourselves: Collection[int]) -> str | None:
    """Why this process must not be signalled, whoever asks. What belongs to a server of ours is its user's: the status
    helper of root's gave its own rights up, and is nobody's."""
    if process.pid == 1:
        return f"{process} is init; if it listens for a service, stop that: systemctl list-sockets"
    if process.pid in ourselves:
        return f"{process} is this command itself or started it"
    if process.uid != os.geteuid() and not orders.any_user and not (root.uid == os.geteuid() and _is_ours(root)):
        return f"{process} belongs to user {user_name(process.uid)}; --any-user (ANY_USER=1 of make) ends it too"
    return None


def _refusals(
    holding: Holding, targets: list[Process], roots: list[Process], orders: Orders, ourselves: set[int], ask: Ask | None
) -> list[str]:
    """Why the port will not be freed; empty when it may be. Only what is refused for nothing else is asked about."""
    holders = {process.pid: process for process in targets}
    reasons = [
        reason
        for process in targets
        if (reason := _forbidden(process, root_of(process, holders, ourselves), orders, ourselves))
    ]
    if holding.unseen:
        reasons.append(describe_unseen(holding, f"try: sudo make killport {for_make(holding.port)} ANY_USER=1"))
    if reasons:
        return reasons
    for root in roots:
        if orders.force or _is_ours(root):
            continue
        if not (ask and ask(f"{root} is neither a socketswarm server nor Locust. End it?")):
            reasons.append(f"{root} is neither a socketswarm server nor Locust; --force (FORCE=1 of make) ends it too")
    return reasons


# --- End ---


def _end(first: Holding, targets: list[Process], roots: list[Process], orders: Orders, say: Say) -> str:
    """TERM to the roots; after the grace KILL to them, then to whoever still has their sockets. Says how it went."""
    began = time.monotonic()
    silent = [process for process in targets if process.role != LISTENER]  # a bind may work in spite of these

    def done() -> bool:
        # Bound or not: once nobody has the sockets any more, waiting and killing change nothing.
        return not any(map(still_holds, silent)) and (is_free(first) or not any(map(still_holds, targets)))

    def progress(waited_s: int) -> None:
        states = ", ".join(f"{root.pid} is {_state(root)}" for root in roots if still_holds(root))
        say(f"port {first.port}: waiting, {waited_s} s of {orders.grace_s:g} s{states and f' (pid {states})'}")

    signalled = [root for root in roots if _signal(root, signal.SIGTERM)]
    if not signalled:
        return "had gone before it was signalled"
    if _wait(done, orders.grace_s, progress):
        return f"let go after TERM, in {time.monotonic() - began:.1f} s"
    for root in roots:  # first, so that none of them can replace a worker
        _signal(root, signal.SIGKILL)
    links = links_of(targets)
    allowed = {process.identity for process in targets}
    ourselves = _ourselves()
    deadline = time.monotonic() + _KILL_TAKES_S
    while not _wait(done, _POLL_S) and time.monotonic() < deadline:
        [now] = look_closely([first.port], first.udp)
        for process in now.having(*orders.roles):
            # Whoever has the very socket of a target got it from there. Workers forked since count too.
            if process.links & links and (
                process.identity in allowed or not _forbidden(process, process, orders, ourselves)
            ):
                _signal(process, signal.SIGKILL)
    return f"killed, {orders.grace_s:g} s after TERM"


def _state(process: Process) -> str:
    now = read_process(process.pid)
    return now.state if now else "gone"


def _signal(process: Process, number: signal.Signals) -> bool:
    """Signal this very process if it still has its sockets; False when it has ended or let go of them.

    The pidfd comes first: from then on the pid cannot turn into somebody else between check and signal.
    """
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not still_holds(process):
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


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


def _verified(first: Holding, last: Holding, ended: set[Identity], lines: list[str]) -> Result:
    """The end of a release: whether the port is free now, and if not, why."""
    listeners = last.having(LISTENER)
    survivors = [process for process in listeners if process.identity in ended]
    if not last.listening and is_free(first):
        code, verdict = (FREE if ended else NOTHING), "free"
    elif survivors:
        code, verdict = HELD, f"still held: {named(survivors)} did not end, not even by KILL"
    elif last.listening:
        code, verdict = HELD, f"still held: taken again by {named(listeners) or 'somebody'}, {_starter(listeners)}"
    elif not ended and last.having(CLIENT, SERVER) and not last.having(ACCEPTED_ONLY, BOUND):
        code, verdict = (
            ONLY_CLIENTS,
            "nothing to free: a client's connection has the port until it ends, and is left alone",
        )
    elif last.having(ACCEPTED_ONLY, BOUND, CLIENT, SERVER):
        code, verdict = HELD, "still held, though nobody listens"
    else:
        # TIME_WAIT and its like keep the SO_REUSEADDR of the socket they come from; binding takes both sides' consent.
        code, verdict = HELD, "not free yet: a server without SO_REUSEADDR left connections that end by themselves"
    return Result(first, code, [*lines, verdict, *notes_on(last)])


def _starter(processes: list[Process]) -> str:
    """Who keeps starting these, and what to do about it."""
    for process in processes:
        if unit := _unit(process):
            return f"which systemd starts: systemctl stop {unit}"
        parent = read_process(process.parent)
        if parent and parent.pid != 1:
            return f"which is started by {parent}: end that first"
    return "started by somebody who cannot be named"


def _unit(process: Process) -> str | None:
    """The systemd service that a process belongs to; None for login sessions and outside systemd."""
    for line in kernel_text(f"/proc/{process.pid}/cgroup").splitlines():
        name = line.rpartition("/")[2]
        if name.endswith(".service") and not name.startswith("user@"):
            return one_line(name)
    return None
