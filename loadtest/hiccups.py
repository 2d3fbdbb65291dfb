"""The hiccup meter: a process that sleeps 1 ms at a time on the generator's core, and tells how late it woke.

It measures the machine, not the server and not the generator: a load process on the same core meets the same delays, so
where this sleeper wakes late, latencies are the machine's. It must be a process of its own: a thread would also wait
for the interpreter's lock, a greenlet for the other users.

    python hiccups.py        writes delays to standard output as they come, as native u32 microseconds

It ends when nobody reads them any more. Ten times a second it moves to the core that its parent ran on last. Run as a
file, without site packages: it takes 15 ms to start and 1 % of a core.
"""

import array
import os
import sys
import time

SLEEP_NS = 1_000_000
REPORT_NS = 100_000_000  # delays belong to the phase in which they are read
_PROCESSOR = 36  # of /proc/PID/stat, counted behind the bracket that closes the name (proc(5): field 39)


def core_of(pid: int) -> int:
    """The core that this process ran on last."""
    with open(f"/proc/{pid}/stat", errors="replace") as file:
        text = file.read()
    return int(text[text.rindex(")") + 2 :].split()[_PROCESSOR])


def main() -> None:
    parent = os.getppid()
    os.set_blocking(1, False)
    before_ns = time.monotonic_ns()  # goes on over reports: being held up in one counts, too
    while os.getppid() == parent:
        try:
            os.sched_setaffinity(0, {core_of(parent)})
        except OSError:
            pass  # it has just ended, or the core is none of ours
        delays_us = array.array("I")
        end_ns = before_ns + REPORT_NS
        while before_ns < end_ns:
            time.sleep(SLEEP_NS / 1e9)
            now_ns = time.monotonic_ns()
            delays_us.append(min(0xFFFF_FFFF, (now_ns - before_ns - SLEEP_NS) // 1000))
            before_ns = now_ns
        try:
            os.write(1, delays_us)  # at most 400 bytes: a pipe takes that whole or not at all
        except BlockingIOError:
            pass  # the generator has stopped reading; what it missed is lost
        except BrokenPipeError:
            sys.exit()


if __name__ == "__main__":
    main()
