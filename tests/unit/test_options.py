"""Options arrive as texts, from a command line or a web form, and each mistake has one clear sentence."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import options, payloads, phases
from loadtest.options import FIELDS, LoadOptions, OptionError, validate

HOST = "tcp://127.0.0.1:12345"
FINE = {
    "plan": "compare",
    "phase_seconds": options.DEFAULT_PHASE_SECONDS,
    "payloads": payloads.DEFAULT_MIX,
    "payload_dir": "",
    "wait": options.DEFAULT_WAIT,
    "verify_digest": True,
    "seed": options.DEFAULT_SEED,
    "label": "test",
}


def test_the_defaults():
    assert set(FINE) == set(FIELDS)
    assert validate(HOST, FINE) == LoadOptions(
        address=("127.0.0.1", 12345),
        plan=phases.plan("compare", 10.0),
        mix=payloads.parse_mix(payloads.DEFAULT_MIX),
        payload_dir=None,
        wait_s=0.04,
        verify_digest=True,
        seed=1,
    )


def test_all_other_values(tmp_path):
    texts = {"plan": "short", "phase_seconds": "1.5min", "payloads": "1MiB", "payload_dir": f" {tmp_path} "}
    texts |= {"wait": "0", "verify_digest": False, "seed": "0", "label": ""}
    assert validate("tcp://[::1]:1", texts) == LoadOptions(
        address=("::1", 1),
        plan=phases.plan("short", 90.0),
        mix=[(1 << 20, 1.0)],
        payload_dir=tmp_path,
        wait_s=0.0,
        verify_digest=False,
        seed=0,
    )


@pytest.mark.parametrize("number", [2, 2.5])
def test_numbers_do_as_well_as_texts(number):
    assert validate(HOST, FINE | {"phase_seconds": number, "wait": number, "seed": 2}).plan[1].duration_s == number


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("plan", "middle", "plan is 'middle', not one of compare, long, short"),
        ("plan", "", "plan is '', not one of"),
        ("phase_seconds", "abc", "phase seconds or wait: 'abc' is not a duration: write seconds"),
        ("phase_seconds", "", "'' is not a duration"),
        ("phase_seconds", "-5", "'-5' is not a duration"),
        ("phase_seconds", "0", "phase seconds is 0: a phase needs at least 1 s"),
        ("phase_seconds", "999ms", "phase seconds is 0.999: a phase needs at least 1 s"),
        ("phase_seconds", "nan", "'nan' is not a duration"),
        ("phase_seconds", "inf", "'inf' is not a duration"),
        ("phase_seconds", "9" * 400, "is not a duration"),
        ("wait", "-1", "'-1' is not a duration"),
        ("wait", "soon", "'soon' is not a duration"),
        ("wait", "9" * 400, "is not a duration"),
        ("payloads", "4KX", "payloads: '4KX' is not a size"),
        ("payloads", "4KiB:", "payloads: '' is not a weight"),
        ("payloads", "", "payloads: '' is not a size"),
        ("payload_dir", "/no/such/folder", "payload folder: '/no/such/folder' is not a folder"),
        ("payload_dir", __file__, "is not a folder"),
        ("payload_dir", "a\0b", r"payload folder: 'a\\x00b' is not a folder"),
        ("seed", "abc", "seed is 'abc', not a whole number from 0"),
        ("seed", "", "seed is ''"),
        ("seed", "-1", "seed is '-1'"),
        ("seed", "1.0", "seed is '1.0'"),
        ("seed", "٣", "seed is '٣'"),
        ("seed", "9" * 19, "seed is '9"),
    ],
)
def test_mistakes(field, value, said):
    with pytest.raises(OptionError, match=said) as caught:
        validate(HOST, FINE | {field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["", "127.0.0.1:12345", "http://127.0.0.1:12345", "tcp://127.0.0.1"])
def test_bad_hosts(host):
    with pytest.raises(OptionError, match="is not a host: write tcp://HOST:PORT"):
        validate(host, FINE)


@given(st.text(), st.sampled_from([field for field in FIELDS if field not in ("verify_digest", "label")]))
def test_any_text_is_an_option_or_an_option_error(text, field):
    try:
        validate(HOST, FINE | {field: text})
    except OptionError as error:
        assert str(error)


def test_generated_payloads_are_loaded():
    chosen = validate(HOST, FINE | {"payloads": "10:1,20:1"}).load_payloads()
    assert {payload.size_bytes for payload in chosen.payloads} == {10, 20}
    assert all(payload.digest() for payload in chosen.payloads)
    unverified = validate(HOST, FINE | {"payloads": "10", "verify_digest": False}).load_payloads()
    assert not any(payload.digest() for payload in unverified.payloads)


def test_files_are_loaded(tmp_path):
    (tmp_path / "file").write_bytes(b"data")
    chosen = validate(HOST, FINE | {"payload_dir": str(tmp_path)}).load_payloads()
    assert [(payload.name, payload.size_bytes) for payload in chosen.payloads] == [("file", 4)]
    unverified = validate(HOST, FINE | {"payload_dir": str(tmp_path), "verify_digest": False}).load_payloads()
    assert unverified.payloads[0].digest() is None


def test_an_empty_folder_is_found_when_it_is_loaded(tmp_path):
    chosen = validate(HOST, FINE | {"payload_dir": str(tmp_path)})
    assert chosen.payload_dir == Path(tmp_path)
    with pytest.raises(payloads.PayloadError, match="has no files"):
        chosen.load_payloads()
