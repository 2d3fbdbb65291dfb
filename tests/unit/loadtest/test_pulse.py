"""What a person sees while a run goes on."""

from loadtest.pulse import Pulse
from reports.run_folder import LoadTick, Percentiles, SecondOfUploads, UploadsLine

NS = 1_000_000_000


def tick(at_s: float, cpu_s: float, *, delay_s: float = 0.0, pid: int = 1, in_flight: int = 0) -> LoadTick:
    return LoadTick(
        mono_ns=round(at_s * NS),
        wall_ns=1,
        host="here",
        pid=pid,
        cpu_s=cpu_s,
        run_delay_ns=round(delay_s * NS),
        in_flight=in_flight,
        queued=2,
    )


def line(count: int = 10, *, hiccup_us: float = 100, failures: dict[str, int] | None = None) -> UploadsLine:
    latency = Percentiles(p50=100, p95=200, p99=1500, max=2000)
    second = SecondOfUploads(count=count, bytes=1, failures=failures or {}, connections=0, transaction_us=latency)
    hiccups = Percentiles(p50=1, p95=1, p99=hiccup_us, max=hiccup_us)
    return UploadsLine(mono_ns=1, wall_ns=1, phase="long-1", users=2, names={"long ≤4 KiB": second}, hiccup_us=hiccups)


def shown(pulse: Pulse) -> dict[str, str]:
    return {row.what: row.now for row in pulse.rows()}


def test_before_the_first_upload() -> None:
    assert shown(Pulse()) == {"Verdict": "–"}


def test_a_second() -> None:
    pulse = Pulse()
    for at_s, cpu_s in ((0, 5.0), (1, 5.1), (2, 5.4)):
        pulse.tick(tick(at_s, cpu_s, in_flight=3))
        pulse.tick(tick(at_s, cpu_s / 10, pid=2, in_flight=4))
    pulse.second([line(count=1234)], 1.0)
    assert shown(pulse) == {
        "Verdict": "VALID so far",
        "Phase": "long-1",
        "Uploads": "1,234/s",
        "p99 of the slowest size class": "1.50 ms",
        "Failed": "0",
        "Dropped arrivals": "0",
        "In flight": "7",
        "Arrivals waiting": "4",
        "Busiest load process": "30% of a core",
        "Load waited for a core": "0% of the time",
        "Hiccups, p99": "100 µs",
    }


def test_what_was_acknowledged_once_stays_so() -> None:
    pulse = Pulse()
    known = []
    for second in (line(count=0, failures={"no_space": 3}), line(count=1), line(count=0)):
        pulse.second([second], 1.0)
        known.append(pulse.any_acknowledged)
    assert known == [False, True, True]


def test_a_second_that_was_none_has_a_true_rate_too() -> None:
    pulse = Pulse()
    pulse.second([line(count=400), line(count=100)], 0.5)
    assert shown(pulse)["Uploads"] == "1,000/s"


def test_failures_add_up_and_drops_are_apart() -> None:
    pulse = Pulse()
    for _ in range(2):
        pulse.second([line(failures={"timeout": 1, "dropped": 5}), line(failures={"busy": 2})], 1.0)
    assert (shown(pulse)["Failed"], shown(pulse)["Dropped arrivals"]) == ("6", "10")


def verdict(cpu_s: float = 0.1, delay_s: float = 0.0, hiccup_us: float = 100) -> str:
    pulse = Pulse()
    pulse.tick(tick(0, 0))
    pulse.tick(tick(1, cpu_s, delay_s=delay_s))
    pulse.second([line(hiccup_us=hiccup_us)], 1.0)
    return shown(pulse)["Verdict"]


def test_the_limits_are_the_reports() -> None:
    assert verdict() == "VALID so far"
    assert verdict(cpu_s=0.81) == "LOWER BOUND"
    assert verdict(delay_s=0.21) == "NOISY"
    assert verdict(hiccup_us=5001) == "NOISY"
    assert verdict(cpu_s=0.81, hiccup_us=5001) == "NOISY"


def test_what_breaks_a_run_is_told_at_once_and_the_first_cause_stays() -> None:
    pulse = Pulse()
    pulse.broken("a load process was lost")
    assert shown(pulse) == {"Verdict": "INVALID"}
    pulse.second([line(hiccup_us=5001)], 1.0)
    pulse.broken("the run failed")
    [verdict_row, *_] = pulse.rows()
    assert (verdict_row.now, verdict_row.means) == ("INVALID", "a load process was lost")


def test_a_second_in_which_all_uploads_failed_measures_nothing() -> None:
    pulse = Pulse()
    pulse.second([line(count=0, failures={"connect_refused": 30, "timeout": 2})], 1.0)
    [verdict_row, *_] = pulse.rows()
    assert (verdict_row.now, verdict_row.means) == (
        "INVALID",
        "this second, all uploads failed: connect_refused 30, timeout 2",
    )
    pulse.second([line(count=1, failures={"timeout": 2})], 1.0)
    assert shown(pulse)["Verdict"] == "VALID so far"
