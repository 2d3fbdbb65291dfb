"""Control groups: what they limit is read of both of the kernel's interfaces, and told as what binds."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest
from limits import real_group
from servers import eventually

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.pages.report_texts import view
from reports.recording.census import Member
from reports.recording.control_groups import ControlGroups
from reports.run_folder import ControlGroup
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import Rate, rewrite

# --- what the recorder reads ------------------------------------------------------------------------------------------


class Tree:
    """A made-up /proc, with hierarchies that are folders."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.groups = folder / "proc", folder / "groups"
        self._write(self.proc / "self/mountinfo", "")

    def mount(self, kind: str, options: str = "rw", root: str = "/") -> None:
        with (self.proc / "self/mountinfo").open("a") as file:
            file.write(f"41 31 0:38 {root} {self.groups / options} rw,relatime shared:5 - {kind} {kind} {options}\n")

    def process(self, pid: int, *lines: str) -> Member:
        self._write(self.proc / str(pid) / "cgroup", "".join(f"{line}\n" for line in lines))
        return Member(SimpleNamespace(pid=pid), "server-worker")

    def group(self, path: str, **files: str) -> str:
        for name, text in files.items():
            self._write(self.groups / path / name.replace("__", "."), f"{text}\n")
        return str(self.groups / path)

    def limiting(self, *members: Member) -> list[ControlGroup]:
        return ControlGroups(str(self.proc)).limiting(members)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


THROTTLED = "usage_usec 5\nnr_periods 96\nnr_throttled 95\nthrottled_usec 4300000"


def test_a_quota_holds_for_all_that_is_below_it(tree: Tree) -> None:
    tree.mount("cgroup2")
    own = tree.group("rw/system.slice/own.service", cpu__max="max 100000", memory__max="max", memory__high="max")
    above = tree.group("rw/system.slice", cpu__max="50000 100000", cpu__stat=THROTTLED)
    found = tree.limiting(
        tree.process(7, "0::/system.slice/own.service"),
        tree.process(8, "0::/system.slice/other.service")._replace(role="load-master"),
        tree.process(9, "0::/user.slice"),
    )
    assert own != above
    assert found == [
        ControlGroup(
            path=above,
            roles=["load-master", "server-worker"],
            quota_cores=0.5,
            periods=96,
            throttled_periods=95,
            throttled_us=4_300_000,
        )
    ]


def test_limits_of_memory(tree: Tree) -> None:
    tree.mount("cgroup2")
    events = "low 0\nhigh 3\nmax 4\noom 2\noom_kill 1"
    files = {"memory__max": "4096", "memory__high": "max", "memory__current": "4000", "memory__events": events}
    path = tree.group("rw/own", **files)
    assert tree.limiting(tree.process(7, "0::/own")) == [
        ControlGroup(
            path=path,
            roles=["server-worker"],
            memory_max_bytes=4096,
            memory_bytes=4000,
            memory_limit_hits=7,
            oom_kills=1,
        )
    ]


def test_a_containers_own_group_is_the_root_that_it_sees(tree: Tree) -> None:
    tree.mount("cgroup2")
    path = tree.group("rw", cpu__max="50000 100000", cpu__stat=THROTTLED)
    [found] = tree.limiting(tree.process(7, "0::/"), tree.process(8, "0::/../elsewhere"))
    assert (found.path, found.quota_cores) == (path, 0.5)
    assert tree.limiting(tree.process(9, "0::/../elsewhere")) == []


