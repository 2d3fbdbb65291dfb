"""One sample of a process or of the machine, from what was read of it. What could not be read is None, never 0."""

import os
from collections.abc import Iterable

import msgspec
import psutil

from reports import kernel_tcp
from reports.census import Present
from reports.run_folder import CoreTimes, HostTick, ProcessSample, SlotCounters
from server.scoreboard import SlotView

Footprint = tuple[int | None, int | None]
"""(USS, PSS) in bytes."""


def sample_process(present: Present, slot: int | None = None, memory: Footprint | None = None) -> ProcessSample:
    """One process, whose counters were just read. Of a zombie the CPU is left, and it is final.

    `memory` is its `footprint`, on the ticks that have one.
    """
    process, stat, role = present
    rss = stat.rss_bytes or None  # 0 once the process has given its memory back; a living one always has some
    switches, disk = process.switches(), process.disk_bytes()
    uss, pss = memory or (None, None)
    return ProcessSample(
        pid=process.pid,
        create_time=stat.create_time,
        role=role,
        slot=slot,
        cpu_user_s=stat.user_s,
        cpu_system_s=stat.system_s,
        children_user_s=stat.children_user_s,
        children_system_s=stat.children_system_s,
        rss_bytes=rss,
        uss_bytes=uss,
        pss_bytes=pss,
        threads=stat.threads,
        fds=process.open_files() if rss else None,
        voluntary_switches=switches and switches.voluntary,
        involuntary_switches=switches and switches.involuntary,
        read_bytes=disk and disk.read,
        write_bytes=disk and disk.written,
        run_delay_ns=process.run_delay_ns(stat.threads),
    )


def footprint(pid: int) -> Footprint:
    """USS and PSS; None where they may not be read, or the process has already given its memory back."""
    try:
        full = psutil.Process(pid).memory_full_info()
    except (psutil.Error, OSError):
        return None, None
    return getattr(full, "uss", 0) or None, getattr(full, "pss", 0) or None


def sample_host(
    stamp: dict[str, int], port: int | None, slots: Iterable[SlotView] | None, states: dict[str, int] | None = None
) -> HostTick:
    """The whole machine now, the accept queues of a port of it, and the server's slots and the states of its
    connections as they were read."""
    memory = psutil.virtual_memory()
    tcp = kernel_tcp.in_use()
    return HostTick(
        **stamp,
        cores=[
            CoreTimes(**{name: getattr(core, name) for name in CoreTimes.__struct_fields__})
            for core in psutil.cpu_times(percpu=True)
        ],
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        load_1min=os.getloadavg()[0],
        tcp_in_use=tcp.get("inuse"),
        tcp_time_wait=tcp.get("tw"),
        scoreboard=None if slots is None else msgspec.convert(list(slots), list[SlotCounters], from_attributes=True),
        accept_queues=None if port is None else kernel_tcp.accept_queues(port),
        tcp_states=states,
        kernel=kernel_tcp.counters(),
        network=kernel_tcp.network_bytes(),
    )
