"""One sample of a process or of the machine, as psutil reads it. What could not be read is None, never 0."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil

from reports.missing_values import read
from reports.recording import kernel_tcp
from reports.recording.census import Member, create_time, living_part
from reports.run_delay import run_delay_ns
from reports.run_folder import CoreTimes, HostTick, NetworkBytes, ProcessSample, SlotCounters
from reports.texts import ranges
from server.scoreboard import SlotView


class Footprint(NamedTuple):
    """Bytes of memory: what the end of the process would give back, and its share of what it has together with others,
    as well."""

    uss: int
    pss: int


def footprint(process: psutil.Process) -> Footprint | None:
    """The kernel walks all of its pages for this: 0.2 ms and more. None when it is another user's, or has given its
    memory back."""
    full = read(living_part(process).memory_full_info)
    pss = full and read(lambda: full.pss)  # which is missing where the kernel tells of no pages
    return Footprint(full.uss, pss) if full and pss else None


def sample_process(
    member: Member, slot: int | None = None, memory: Footprint | None = None, *, slow: bool = False
) -> ProcessSample | None:
    """One process now; None when it is gone. Of a zombie the CPU is left, and it is final.

    `memory` is its footprint, on the ticks that have one.
    """
    process, role = member
    cpu, created = read(process.cpu_times), create_time(process)
    if cpu is None or created is None:
        return None
    rss = _resident(process)
    if rss is None and (living := living_part(process)) is not process:
        process, rss = living, _resident(living)
    return ProcessSample(
        pid=member.process.pid,
        create_time=created,
        role=role,
        slot=slot,
        cpu_user_s=cpu.user,
        cpu_system_s=cpu.system,
        children_user_s=cpu.children_user,
        children_system_s=cpu.children_system,
        rss_bytes=rss,
        uss_bytes=memory and memory.uss,
        pss_bytes=memory and memory.pss,
        fds=read(lambda: _open_files(process)) if rss else None,
        **(_slow_figures(process) if slow else {}),
    )


def _resident(process: psutil.Process) -> int | None:
    """In bytes. 0 once it has given its memory back; a living one has some."""
    resident = read(process.memory_info)
    return (resident and resident.rss) or None


def _slow_figures(process: psutil.Process) -> dict[str, Any]:
    """What nobody follows from tick to tick: counters that lose nothing by that, and what hardly changes. It takes as
    long as all the rest: `oneshot()` alone 20 µs, a fifth of it, so it is for where a file would be read twice."""
    with process.oneshot():
        switches = read(process.num_ctx_switches)
        disk = read(lambda: process.io_counters())  # which psutil does not have where the kernel does not count
        return {
            "threads": read(process.num_threads),
            "voluntary_switches": switches and switches.voluntary,
            "involuntary_switches": switches and switches.involuntary,
            "read_bytes": disk and disk.read_bytes,
            "write_bytes": disk and disk.write_bytes,
            "run_delay_ns": run_delay_ns(process.pid),
            "cores": read(lambda: ranges(process.cpu_affinity())),
        }


def _open_files(process: psutil.Process) -> int:
    """psutil lists them one by one, which takes 1.4 ms of a worker with 2,000 connections. Since Linux 6.2 their number
    is the folder's size, in 2 µs; before, that is 0."""
    return os.stat(f"/proc/{process.pid}/fd").st_size or process.num_fds()  # noqa: PTH116 - Path takes 9 µs more


def sample_host(stamp: dict[str, Any], port: int | None, slots: Iterable[SlotView] | None, *, slow: bool) -> HostTick:
    """The whole machine now, the accept queues of a port of it, and the server's slots as they were read. What is dear
    is read on slow ticks only: counters lose nothing by that."""
    cores = read(lambda: psutil.cpu_times(percpu=True))  # first: idle time is compared with the stamp
    load = read(psutil.getloadavg) if slow else None
    tcp = read(kernel_tcp.in_use) or {}
    return HostTick(
        **stamp,
        cores=msgspec.convert([core._asdict() for core in cores or ()], list[CoreTimes]),
        tcp_in_use=tcp.get("inuse"),
        tcp_time_wait=tcp.get("tw"),
        scoreboard=None if slots is None else msgspec.convert(list(slots), list[SlotCounters], from_attributes=True),
        accept_queues=None if port is None else kernel_tcp.accept_queues(port),
        tcp_states=kernel_tcp.states(port) if slow and port is not None else None,
        kernel=(read(kernel_tcp.counters) or {}) if slow else {},
        network=network_bytes() if slow else {},
        memory_available_bytes=read(_memory_available) if slow else None,
        load_1min=load and load[0],
    )


def _memory_available() -> int | None:
    """In bytes, as the kernel tells: where it does not, or says 0, psutil would make an estimate of its own."""
    text = Path(psutil.PROCFS_PATH, "meminfo").read_text()
    return int(text.partition("MemAvailable:")[2].split()[0]) << 10 or None


def untold(host: HostTick) -> list[str]:
    """What this machine does not tell at all, in words; empty on most. `host` is a slow tick."""
    figures = {
        "the time of its cores": host.cores or None,
        "stolen time": host.cores[0].steal if host.cores else 0,
        "available memory": host.memory_available_bytes,
        "its load": host.load_1min,
        "TCP sockets in use": host.tcp_in_use,
    }
    return [name for name, figure in figures.items() if figure is None]


def network_bytes() -> dict[str, NetworkBytes]:
    """Bytes by interface, without those that never moved one."""
    interfaces = read(lambda: psutil.net_io_counters(pernic=True, nowrap=False)) or {}
    return {
        name: NetworkBytes(received=counts.bytes_recv, sent=counts.bytes_sent)
        for name, counts in interfaces.items()
        if counts.bytes_recv or counts.bytes_sent
    }
