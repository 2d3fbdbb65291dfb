"""Options arrive as texts, from a command line or a web form, and each mistake has one clear sentence."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import credentials, payloads
from loadtest.arrivals import Profile
from loadtest.http_put import HttpPutWire
from loadtest.option_error import OptionError
from loadtest.options import (
    DEFAULTS,
    FIELDS,
    OPTIONS,
    LoadOptions,
    check_store,
    check_users,
    validate,
)
from loadtest.plan import make_plan
from loadtest.wires import FramedWire, Target
from reports import thresholds
from server.units import format_size

HOST = "tcp://127.0.0.1:12345"
SWITCHES = ("compressible", "verify_digest")

DEFAULT_OPTIONS = LoadOptions(
    target=Target("tcp", "127.0.0.1", 12345),
    wire=FramedWire,
    tls=None,
    plan=make_plan("compare", 10.0, warm_up_s=2.0),
    drain_s=10.0,
    profile=None,
    max_in_flight=900,
    at_cap="queue",
    shape="none",
    mix=payloads.parse_mix(payloads.DEFAULT_MIX),
    payload_dir=None,
    compressible=False,
    max_store_bytes=1 << 30,
    wait_s=0.04,
    timeout_s=30.0,
    closer="server",
    close="fin",
    verify_digest=True,
    thresholds=[],
    seed=1,
)


def valid(host=HOST, /, **fields):
    return validate(host, DEFAULTS | fields)


def test_the_defaults():
    assert valid() == DEFAULT_OPTIONS


def test_the_table_is_complete():
    """Both command lines and the form are made from it: what an option does not say there, nobody can see."""
    assert len(set(FIELDS)) == len(FIELDS)
    assert list(DEFAULTS) == list(FIELDS)
    assert {field for field, default in DEFAULTS.items() if isinstance(default, bool)} == set(SWITCHES)
    for option in OPTIONS:
        assert option.help
        assert re.fullmatch(r"--[a-z]+(-[a-z]+)*", option.flag)
        assert not option.kind.choices or option.default in option.kind.choices


def test_what_imports_code_or_names_secrets_is_for_command_lines_only():
    assert [option.field for option in OPTIONS if not option.in_form] == ["wire", "token_file", "ca", "cert", "key"]


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────

HERE = Path(__file__).parent

GOOD = [
    # (fields, what becomes of them)
    ({"plan": "short"}, {"plan": make_plan("short", 10.0)}),
    ({"plan": "long"}, {"plan": make_plan("long", 10.0)}),
    ({"plan": "sweep:1,5,0"}, {"plan": make_plan("sweep:1,5,0", 10.0)}),
    ({"uploads_per_connection": " 5, 1 "}, {"plan": make_plan("compare", 10.0, uploads_per_connection="5,1")}),
    ({"phase_seconds": "1"}, {"plan": make_plan("compare", 1.0)}),
    ({"phase_seconds": "1.5min"}, {"plan": make_plan("compare", 90.0)}),
    ({"warm_up": "0"}, {"plan": make_plan("compare", 10.0, warm_up_s=0.0)}),
    ({"warm_up": "300ms"}, {"plan": make_plan("compare", 10.0, warm_up_s=0.3)}),
    ({"drain": "0"}, {"drain_s": 0.0}),
    ({"drain": "1min"}, {"drain_s": 60.0}),
    ({"arrival_rate": ""}, {"profile": None}),
    ({"arrival_rate": "0.0"}, {"profile": None}),
    ({"arrival_rate": "2000"}, {"profile": Profile("constant", (2000.0,))}),
    ({"arrival_rate": "0.5", "arrival_profile": "poisson"}, {"profile": Profile("poisson", (0.5,))}),
    ({"arrival_rate": "10-20", "arrival_profile": "ramp"}, {"profile": Profile("ramp", (10.0, 20.0))}),
    ({"arrival_rate": "1,2,3", "arrival_profile": "step"}, {"profile": Profile("step", (1.0, 2.0, 3.0))}),
    ({"max_in_flight": "1"}, {"max_in_flight": 1}),
    ({"max_in_flight": "60000"}, {"max_in_flight": 60_000}),
    ({"at_cap": "drop"}, {"at_cap": "drop"}),
    ({"shape": "ramp"}, {"shape": "ramp"}),
    ({"shape": "step"}, {"shape": "step"}),
    ({"shape": "soak"}, {"shape": "soak"}),
    ({"payloads": "1MiB"}, {"mix": [(1 << 20, 1.0)]}),
    ({"payloads": "10:3, 4KiB"}, {"mix": [(10, 3.0), (4096, 1.0)]}),
    ({"payloads": "lognormal:16KiB,1.5"}, {"mix": payloads.parse_mix("lognormal:16KiB,1.5")}),
    ({"payload_dir": f" {HERE} "}, {"payload_dir": HERE}),
    ({"compressible": True}, {"compressible": True}),
    ({"max_store": "0"}, {"max_store_bytes": 0}),
    ({"max_store": "5GB"}, {"max_store_bytes": 5_000_000_000}),
    ({"wait": "0"}, {"wait_s": 0.0}),
    ({"wait": "2ms"}, {"wait_s": 0.002}),
    ({"timeout": "100ms"}, {"timeout_s": 0.1}),
    ({"closer": "client"}, {"closer": "client"}),
    ({"closer": "client", "close": "rst"}, {"closer": "client", "close": "rst"}),
    ({"wire": "loadtest.http_put:HttpPutWire"}, {"wire": HttpPutWire}),
    ({"verify_digest": False}, {"verify_digest": False}),
    ({"fail_if": " ; "}, {"thresholds": []}),
    (
        {"fail_if": "failures>1%; p99(connect) > 20ms"},
        {"thresholds": [*map(thresholds.parse, ("failures>1%", "p99(connect) > 20ms"))]},
    ),
    ({"seed": "0"}, {"seed": 0}),
    ({"seed": str(10**18)}, {"seed": 10**18}),
    ({"label": ""}, {}),
    ({"label": "any text: what it becomes, run_folder.new_run_id says\n"}, {}),
]


@pytest.mark.parametrize(("fields", "changed"), GOOD, ids=[str(fields) for fields, _ in GOOD])
def test_good_values(fields, changed):
    assert valid(**fields) == replace(DEFAULT_OPTIONS, **changed)


def test_every_option_has_good_values_here():
    """Those of credentials are in test_credentials.py."""
    assert {field for fields, _ in GOOD for field in fields} == set(FIELDS) - set(credentials.FIELDS)


@pytest.mark.parametrize("number", [2, 2.5])
def test_numbers_do_as_well_as_texts(number):
    assert valid(phase_seconds=number, wait=number, seed=2).plan[1].duration_s == number


@pytest.mark.parametrize(
    ("host", "target", "wire"),
    [
        ("tcp://[::1]:1", Target("tcp", "::1", 1), FramedWire),
        ("unix:///run/socket", Target("unix", "", 0, "/run/socket"), FramedWire),
        ("http://127.0.0.1", Target("http", "127.0.0.1", 80, "/"), HttpPutWire),
        ("http://localhost:8080/a/b", Target("http", "localhost", 8080, "/a/b/"), HttpPutWire),
    ],
)
def test_the_host_decides_the_wire(host, target, wire):
    assert valid(host) == replace(DEFAULT_OPTIONS, target=target, wire=wire)


def test_tls_has_a_wire_and_whom_to_trust():
    options = valid("tls://h:1")
    assert options.tls is not None
    assert replace(options, tls=None) == replace(DEFAULT_OPTIONS, target=Target("tls", "h", 1))


def test_another_wire_for_any_host():
    assert valid("http://127.0.0.1", wire="loadtest.wires:FramedWire").wire is FramedWire


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────────────────────

MISTAKES = [
    ("plan", "middle", "plan is 'middle', not one of compare, long, short, sweep, sweep:K,K,..."),
    ("plan", "", "plan is '', not one of"),
    ("plan", "sweep:", "uploads per connection is '', not a whole number from 0 (no end) to 1,000,000"),
    ("plan", "sweep:1,x", "uploads per connection is 'x', not a whole number"),
    ("plan", "sweep:" + ",".join("1" * 33), "66 measured phases: a plan may have at most 64"),
    ("uploads_per_connection", "1;2", "uploads per connection is '1;2', not a whole number"),
    ("uploads_per_connection", "1000001", "uploads per connection is '1000001', not a whole number"),
    ("uploads_per_connection", "-1", "uploads per connection is '-1', not a whole number"),
    ("phase_seconds", "abc", "phase seconds: 'abc' is not a duration: write seconds"),
    ("phase_seconds", "", "phase seconds: '' is not a duration"),
    ("phase_seconds", "-5", "'-5' is not a duration"),
    ("phase_seconds", "0", "phase seconds is 0 s: it must be from 1 s to 30 days"),
    ("phase_seconds", "999ms", "phase seconds is 0.999 s: it must be from 1 s to 30 days"),
    ("phase_seconds", "nan", "'nan' is not a duration"),
    ("phase_seconds", "inf", "'inf' is not a duration"),
    ("phase_seconds", "9" * 400, "is not a duration"),
    ("warm_up", "-1s", "warm up: '-1s' is not a duration"),
    ("warm_up", "", "warm up: '' is not a duration"),
    ("drain", "later", "drain: 'later' is not a duration"),
    ("drain", "-0", "drain: '-0' is not a duration"),
    ("arrival_rate", "x", "arrival rate 'x' is not one of profile constant: write one number, such as 2000"),
    ("arrival_rate", "-1", "arrival rate '-1' is not one of profile constant"),
    ("arrival_rate", "1e3", "arrival rate '1e3' is not one of profile constant"),
    ("arrival_rate", "1,2", "arrival rate '1,2' is not one of profile constant"),
    ("arrival_rate", "1000001", "arrival rate '1000001' is over 1,000,000 a second"),
    ("arrival_profile", "square", "'square', not one of constant, poisson, ramp, step"),
    ("arrival_profile", "", "'', not one of constant"),
    ("max_in_flight", "0", "max in flight is 0: it must be from 1 to 60,000"),
    ("max_in_flight", "60001", "max in flight is 60,001: it must be from 1 to 60,000"),
    ("max_in_flight", "many", "max in flight: 'many' is not a whole number"),
    ("at_cap", "wait", "'wait', not one of queue, drop"),
    ("shape", "square", "shape is 'square', not one of none, ramp, step, soak"),
    ("shape", "", "shape is '', not one of"),
    ("payloads", "4KX", "payloads: '4KX' is not a size"),
    ("payloads", "4KiB:", "payloads: '' is not a weight"),
    ("payloads", "", "payloads: '' is not a size"),
    ("payloads", "2GiB", "payloads: sizes up to 2 GiB, over 1 GiB of memory"),
    ("payloads", "lognormal:16KiB", "payloads: '' is not a sigma"),
    ("payload_dir", "/no/such/folder", "payload folder: '/no/such/folder' is not a folder"),
    ("payload_dir", __file__, "is not a folder"),
    ("payload_dir", "a" * 300, "is not a folder"),
    ("payload_dir", "a\0b", r"payload folder: 'a\x00b' is not a folder"),
    ("max_store", "", "max store: '' is not a size"),
    ("max_store", "-1", "max store: '-1' is not a size"),
    ("max_store", "much", "max store: 'much' is not a size"),
    ("wait", "-1", "wait: '-1' is not a duration"),
    ("wait", "soon", "wait: 'soon' is not a duration"),
    ("wait", "9" * 400, "is not a duration"),
    ("phase_seconds", "99999999999h", "it must be from 1 s to 30 days"),
    ("timeout", "0", "timeout is 0 s: it must be from 0.1 s to 30 days"),
    ("timeout", "99ms", "timeout is 0.099 s: it must be from 0.1 s to 30 days"),
    ("timeout", "never", "timeout: 'never' is not a duration"),
    ("closer", "nobody", "closer is 'nobody', not one of server, client"),
    ("close", "abort", "close is 'abort', not one of fin, rst"),
    ("close", "rst", "close is 'rst', but the server closes: set closer to client"),
    ("wire", "loadtest.wires", "wire is 'loadtest.wires': write MODULE:CLASS, such as my_wire:MyWire"),
    ("wire", "loadtest.wires:NoWire", "wire 'loadtest.wires:NoWire' cannot be had: "),
    ("wire", "no_such_module:Wire", "cannot be had: No module named 'no_such_module'"),
    ("wire", "loadtest.wires:FRAMED", "write MODULE:CLASS"),
    ("wire", ":Wire", "wire ':Wire' cannot be had: "),
    ("wire", ":", "wire ':' cannot be had: "),
    ("wire", ".wires:FramedWire", "wire '.wires:FramedWire' cannot be had: "),
    ("fail_if", "p99(response)", "'p99(response)' is no condition: write METRIC > VALUE"),
    ("fail_if", "p98(response) > 1ms", "there is no 'p98' of a duration"),
    ("fail_if", "failures > 1%; speed > 1", "there is no metric 'speed'"),
    ("seed", "abc", "seed: 'abc' is not a whole number"),
    ("seed", "", "seed: '' is not a whole number"),
    ("seed", "-1", "seed: '-1' is not a whole number"),
    ("seed", "1.0", "seed: '1.0' is not a whole number"),
    ("seed", "٣", "seed: '٣' is not a whole number"),
    ("seed", str(10**18 + 1), "seed is 1,000,000,000,000,000,001: it must be from 0 to 1,000,000,000,000,000,000"),
    ("seed", "9" * 5000, "seed: '9"),
]


@pytest.mark.parametrize(("field", "value", "said"), MISTAKES)
def test_mistakes(field, value, said):
    with pytest.raises(OptionError, match=re.escape(said)) as caught:
        valid(**{field: value})
    assert "\n" not in str(caught.value)


def test_every_option_has_mistakes_here():
    """Any label is a label, and a switch is on or off. Those of credentials are in test_credentials.py."""
    assert {field for field, _, _ in MISTAKES} == set(FIELDS) - {"label", *SWITCHES, *credentials.FIELDS}


def test_a_unix_socket_has_no_reset():
    with pytest.raises(OptionError, match=r"^close is 'rst', which unix sockets have not$"):
        valid("unix:///run/socket", closer="client", close="rst")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"arrival_rate": "5", "shape": "ramp"}, "shape belongs to the closed model: set it to none, or the arrival"),
        ({"fail_if": "p99(response) > 20ms"}, "fail if 'p99(response) > 20ms': the closed model has no response; take"),
        ({"fail_if": "failures > 1; max(pool_wait) > 1s"}, "the closed model has no pool_wait"),
        ({"arrival_rate": "1-2-3", "arrival_profile": "ramp"}, "arrival rate '1-2-3' is not one of profile ramp"),
        ({"arrival_rate": "0-0", "arrival_profile": "ramp"}, "arrival rate '0-0' is 0 all the time"),
        ({"arrival_rate": "5,", "arrival_profile": "step"}, "arrival rate '5,' is not one of profile step"),
    ],
)
def test_options_that_do_not_go_together(fields, said):
    with pytest.raises(OptionError, match=re.escape(said)):
        valid(**fields)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "127.0.0.1:12345",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:1/path",
        "http://",
        "http://127.0.0.1:1/a b",
    ],
)
def test_bad_hosts(host):
    said = (
        f"{host!r} is not a host: write tcp://HOST:PORT, such as tcp://127.0.0.1:12345, tls://HOST:PORT, unix:///PATH "
        "or http://HOST:PORT/PATH"
    )
    with pytest.raises(OptionError, match=f"^{re.escape(said)}$"):
        valid(host)


TEXTS = st.text() | st.text("0123456789.,:;-%()<>=/smhKkiMBp ", max_size=12)


@given(
    TEXTS, st.sampled_from([field for field in FIELDS if field not in SWITCHES]), st.sampled_from(["0", "9", "9-10"])
)
def test_any_text_is_an_option_or_an_option_error(text, field, rate):
    """Whatever the others are: in the form a mistake that raised anything else would be a bare error 500."""
    try:
        valid(**{"arrival_rate": rate, "arrival_profile": "ramp", field: text})
    except OptionError as error:
        assert str(error)


@given(TEXTS)
def test_any_text_is_a_host_or_an_option_error(text):
    try:
        valid(text)
    except OptionError as error:
        assert "is not a host" in str(error)


# ── a whole plan ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_planned_time_is_that_of_all_phases():
    assert valid().planned_s == 42.0
    assert valid(plan="long", phase_seconds="3", warm_up="0").planned_s == 3.0


def test_the_arrivals_of_a_phase():
    """A warm-up must not begin slowly where the measured phase begins fast, nor rise before it."""
    options = valid(arrival_rate="100-300", arrival_profile="ramp", plan="long")
    warm_up, measured = options.plan
    assert options.profile_of(warm_up) == Profile("constant", (100.0,))
    assert options.profile_of(measured) == Profile("ramp", (100.0, 300.0))
    from_nothing = valid(arrival_rate="300", arrival_profile="ramp", plan="long")
    assert from_nothing.profile_of(warm_up) is None
    assert [valid().profile_of(phase) for phase in (warm_up, measured)] == [None, None]


# ── users and the store ───────────────────────────────────────────────────────────────────────────────────────────


def test_users_of_the_closed_model():
    check_users(valid(), 1)
    check_users(valid(arrival_rate="0"), 100_000)
    with pytest.raises(
        OptionError, match=r"^number of users is 0: a run of the closed model needs at least 1, or give "
    ):
        check_users(valid(), 0)


def test_users_of_the_open_model():
    check_users(valid(arrival_rate="100"), 0)
    with pytest.raises(
        OptionError, match=r"^an arrival rate and 5 users: .*; set users to 0, or the arrival rate to 0$"
    ):
        check_users(valid(arrival_rate="100"), 5)
    with pytest.raises(OptionError):
        check_users(valid(arrival_rate="100"), -1)


NAMES = payloads.VARIANTS_PER_SIZE * payloads.NAMES_PER_PAYLOAD


@pytest.mark.parametrize(
    ("fields", "users", "at_once"),
    [({}, 3, 3), ({"arrival_rate": "1", "max_in_flight": "7"}, 0, 7)],
    ids=["closed", "open"],
)
def test_the_store_has_room_for_each_name_and_what_is_under_way(fields, users, at_once):
    """To the byte: one less is refused, and the text says how much it would have been."""
    needed = NAMES * (1000 + 200_000) + at_once * 200_000
    fields |= {"payloads": "1000,200000"}
    options = valid(**fields, max_store=str(needed))
    check_store(options, options.load_payloads(), users)
    options = valid(**fields, max_store=str(needed - 1))
    with pytest.raises(OptionError) as refused:
        check_store(options, options.load_payloads(), users)
    assert str(refused.value) == (
        f"this run could need {format_size(needed)} of the server's store (each name once, and {at_once} uploads under "
        f"way of up to 195 KiB), over {format_size(needed - 1)}: allow it with --max-store, or take fewer or smaller "
        "ones"
    )


def test_the_defaults_have_room():
    for fields, users in (({}, 100), ({"arrival_rate": "1000", "payloads": "64KiB"}, 0)):
        options = valid(**fields)
        check_store(options, options.load_payloads(), users)


# ── payloads ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_generated_payloads_are_loaded():
    chosen = valid(payloads="10:1,20:1").load_payloads()
    assert {payload.size_bytes for payload in chosen.payloads} == {10, 20}
    assert all(payload.digest() for payload in chosen.payloads)
    unverified = valid(payloads="10", verify_digest=False).load_payloads()
    assert not any(payload.digest() for payload in unverified.payloads)


def test_compressible_payloads_are_text():
    chosen = valid(payloads="4KiB", compressible=True).load_payloads()
    assert all(bytes(payload.view).isascii() for payload in chosen.payloads)
    assert not all(bytes(payload.view).isascii() for payload in valid(payloads="4KiB").load_payloads().payloads)


def test_files_are_loaded(tmp_path):
    (tmp_path / "file").write_bytes(b"data")
    chosen = valid(payload_dir=str(tmp_path)).load_payloads()
    assert [(payload.name, payload.size_bytes) for payload in chosen.payloads] == [("file", 4)]
    unverified = valid(payload_dir=str(tmp_path), verify_digest=False).load_payloads()
    assert unverified.payloads[0].digest() is None


def test_an_empty_folder_is_found_when_it_is_loaded(tmp_path):
    chosen = valid(payload_dir=str(tmp_path))
    assert chosen.payload_dir == tmp_path
    with pytest.raises(payloads.PayloadError, match="has no files"):
        chosen.load_payloads()
