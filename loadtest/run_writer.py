"""What a run writes into its folder while it goes on: run.json, and lines of uploads, load processes and events.

It merges what the load processes send, and knows nothing of Locust. A disk that takes no more is an OSError of whatever
is written; a file keeps some room on it until then, so that the reason can be written down.
"""

import time
from pathlib import Path
from typing import Any

import msgspec

from loadtest import arrivals
from loadtest.options import LoadOptions
from loadtest.plan import PlannedPhase
from loadtest.pulse import Pulse
from loadtest.telemetry import Merger
from reports import run_folder
from reports.run_folder import Appender, Event, LoadTick, Phase, RunInfo

HISTOGRAMS_EVERY = 10  # seconds
ROOM_BYTES = 64 << 10  # for the last lines of all files, run.json, and what the recorder takes of it meanwhile


class RunWriter:
    """One run's folder, open from the run's start to its end."""

    def __init__(self, folder: Path, info: RunInfo, options: LoadOptions) -> None:
        self.folder = folder
        self.info = info
        self.pulse = Pulse()
        self._options = options
        self._uploads = Appender(folder / run_folder.UPLOADS)
        self._load_ticks = Appender(folder / run_folder.LOAD)
        self._events = Appender(folder / run_folder.EVENTS)
        self._merger = Merger()
        self.phases: list[Phase] = []
        self._planned: PlannedPhase
        self._written_s = time.monotonic()
        self._lines = 0
        self._room = folder / run_folder.ROOM
        try:
            self._room.write_bytes(bytes(ROOM_BYTES))
            self.change()
        except OSError:
            self.give_room()
            raise

    @property
    def phase(self) -> Phase:
        """The phase that is now, or was the last."""
        return self.phases[-1]

    @property
    def silent_s(self) -> float:
        """Seconds since `write_second` was called last, or since the run's start."""
        return time.monotonic() - self._written_s

    def change(self, **fields: Any) -> None:
        """Write run.json anew, with these fields of `RunInfo` changed."""
        self.info = msgspec.structs.replace(self.info, phases=list(self.phases), **fields)
        run_folder.write_whole(self.folder / run_folder.RUN, self.info)

    def note(self, kind: str, text: str, **details: Any) -> None:
        self._events.append(Event(**run_folder.now_ns(), source="load", kind=kind, text=text, details=details))

    def begin(self, planned: PlannedPhase, start_ns: int) -> None:
        self._end_phase(start_ns)
        phase = Phase(
            name=planned.name,
            kind=planned.kind,
            uploads_per_connection=planned.uploads_per_connection,
            start_ns=start_ns,
        )
        self._planned = planned
        self.phases.append(phase)
        self.note("phase", f"phase {planned.name}", phase=planned.name)
        self.change()

    def _end_phase(self, end_ns: int) -> None:
        if self.phases and self.phase.end_ns is None:
            offered = self._offered(self._planned, (end_ns - self.phase.start_ns) / 1e9)
            self.phases[-1] = msgspec.structs.replace(self.phase, end_ns=end_ns, offered=offered)
            self._uploads.append(self._merger.histograms(self.phase.name))

    def _offered(self, planned: PlannedPhase, lasted_s: float) -> int | None:
        """How many arrivals were due in a phase that lasted so long; None in the closed model."""
        if self._options.profile is None:
            return None
        profile = self._options.profile_of(planned) if planned.duration_s else None
        if profile is None:
            return 0
        return arrivals.offered(profile, planned.duration_s, self._options.seed, lasted_s)

    def add(self, batch: dict[str, Any]) -> None:
        """Count a load process's batch (`messages.BATCH`), stamped now: the clocks of other hosts are not ours."""
        self._merger.add(batch["batch"])
        for phase, delays in batch["hiccups"]:
            self._merger.add_hiccups(phase, delays)
        tick = msgspec.convert({**run_folder.now_ns(), **batch["tick"]}, LoadTick)
        self.pulse.tick(tick)
        self._load_ticks.append(tick)

    def write_second(self, users: int) -> None:
        """A line of what was added since the last one, for each phase; now and then the histograms so far."""
        lasted_s, self._written_s = self.silent_s, time.monotonic()
        lines = self._merger.take_second(users)
        for line in lines:
            self._uploads.append(line)
        self.pulse.second(lines, lasted_s)
        self._lines += 1
        if self._lines % HISTOGRAMS_EVERY == 0:
            self._uploads.append(self._merger.histograms(self.phase.name))

    def note_recorder_failed(self, problem: str, end_ns: int) -> None:
        """Write it down at the recorder's last sample, where a reader of the charts sees their lines end."""
        mono_ns, wall_ns = self.info.started_mono_ns, self.info.started_wall_ns
        for tick in run_folder.read_host(self.folder):
            mono_ns, wall_ns = tick.mono_ns, tick.wall_ns
        from_s, to_s = ((at_ns - self.info.started_mono_ns) / 1e9 for at_ns in (mono_ns, end_ns))
        text = f"{problem}: nothing was recorded from {from_s:.1f} s to the end at {to_s:.1f} s"
        self._events.append(Event(mono_ns=mono_ns, wall_ns=wall_ns, source="load", kind="recorder-failed", text=text))

    def end(self, end_ns: int, users: int) -> None:
        """End the last phase, and write the last second and all histograms. Due before run.json's last `change`."""
        self._end_phase(end_ns)
        self.write_second(users)
        for phase in self._merger.phases:
            self._uploads.append(self._merger.histograms(phase))

    @property
    def has_room(self) -> bool:
        """Whether the disk took everything so far."""
        return self._room.exists()

    def give_room(self) -> None:
        """Nothing else fits on the disk, or everything is written."""
        self._room.unlink(missing_ok=True)

    def close(self) -> None:
        self.give_room()
        for appender in (self._uploads, self._events, self._load_ticks):
            appender.close()
