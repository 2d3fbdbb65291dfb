"""What binds: the resource of which more would have let the run go faster, with its evidence in brackets.

The order is that of explanation: a full generator hides everything behind it; a full server fills its accept queue; so
the first that was at its limit is named. Where nothing was, the load asked for no more.
"""

from collections.abc import Sequence

from reports.missing_values import most
from reports.summary import CAPACITY, THROTTLED_LIMIT, ControlGroupSummary, Model, PhaseSummary, TcpSummary
from reports.texts import mebibytes, percent, significant
from server.failure_codes import NO_LOCAL_PORT

DISK_WAIT_LIMIT = 0.10  # of all cores' time, idle because something waited for a disk


def binding(
    phases: Sequence[PhaseSummary], tcp: TcpSummary | None, groups: Sequence[ControlGroupSummary], model: Model
) -> str:
    """Empty where nothing was measured."""
    measured = [phase for phase in phases if phase.measured and phase.uploads]
    if not measured or model == "none":
        return ""
    return (
        _quota([phase.load_throttled_share for phase in measured], groups, "load-")
        or _generator(measured)
        or _ports(measured)
        or _quota([phase.server_throttled_share for phase in measured], groups, "server-")
        or _server(measured)
        or _machine(measured)
        or _accept_queue(tcp)
        or _memory(groups)
        or _disk(measured)
        or _nothing(measured, model)
    )


def _quota(shares: Sequence[float | None], groups: Sequence[ControlGroupSummary], roles: str) -> str:
    if (most(shares) or 0) <= THROTTLED_LIMIT:
        return ""
    own = [group for group in groups if any(role.startswith(roles) for role in group.roles) and group.periods]
    worst = max(own, key=lambda group: (group.throttled_periods or 0) / (group.periods or 1))
    used_up = f"used up in {worst.throttled_periods or 0:,} of {worst.periods or 0:,} periods"
    return (
        f"the CPU quota of {_whose(worst)} ({significant(worst.quota_cores or 0)} cores, {used_up}, for "
        f"{significant(worst.throttled_s or 0)} s in all; raise it in {worst.path}: systemd's CPUQuota=, docker's "
        "--cpus)"
    )


def _whose(group: ControlGroupSummary) -> str:
    server, load = (any(role.startswith(side) for role in group.roles) for side in ("server-", "load-"))
    return "server and load together" if server and load else "the server" if server else "the load"


def _generator(measured: Sequence[PhaseSummary]) -> str:
    worst = max(measured, key=lambda phase: phase.generator_share or 0)
    if not worst.generator_limited:
        return ""
    return f"the load generator (its busiest process used {percent(worst.generator_share or 0)} of a core)"


def _ports(measured: Sequence[PhaseSummary]) -> str:
    failed = sum(phase.failures.get(NO_LOCAL_PORT, 0) for phase in measured)
    return f"the load's ports ({failed:,} connections found none free)" if failed else ""


def _server(measured: Sequence[PhaseSummary]) -> str:
    full = [phase for phase in measured if phase.at_capacity]
    if not full:
        return ""
    worst = max(full, key=lambda phase: phase.busiest_worker_share or 0)
    busiest, mean = worst.busiest_worker_share or 0, worst.mean_worker_share or 0
    if mean >= CAPACITY:
        return f"server CPU (its workers used {percent(mean)} of a core each)"
    return f"CPU of one worker (it used {percent(busiest)} of a core; the workers' mean is {percent(mean)})"


def _machine(measured: Sequence[PhaseSummary]) -> str:
    worst = max(measured, key=lambda phase: phase.machine_share or 0)
    if not worst.machine_limited:
        return ""
    return f"the machine's CPU (all that ran there used {percent(worst.machine_share or 0)} of it)"


def _accept_queue(tcp: TcpSummary | None) -> str:
    if tcp is None or not tcp.dropped:
        return ""
    limit = "" if tcp.queue_limit is None else f"; a socket holds {tcp.queue_limit:,}"
    return f"the accept queue ({tcp.dropped:,} connections were dropped{limit})"


def _memory(groups: Sequence[ControlGroupSummary]) -> str:
    """What a limit takes back may be no more than files in the page cache, so only who was killed is a proof."""
    worst = max(groups, key=lambda group: (group.oom_kills or 0, group.memory_limit_hits or 0), default=None)
    if worst is None or not (worst.oom_kills or worst.memory_limit_hits):
        return ""
    limit = f"{mebibytes(worst.memory_limit_bytes or 0)}, reached {worst.memory_limit_hits or 0:,} times"
    killed = f"; {worst.oom_kills:,} processes were killed for it" if worst.oom_kills else ""
    return (
        f"{'' if killed else 'perhaps '}the memory limit of {_whose(worst)} ({limit}{killed}; raise it in "
        f"{worst.path}: systemd's MemoryMax=, docker's --memory)"
    )


def _disk(measured: Sequence[PhaseSummary]) -> str:
    share = max(phase.disk_wait_share or 0 for phase in measured)
    if share < DISK_WAIT_LIMIT:
        return ""
    return f"perhaps the disk (cores were idle for it {percent(share)} of the time)"


def _nothing(measured: Sequence[PhaseSummary], model: Model) -> str:
    share = most(phase.busiest_worker_share for phase in measured)
    busiest = "" if share is None else f"the busiest worker used {percent(share)} of a core; "
    asked = "the arrival rate" if model == "open" else "the users and their pauses"
    return f"nothing ({busiest}{asked} asked for no more)"
