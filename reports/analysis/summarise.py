"""From a run folder to numbers: what the load got, what every process paid for it, and whether to believe it.

Everything is derived from cumulative counters and merged histograms; nothing is drawn and nothing is printed. This file
only joins the steps, each of which has a file of its own:

    evidence ─► accounts ─► server_cpu ─► phases ─► modes ─► verdict ─► conditions ─► summary.json
                    └──────────────► processes ──────────► timeline ─► arrays, for the charts
"""

from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from reports.analysis import conditions
from reports.analysis.accounts import tracks
from reports.analysis.binding import binding
from reports.analysis.connection_cost import contrast, sweep_fit
from reports.analysis.evidence import count, read
from reports.analysis.histograms import PercentileCurve, percentile_curves
from reports.analysis.modes import mode_summaries
from reports.analysis.phases import phase_summaries
from reports.analysis.processes import process_summary, server_summary
from reports.analysis.quotas import control_group_summaries
from reports.analysis.server_cpu import server_cpu
from reports.analysis.tcp_evidence import tcp_summary
from reports.analysis.timeline import Timeline, timeline
from reports.analysis.verdict import judge, warnings, warnings_of_invalid
from reports.run_folder import Event, RunInfo
from reports.summary import LoadSummary, Summary


@dataclass(frozen=True, slots=True)
class Analysis:
    """All that a report shows."""

    run: RunInfo
    summary: Summary
    timeline: Timeline
    events: list[Event]
    percentiles: list[PercentileCurve]

    def seconds(self, event: Event) -> float:
        """When it happened, since the run's start."""
        return (event.mono_ns - self.run.started_mono_ns) / 1e9


def analyse(folder: Path) -> Analysis:
    """All that can be said about the run in this folder; of one that was killed, as far as it goes. RunFolderError when
    it is no run folder, is of another schema, or the load never wrote a line."""
    evidence = read(folder)
    seen = tracks(evidence)
    server = server_cpu(evidence, seen)
    phases = phase_summaries(evidence, seen, server)
    modes = mode_summaries(evidence, phases) if evidence.run.model != "none" else []
    processes = [process_summary(track, phases) for track in seen]
    verdict, reason, also_broken = judge(evidence, phases)
    invalid = verdict == "INVALID"
    counted = count(evidence.seconds)
    load = LoadSummary(uploads=counted.uploads, failures=counted.failures)
    tcp, groups = tcp_summary(evidence), control_group_summaries(evidence)
    whole_server = server_summary(evidence, seen, server)
    thresholds = conditions.results(conditions.Measured(evidence, modes, phases, whole_server, load))
    summary = Summary(
        run=evidence.run.id,
        model=evidence.run.model,
        verdict=verdict,
        reason=reason,
        also_broken=also_broken,
        binding="" if invalid else binding(phases, tcp, groups, evidence.run.model),
        exit_code=conditions.exit_code(verdict, thresholds, load, evidence.run.ended),
        warnings=warnings_of_invalid(evidence, phases, [reason, *also_broken])
        if invalid
        else warnings(evidence, phases, modes),
        thresholds=thresholds,
        modes=[replace(mode, lower_bound=False, at_capacity=False) for mode in modes] if invalid else modes,
        contrast=None if invalid else contrast(phases, "short", "long"),
        sweep=None if invalid else sweep_fit(phases),
        phases=[replace(phase, drift=None) for phase in phases] if invalid else phases,
        processes=processes,
        server=whole_server,
        tcp=tcp,
        load=load,
        control_groups=groups,
    )
    return Analysis(
        evidence.run, summary, timeline(evidence, seen, processes), evidence.events, percentile_curves(evidence, phases)
    )