def test_the_older_interface_has_a_hierarchy_for_each_resource(tree: Tree) -> None:
    tree.mount("cgroup", "rw,cpu,cpuacct", root="/docker/abc")
    tree.mount("cgroup", "rw,memory")
    stat = "nr_periods 96\nnr_throttled 95\nthrottled_time 4300000000"
    cpu = tree.group("rw,cpu,cpuacct/own", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000", cpu__stat=stat)
    tree.group("rw,cpu,cpuacct", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000", cpu__stat=stat)
    limit = {"memory__limit_in_bytes": "4096", "memory__usage_in_bytes": "4000", "memory__failcnt": "7"}
    memory = tree.group("rw,memory/user", **limit, memory__oom_control="oom_kill_disable 0\noom_kill 1")
    tree.group("rw,memory", memory__limit_in_bytes="9223372036854771712")
    lines = ("5:cpu,cpuacct:/docker/abc/own", "4:memory:/user", "1:name=systemd:/x", "0::/")
    found = {group.path: group for group in tree.limiting(tree.process(7, *lines))}
    assert found == {
        cpu: ControlGroup(
            path=cpu,
            roles=["server-worker"],
            quota_cores=0.5,
            periods=96,
            throttled_periods=95,
            throttled_us=4_300_000,
        ),
        memory: ControlGroup(
            path=memory,
            roles=["server-worker"],
            memory_max_bytes=4096,
            memory_bytes=4000,
            memory_limit_hits=7,
            oom_kills=1,
        ),
    }


def test_a_group_is_read_on_when_its_processes_have_ended(tree: Tree) -> None:
    tree.mount("cgroup2")
    tree.group("rw/own", cpu__max="50000 100000", cpu__stat=THROTTLED)
    groups = ControlGroups(str(tree.proc))
    assert groups.limiting([tree.process(7, "0::/own")]) == groups.limiting([])


def test_a_kernel_without_control_groups_limits_nothing(tree: Tree) -> None:
    assert tree.limiting(Member(SimpleNamespace(pid=7), "server-worker")) == []
    assert ControlGroups(str(tree.proc / "nowhere")).limiting([]) == []


@contextmanager
def process_in(group: Path, code: str):
    """A Python process that runs this code in the group."""
    enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')"
    with subprocess.Popen([sys.executable, "-S", "-c", f"{enter}\n{code}"]) as process:
        try:
            yield Member(psutil.Process(process.pid), "server-worker")
        finally:
            process.kill()


def test_a_real_quota_is_used_up() -> None:
    quota = {"cpu__max": "5000 100000", "cpu__cfs_quota_us": "5000"}
    with real_group("cpu", **quota) as group, process_in(group, "while True: pass") as busy:

        def used_up() -> ControlGroup | None:
            found = {found.path: found for found in ControlGroups().limiting([busy])}.get(str(group))
            return found if found and (found.throttled_periods or 0) > 2 else None

        found = eventually(used_up, "the kernel has throttled it")
        assert (found.quota_cores, found.roles) == (0.05, ["server-worker"])
        assert found.periods >= found.throttled_periods
        assert found.throttled_us > 50_000


def test_a_real_limit_of_memory_is_reached() -> None:
    limit = {"memory__max": str(8 << 20), "memory__limit_in_bytes": str(8 << 20)}
    with real_group("memory", **limit) as group, process_in(group, "bytearray(64 << 20)") as hungry:
        groups = ControlGroups()

        def reached() -> ControlGroup | None:
            found = {found.path: found for found in groups.limiting([hungry])}.get(str(group))
            return found if found and found.memory_limit_hits else None

        assert eventually(reached, "the limit was reached").memory_max_bytes == 8 << 20


# --- what the report makes of it --------------------------------------------------------------------------------------

GROUP = ControlGroup(path="/sys/fs/cgroup/own", roles=["server-worker"])


def recorded(folder: Path, group: ControlGroup, *, periods: int = 0, throttled: int = 0, hits: int = 0, **changes):
    """What is said of a run whose groups were read at each tick, with so many more of these a second."""
    run_folders.write(folder, plan=(("long-1", "measure", 0),), **changes)
    ticks = []
    for tick in run_folder.read_host(folder):
        t_s = run_folders.seconds(tick.mono_ns)
        fields = {"memory_limit_hits": round(hits * t_s)} if hits else {}
        if periods:
            fields |= {"periods": 1000 + round(periods * t_s), "throttled_periods": 500 + round(throttled * t_s)}
            fields |= {"quota_cores": 0.5, "throttled_us": round(throttled * t_s * 45_000)}
        ticks.append(msgspec.structs.replace(tick, control_groups=[msgspec.structs.replace(group, **fields)]))
    rewrite(folder / run_folder.HOST, ticks)
    return analyse(folder)


def test_a_quota_that_the_server_uses_up_is_what_binds(tmp_path: Path) -> None:
    analysis = recorded(tmp_path / "run", GROUP, periods=10, throttled=10)
    summary = analysis.summary
    assert summary.binding == (
        "the CPU quota of the server (0.500 cores, used up in 120 of 120 periods, for 5.40 s in all; raise it in "
        "/sys/fs/cgroup/own: systemd's CPUQuota=, docker's --cpus)"
    )
    assert summary.phases[0].server_throttled_share == pytest.approx(1)
    assert (summary.verdict, summary.modes[0].at_capacity) == ("VALID", True)
    assert summary.reason.startswith(
        "the server was at capacity of its CPU quota, which was used up in 100 % of the quota's periods: "
    )
    facts = dict(view(analysis).facts)["Control groups"]
    assert facts == [("/sys/fs/cgroup/own", "0.500 cores for worker, used up in 120 of 120 periods")]


def test_a_quota_explains_what_was_not_taken(tmp_path: Path) -> None:
    changes = {"model": "open", "dropped_per_s": 200}
    assert recorded(tmp_path / "a", GROUP, periods=10, throttled=10, **changes).summary.verdict == "VALID"
    assert recorded(tmp_path / "b", GROUP, periods=10, throttled=1, **changes).summary.verdict == "INVALID"


@pytest.mark.parametrize(("throttled", "binds"), [(1, "nothing"), (2, "the CPU quota of the server")])
def test_a_quota_that_is_seldom_used_up_does_not_bind(tmp_path: Path, throttled: int, binds: str) -> None:
    summary = recorded(tmp_path / "run", GROUP, periods=10, throttled=throttled).summary
    assert summary.binding.startswith(binds)
    assert not summary.modes[0].at_capacity


@pytest.mark.parametrize(
    ("roles", "whose"),
    [(["load-master"], "the load"), (["load-master", "recorder", "server-worker"], "server and load together")],
)
def test_a_quota_of_the_load_makes_rates_a_lower_bound(tmp_path: Path, roles: list, whose: str) -> None:
    group = msgspec.structs.replace(GROUP, roles=roles)
    summary = recorded(tmp_path / "run", group, periods=10, throttled=9).summary
    assert summary.binding.startswith(f"the CPU quota of {whose} (0.500 cores")
    assert (summary.verdict, summary.modes[0].lower_bound) == ("LOWER BOUND", True)
    assert summary.reason == (
        "the load stood still for want of its CPU quota, in 90.0 % of the quota's periods in phase long-1 (at most "
        "10.0 %)"
    )


def test_a_quota_of_the_load_is_the_reason_for_noise(tmp_path: Path) -> None:
    group = msgspec.structs.replace(GROUP, roles=["load-master"])
    summary = recorded(tmp_path / "run", group, periods=10, throttled=9, run_delay_share=0.8).summary
    assert summary.verdict == "NOISY"
    assert summary.reason.startswith("the load stood still for want of its CPU quota, in 90.0 %")
    assert "waited for a CPU" not in summary.reason


def test_a_quota_of_the_recorder_alone_is_not_told(tmp_path: Path) -> None:
    summary = recorded(tmp_path / "run", msgspec.structs.replace(GROUP, roles=["recorder"]), periods=9, throttled=9)
    assert summary.summary.control_groups == []


def test_a_full_worker_is_its_own_limit_where_its_quota_was_not(tmp_path: Path) -> None:
    summary = recorded(tmp_path / "run", GROUP, periods=10, long=Rate(1000, 0.97, 0.5, 1.9, 200)).summary
    assert summary.binding.startswith("server CPU")


def test_a_limit_of_memory_is_named_with_what_it_did(tmp_path: Path) -> None:
    limited = msgspec.structs.replace(GROUP, memory_max_bytes=512 << 20, memory_bytes=500 << 20)
    analysis = recorded(tmp_path / "a", limited, hits=10)
    assert analysis.summary.binding == (
        "perhaps the memory limit of the server (512 MiB, reached 120 times; raise it in /sys/fs/cgroup/own: "
        "systemd's MemoryMax=, docker's --memory)"
    )
    assert dict(view(analysis).facts)["Control groups"] == [
        ("/sys/fs/cgroup/own", "512 MiB of memory for worker, reached 120 times; at most 500 MiB were seen")
    ]
    assert recorded(tmp_path / "b", limited).summary.binding.startswith("nothing")


def test_who_was_killed_for_a_limit_of_memory_proves_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recorded(folder, GROUP)
    ticks = list(run_folder.read_host(folder))
    limited = msgspec.structs.replace(GROUP, memory_max_bytes=512 << 20, memory_limit_hits=9, oom_kills=0)
    ticks[0] = msgspec.structs.replace(ticks[0], control_groups=[limited])
    ticks[-1] = msgspec.structs.replace(ticks[-1], control_groups=[msgspec.structs.replace(limited, oom_kills=2)])
    rewrite(folder / run_folder.HOST, ticks)
    analysis = analyse(folder)
    assert analysis.summary.binding.startswith(
        "the memory limit of the server (512 MiB, reached 0 times; 2 processes were killed for it; "
    )
    [(_, fact)] = dict(view(analysis).facts)["Control groups"]
    assert fact.endswith("; 2 processes were killed for it")
