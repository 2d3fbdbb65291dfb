"""One sample of a process or of the machine, from what was read of it. What could not be read is None, never 0."""

import os
from collections.abc import Iterable

import msgspec

from reports.recording import kernel_tcp
from reports.recording.census import Present
from reports.recording.procfs import TICKS_PER_S, Footprint, KernelFile
from reports.run_folder import CoreTimes, HostTick, ProcessSample, SlotCounters
from server.scoreboard import SlotView


def sample_process(
    present: Present, slot: int | None = None, memory: Footprint | None = None, *, slow: bool = False
) -> ProcessSample:
    """One process, whose counters were just read. Of a zombie the CPU is left, and it is final.

    `memory` is its footprint, on the ticks that have one: the slow ones, on which its cores are read too.
    """
    process, stat, role = present
    rss = stat.rss_bytes or None  # 0 once the process has given its memory back; a living one always has some
    switches, disk = process.switches(), process.disk_bytes()
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
        uss_bytes=memory and memory.uss,
        pss_bytes=memory and memory.pss,
        threads=stat.threads,
        fds=process.open_files() if rss else None,
        voluntary_switches=switches and switches.voluntary,
        involuntary_switches=switches and switches.involuntary,
        read_bytes=disk and disk.read,
        write_bytes=disk and disk.written,
        run_delay_ns=process.run_delay_ns(stat.threads),
        cores=process.cores() if slow else None,
    )


_STAT, _MEMINFO = KernelFile("/proc/stat"), KernelFile("/proc/meminfo")


def sample_host(stamp: dict[str, int], port: int | None, slots: Iterable[SlotView] | None, *, slow: bool) -> HostTick:
    """The whole machine now, the accept queues of a port of it, and the server's slots as they were read. What is dear
    is read on slow ticks only: counters lose nothing by that."""
    cores = core_times(_STAT.read())  # first: idle time is compared with the stamp
    memory = dict(line.split()[:2] for line in _MEMINFO.read().splitlines()[:3])
    tcp = kernel_tcp.in_use()
    return HostTick(
        **stamp,
        cores=cores,
        memory_total_bytes=int(memory[b"MemTotal:"]) << 10,
        memory_available_bytes=int(memory[b"MemAvailable:"]) << 10,
        load_1min=os.getloadavg()[0],
        tcp_in_use=tcp.get("inuse"),
        tcp_time_wait=tcp.get("tw"),
        scoreboard=None if slots is None else msgspec.convert(list(slots), list[SlotCounters], from_attributes=True),
        accept_queues=None if port is None else kernel_tcp.accept_queues(port),
        tcp_states=kernel_tcp.states(port) if slow and port is not None else None,
        kernel=kernel_tcp.counters() if slow else {},
        network=kernel_tcp.network_bytes() if slow else {},
    )


def core_times(stat: bytes) -> list[CoreTimes]:
    """Of each core, from /proc/stat: `cpu0 USER NICE SYSTEM IDLE IOWAIT IRQ SOFTIRQ STEAL GUEST…`."""
    found = []
    for line in stat.splitlines()[1:]:
        if not line.startswith(b"cpu"):
            break
        user, nice, system, idle, iowait, irq, softirq, steal = (int(word) / TICKS_PER_S for word in line.split()[1:9])
        found.append(
            CoreTimes(
                user=user,
                nice=nice,
                system=system,
                idle=idle,
                iowait=iowait,
                irq=irq,
                softirq=softirq,
                steal=steal,
            )
        )
    return found
