"""The report as texts: what HTML, Markdown and the terminal show, so that all three say the same.

A `View` is made once from an analysis; report_files.py only lays it out. Texts are as people gave them: escaping
belongs to the format, so it happens where a format is written.
"""

import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from reports.analysis.summarise import Analysis
from reports.pages.recorded_tables import all_processes_table, event_table, process_table, tcp_table
from reports.pages.table import Table
from reports.pages.tables import (
    cost_table,
    failure_table,
    load_table,
    mode_table,
    offered_table,
    phase_table,
    rate,
    sweep_table,
    threshold_table,
)
from reports.run_folder import RunInfo
from reports.summary import (
    ACHIEVED_LIMIT,
    ROLE_NAMES,
    ControlGroupSummary,
    ModeSummary,
    ProcessSummary,
    ServerSummary,
    Summary,
)
from reports.texts import duration, mebibytes, ranges, significant

Facts = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class View:
    title: str
    subtitle: str
    verdict: str
    reason: str
    also_broken: list[str]
    sentence: str
    warnings: list[str]
    thresholds: Table
    has_load: bool
    """Whether there was a load of ours; without one, this is about costs only."""
    modes: Table
    costs: Table
    sweep: Table
    offered: Table
    load: Table
    phases: Table
    failures: Table
    processes: Table
    all_processes: Table
    tcp: Table
    events: Table
    facts: list[tuple[str, Facts]]
    """Headed groups of (name, value): the run, the load, the machine, which cores whose processes may use, the
    server."""
    command: str
    """Quoted for a shell."""


def view(analysis: Analysis) -> View:
    run, summary = analysis.run, analysis.summary
    started = datetime.fromtimestamp(run.started_wall_ns / 1e9, UTC)
    of = f" of {run.host}" if run.host else ""
    what = f"recording{of}" if run.model == "none" else f"{_load(run, summary)} against {run.host}"
    return View(
        title=run.label,
        subtitle=f"{started:%d %B %Y, %H:%M} UTC, {what}",
        verdict=summary.verdict,
        reason=summary.reason,
        also_broken=summary.also_broken,
        sentence=sentence(summary),
        warnings=summary.warnings,
        thresholds=threshold_table(summary.thresholds),
        has_load=summary.model != "none",
        modes=mode_table(summary),
        costs=cost_table(summary),
        sweep=sweep_table(summary.sweep),
        offered=offered_table(summary),
        load=load_table(summary),
        phases=phase_table(summary.phases),
        failures=failure_table(summary),
        processes=process_table(summary),
        all_processes=all_processes_table(summary),
        tcp=tcp_table(summary.tcp),
        events=event_table(analysis),
        facts=_facts(run, summary),
        command=shlex.join(run.command),
    )


def _load(run: RunInfo, summary: Summary) -> str:
    """Who offered how much: users, or arrivals, which may differ by phase."""
    if run.model == "closed":
        return f"{run.users} users"
    rates = [phase.offered_per_s for phase in summary.phases if phase.measured and phase.offered_per_s is not None]
    if not rates:
        return "open model"
    fewest, most = significant(min(rates)), significant(max(rates))
    offered = f"open model, {fewest if fewest == most else f'{fewest} to {most}'} arrivals/s"
    profile = run.load_options.get("arrival_profile", "constant")
    if profile in ("constant", "poisson"):
        return offered
    return f"{offered} in the mean ({profile} {run.load_options['arrival_rate']})"


# --- one sentence -----------------------------------------------------------------------------------------------------


def sentence(summary: Summary) -> str:
    """The run in one sentence: rates, workers, p99, CPU, and what short connections cost over long ones."""
    if summary.model == "none":
        return _costs(summary)
    measured = {mode.mode: mode for mode in summary.modes if mode.uploads}
    if not measured:
        return "Nothing was measured."
    if summary.verdict == "INVALID":
        return "Its numbers are told for who looks for the cause, and must not be used."
    workers = summary.server.workers
    who = f"With {workers} worker{'s' if workers > 1 else ''} the server" if workers else "The server"
    *clauses, last = (_clause(mode) for mode in measured.values())
    text = f"{who} took {', '.join(clauses)}{' and ' if clauses else ''}{last}"
    return f"{text}{_comparison(summary)}. What binds: {summary.binding}."


def _costs(summary: Summary) -> str:
    """A recording in one sentence: CPU and memory."""
    server = summary.server
    if server.cpu_total_s is None:
        return "No process of a server was recorded."
    known = [phase for phase in summary.phases if phase.server_cpu_s is not None]
    lasted_s = sum(phase.duration_s for phase in known)
    cores = sum(phase.server_cpu_s or 0 for phase in known) / lasted_s if lasted_s else 0.0
    memory = "" if server.memory_peak_bytes is None else f" and at most {_memory(server, server.memory_peak_bytes)}"
    number = sum(process.role.startswith("server-") for process in summary.processes)
    processes = f"{number} process{'es' if number > 1 else ''}"
    return f"In {significant(lasted_s)} s the server, {processes} in all, used {significant(cores)} cores{memory}."


def _memory(server: ServerSummary, peak_bytes: int) -> str:
    """PSS is read seldom, and may have been higher in between; RSS always, and is too high where processes share."""
    peak = mebibytes(peak_bytes)
    if server.memory_kind == "RSS" or server.rss_peak_bytes is None:
        return f"{peak} (RSS)"
    times = "once" if server.memory_readings == 1 else f"{server.memory_readings} times"
    most = mebibytes(server.rss_peak_bytes)
    return f"{peak} (PSS, read {times}; its RSS was at most {most})"


def _clause(mode: ModeSummary) -> str:
    details = _slowest(mode)
    if mode.server_core_us_per_upload is not None:
        cores = mode.server_core_us_per_upload * mode.uploads_per_s / 1e6
        details.append(f"server CPU {significant(cores)} cores")
    if mode.at_capacity:
        details.append("at capacity")
    over = f"{mode.mode} connections"
    if mode.mode not in ("long", "short"):
        over = f"connections of {mode.mode.removesuffix(' per connection')} uploads"
    suffix = f" ({', '.join(details)})" if details else ""
    return f"{rate(mode, mode.uploads_per_s)}{_of_offered(mode)} uploads/s over {over}{suffix}"


def _of_offered(mode: ModeSummary) -> str:
    """What was offered, where it is another number than what was achieved."""
    if mode.offered_per_s is None or mode.achieved_share is None or mode.achieved_share >= ACHIEVED_LIMIT:
        return ""
    return f" of {significant(mode.offered_per_s)} offered"


def _slowest(mode: ModeSummary) -> list[str]:
    """The p99 of the size class with most uploads, since percentiles over mixed sizes say what was mixed; p95 where it
    has too few samples for that, and nothing where it has too few for either."""
    size = max(mode.sizes, key=lambda size: size.uploads)
    latency = size.response_us or size.transaction_us
    what = "transactions" if size.response_us is None else "responses"
    if len(mode.sizes) > 1:
        what += f" {size.size_class}"
    for percentile, value in ((99, latency.p99), (95, latency.p95)):
        if value is not None:
            if latency.is_bound(value):
                return [f"{100 - percentile} % of {what} took at least {duration(value)}"]
            return [f"{percentile} % of {what} within {duration(value)}"]
    return []


def _comparison(summary: Summary) -> str:
    """Nothing where other programs took most of the CPU that is compared: its ratio would be chance."""
    contrast = summary.contrast
    if contrast is None or contrast.busy_core_us is None:
        return ""
    if any(phase.measured and phase.mostly_foreign for phase in summary.phases):
        return ""
    cost = contrast.busy_core_us
    spread = f" ({significant(cost.lowest)} to {significant(cost.highest)})" if contrast.blocks > 1 else ""
    return f"; a short upload cost {significant(cost.median)}{spread} times the CPU of a long one, all cores counted"


# --- circumstances ----------------------------------------------------------------------------------------------------


def _facts(run: RunInfo, summary: Summary) -> list[tuple[str, Facts]]:
    ending = "cut off: nobody ended it" if run.ended is None else f"{run.ended.how}: {run.ended.reason}"
    commit = "unknown" if run.git_commit is None else run.git_commit[:12] + (", with changes" if run.git_dirty else "")
    server = [("recorded", "no")]
    if run.server is not None:
        server = [("command", shlex.join(run.server.command)), ("pid", str(run.server.pid))]
        server += [(_spelled_out(name), value) for name, value in (run.server.options or {}).items()]
    return [
        ("Run", [("id", run.id), ("ended", ending), ("target", run.host), ("commit", commit)]),
        ("Load", _pairs(_load_facts(run))),
        ("Machine", _pairs(run.environment)),
        ("Core placement", _placement(summary.processes)),
        *([("Control groups", _limits(summary.control_groups))] if summary.control_groups else []),
        ("Server", server),
    ]


def _placement(processes: Sequence[ProcessSummary]) -> Facts:
    """The cores that processes of one role may run on; workers by slot."""
    found: defaultdict[tuple[str, str], list[ProcessSummary]] = defaultdict(list)
    for process in processes:
        if process.cores is not None:
            found[ROLE_NAMES[process.role], process.cores].append(process)
    if not found:
        return [("recorded", "no")]
    return [(_together(role, members), _cores(cores)) for (role, cores), members in found.items()]


def _together(role: str, members: Sequence[ProcessSummary]) -> str:
    slots = {process.slot for process in members if process.slot is not None}
    if slots:
        return f"{role}{'s' if len(slots) > 1 else ''} {ranges(slots)}"
    return role if len(members) == 1 else f"{len(members)} × {role}"


def _cores(listed: str) -> str:
    return f"core {listed}" if listed.isdecimal() else f"cores {listed}"


def _limits(groups: Sequence[ControlGroupSummary]) -> Facts:
    """What limited server or load from outside, by the folder that says so."""
    found: Facts = []
    for group in groups:
        who = ", ".join(ROLE_NAMES[role] for role in group.roles)
        if group.quota_cores is not None:
            used_up = f"used up in {group.throttled_periods or 0:,} of {group.periods or 0:,} periods"
            found.append((group.path, f"{significant(group.quota_cores)} cores for {who}, {used_up}"))
        if group.memory_limit_bytes is not None:
            hits, peak = group.memory_limit_hits or 0, mebibytes(group.memory_peak_bytes or 0)
            limit = f"{mebibytes(group.memory_limit_bytes)} of memory for {who}, reached {hits:,} times"
            killed = f"; {group.oom_kills:,} processes were killed for it" if group.oom_kills else ""
            found.append((group.path, f"{limit}; at most {peak} were seen{killed}"))
    return found


def _load_facts(run: RunInfo) -> dict[str, Any]:
    users = {"users": run.users} if run.model == "closed" else {}
    if run.model == "none":
        return {"model": "none of ours"}
    return {"model": run.model, **users, "seed": run.seed, **run.load_options}


def _pairs(values: dict[str, Any]) -> Facts:
    return [(_spelled_out(key), _fact(key, value)) for key, value in values.items()]


def _spelled_out(key: str) -> str:
    """A name in words, but for those of the kernel's own settings, which have dots. Its unit is told with the value."""
    return key if "." in key else key.removesuffix("_bytes").removesuffix("_s").replace("_", " ")


def _fact(key: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "unknown", True: "yes", False: "no"}[value]
    if key.endswith("_bytes") and isinstance(value, int | float):
        return f"{significant(value / (1 << 30))} GiB"
    unit = " s" if key.endswith("_s") else ""
    return f"{significant(value) if isinstance(value, float) else value}{unit}" or "none"
