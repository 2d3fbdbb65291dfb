"""What is uploaded: one sequence for one seed, names from a bounded set, and one clear sentence for a mistake."""

import errno
import math
import os
import socket
import statistics
import subprocess
import sys
import tracemalloc
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slow import examples

from loadtest import payloads
from loadtest.payloads import (
    LOGNORMAL_SIZES,
    MAX_TOTAL_BYTES,
    NAMES_PER_PAYLOAD,
    VARIANTS_PER_SIZE,
    Payload,
    PayloadError,
    PayloadSet,
    parse_mix,
)
from server.protocol import digest_of

MIX = [(1000, 3.0), (4000, 1.0)]
NOBODY = 65534


def small_set(seed=1, with_digests=True):
    return payloads.generated(MIX, seed, with_digests=with_digests)


def sequence(chosen, users=3, uploads=200):
    """What these users send, as plain values."""
    picks = (chosen.pick(user, upload) for user in range(users) for upload in range(uploads))
    return [(name, payload.size_bytes, payload.digest()) for payload, name in picks]


def arrivals(chosen, count=2000):
    """What the open model sends, as plain values."""
    picks = (chosen.pick_arrival(index) for index in range(count))
    return [(name, payload.size_bytes, payload.digest()) for payload, name in picks]


# ── the mix ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mixes():
    assert parse_mix("4KiB:70,64KiB:25, 1MiB:5") == [(4096, 70.0), (65536, 25.0), (1 << 20, 5.0)]
    assert parse_mix("4k") == [(4096, 1.0)]
    assert parse_mix("0:0.5,1:1e3") == [(0, 0.5), (1, 1000.0)]
    assert sum(weight for _, weight in parse_mix(payloads.DEFAULT_MIX)) == 100


@pytest.mark.parametrize(
    "text", ["4KX", "", ",", "4KiB,", ":5", "-1", "1.5", "KiB", "9" * 400, "4 KiB KiB", "nan", "1TiB"]
)
def test_bad_sizes(text):
    with pytest.raises(PayloadError, match=r"^payloads: .* is not a size: write bytes, or a number with KiB"):
        parse_mix(text)


@pytest.mark.parametrize("weight", ["", "-1", "0", "x", "nan", "NaN", "inf", "1e999", "1:2", "1e308"])
def test_bad_weights(weight):
    with pytest.raises(PayloadError, match=r"is not a weight: write a number .*, such as 4KiB:70$"):
        parse_mix(f"4KiB:{weight}")


@pytest.mark.parametrize("text", ["1025MiB", "1,1GiB,1025MiB", "lognormal:1GiB,0.1", "lognormal:16MiB,4"])
def test_too_much(text):
    with pytest.raises(PayloadError, match=r"^payloads: sizes up to .*iB, over 1 GiB of memory$"):
        parse_mix(text)


@pytest.mark.parametrize("text", ["1GiB", "1GiB,1", "600MiB:1,600MiB:1"])
def test_sizes_share_one_buffer(text):
    assert max(size for size, _ in parse_mix(text)) <= MAX_TOTAL_BYTES


def test_lognormal_sizes():
    mix = parse_mix("lognormal:16KiB,1.5")
    sizes = [size for size, _ in mix]
    assert parse_mix(" lognormal: 16KiB , 1.5 ") == mix
    assert len(mix) == LOGNORMAL_SIZES
    assert {weight for _, weight in mix} == {1.0}
    assert sizes == sorted(sizes)
    assert statistics.median(sizes) == pytest.approx(16384, rel=0.01)
    assert statistics.pstdev(map(math.log, sizes)) == pytest.approx(1.5, rel=0.02)
    assert {size for size, _ in parse_mix("lognormal:1,0.01")} == {1}
    assert min(parse_mix("lognormal:10,4"))[0] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not a size"),
        ("16KX,1", "'16KX' is not a size"),
        (",1.5", "'' is not a size"),
        ("0,1.5", "'0' is not a median: write a size from 1 byte to 1 GiB, such as 16KiB"),
        ("2GiB,1.5", "'2GiB' is not a median"),
        ("9" * 300 + ",1", "' is not a median"),
        ("16KiB", "'' is not a sigma: write a number above 0 and at most 4, such as lognormal:16KiB,1.5"),
        ("16KiB,", "'' is not a sigma"),
        ("16KiB,0", "'0' is not a sigma"),
        ("16KiB,-1", "'-1' is not a sigma"),
        ("16KiB,4.01", "'4.01' is not a sigma"),
        ("16KiB,nan", "'nan' is not a sigma"),
        ("16KiB,inf", "'inf' is not a sigma"),
        ("16KiB,1,2", "'1,2' is not a sigma"),
    ],
)
def test_bad_lognormals(text, said):
    with pytest.raises(PayloadError) as caught:
        parse_mix(f"lognormal:{text}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


TEXTS = st.text(st.sampled_from("0123456789.:,kKMGiB e-+_xinfa"), max_size=20)


@given(TEXTS | st.text())
def test_any_text_is_a_mix_or_a_payload_error(text):
    try:
        mix = parse_mix(text)
    except PayloadError:
        return
    assert len(mix) == text.count(",") + 1
    assert all(0 <= size <= MAX_TOTAL_BYTES for size, _ in mix)
    assert all(weight > 0 for _, weight in mix)


@given(TEXTS)
def test_any_text_is_a_lognormal_or_a_payload_error(text):
    try:
        mix = parse_mix(f"lognormal:{text}")
    except PayloadError:
        return
    assert len(mix) == LOGNORMAL_SIZES
    assert all(1 <= size <= MAX_TOTAL_BYTES for size, _ in mix)


# ── generated payloads ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_gives_the_same_sequence():
    assert sequence(small_set()) == sequence(small_set())
    assert arrivals(small_set()) == arrivals(small_set())


def test_another_seed_gives_another_sequence():
    for send in (sequence, arrivals):
        one, other = send(small_set(with_digests=False)), send(small_set(seed=2, with_digests=False))
        assert [size for _, size, _ in one] != [size for _, size, _ in other]
        assert [name for name, _, _ in one] != [name for name, _, _ in other]
    one, other = small_set(), small_set(seed=2)
    assert {payload.digest() for payload in one.payloads}.isdisjoint(payload.digest() for payload in other.payloads)


def test_another_process_sends_the_same():
    script = "from loadtest import payloads as p; s = p.generated([(1000, 3.0), (4000, 1.0)], 1, with_digests=True);"
    script += "print([(n, b.size_bytes, b.digest()) for u in range(3) for i in range(200) for b, n in [s.pick(u, i)]])"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(sequence(small_set()))


def test_payloads_are_what_they_say():
    chosen = small_set()
    assert len(chosen.payloads) == len(MIX) * VARIANTS_PER_SIZE
    for payload in chosen.payloads:
        data = b"".join(payload.pieces())
        assert len(data) == payload.size_bytes
        assert payload.digest() == digest_of("xxh3_128", data)
        assert len(payload.names) == NAMES_PER_PAYLOAD
    assert len({payload.digest() for payload in chosen.payloads}) == len(chosen.payloads)
    assert all(payload.digest() is None for payload in small_set(with_digests=False).payloads)
    assert chosen.largest_bytes == 4000


def test_names_are_bounded_and_each_belongs_to_one_payload():
    """However long a run is, the store does not grow; and whoever reads a stored file can tell what it should be."""
    picks = sequence(small_set(), users=50, uploads=500) + arrivals(small_set())
    content = {}
    for name, size, digest in picks:
        assert content.setdefault(name, (size, digest)) == (size, digest)
    assert len(content) <= len(MIX) * VARIANTS_PER_SIZE * NAMES_PER_PAYLOAD


@given(st.integers(0, 10**9), st.integers(0, 10**12))
def test_any_user_and_any_upload_has_a_payload(user, upload):
    chosen = CHOSEN
    payload, name = chosen.pick(user, upload)
    assert payload in chosen.payloads
    assert name in payload.names


CHOSEN = small_set()


@examples(20)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5, unique=True), st.integers(0, 2**60))
def test_shares_are_near_the_weights(weights, seed):
    mix = [(size, float(weight)) for size, weight in enumerate(weights)]
    chosen = payloads.generated(mix, seed, with_digests=False)
    picks = 16384  # the length of the whole sequence
    counts = Counter(payload.size_bytes for payload, _ in (chosen.pick(0, upload) for upload in range(picks)))
    for size, weight in mix:
        share = weight / sum(weights)
        assert abs(counts[size] / picks - share) < 6 * (share * (1 - share) / picks) ** 0.5 + 1e-9  # six sigma


@given(st.integers(0, 10**15) | st.integers(16384 - 200, 16384))
def test_arrivals_of_one_payload_take_its_names_in_turn(first):
    """Also where the sequence of payloads, which is 16384 long, begins again."""
    last = {}
    for index in range(first, first + 200):
        payload, name = CHOSEN.pick_arrival(index)
        place = payload.names.index(name)
        assert place == (last.get(payload.name, place - 1) + 1) % NAMES_PER_PAYLOAD
        last[payload.name] = place


def test_a_size_that_is_given_twice_is_one():
    """Else two payloads would have the same names, and an upload of one meet one of the other at the same file."""
    chosen = payloads.generated([(10, 1.0), (20, 1.0), (10, 2.0)], 1, with_digests=False)
    assert [payload.size_bytes for payload in chosen.payloads] == [10] * VARIANTS_PER_SIZE + [20] * VARIANTS_PER_SIZE
    counts = Counter(payload.size_bytes for payload, _ in (chosen.pick(0, upload) for upload in range(16384)))
    assert counts[10] / counts[20] == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("processes", [1, 3])
def test_users_do_not_march_in_step(processes):
    """The numbers are those that `LoadProcess.next_user` gives 100 users: 1,024 apart within a load process."""
    numbers = [1024 * (user // processes) + user % processes for user in range(100)]
    chosen = payloads.generated(parse_mix(payloads.DEFAULT_MIX), 1, with_digests=False)
    picks = {user: [chosen.pick(user, upload) for upload in range(20)] for user in numbers}
    assert len({tuple(payload.name for payload, _ in picks[user]) for user in numbers}) == 100
    assert len({tuple(name for _, name in picks[user][:4]) for user in numbers}) == 100


def test_payloads_of_no_bytes():
    chosen = payloads.generated([(0, 1.0)], 1, with_digests=True)
    payload, name = chosen.pick(0, 0)
    assert payload.size_bytes == 0
    assert name in payload.names
    assert b"".join(payload.pieces()) == b""


@pytest.mark.parametrize("size", [4096, 65536, 1 << 20])
def test_text_is_compressible_and_noise_is_not(size):
    def shrunk_to(compressible):
        chosen = payloads.generated([(size, 1.0)], 1, with_digests=False, compressible=compressible)
        return max(len(zlib.compress(payload.view, 1)) for payload in chosen.payloads) / size

    assert shrunk_to(compressible=True) < 1 / 3
    assert shrunk_to(compressible=False) > 1


def test_text_is_a_function_of_the_seed():
    def text(seed):
        return payloads.generated(MIX, seed, with_digests=True, compressible=True)

    assert sequence(text(1)) == sequence(text(1))
    assert {p.digest() for p in text(1).payloads}.isdisjoint(p.digest() for p in text(2).payloads)
    assert len({p.digest() for p in text(1).payloads}) == len(MIX) * VARIANTS_PER_SIZE
    assert bytes(text(1).payloads[0].view).decode().split()[0].isalpha()


@pytest.mark.parametrize("compressible", [False, True])
def test_making_and_hashing_takes_one_buffer(compressible):
    """26 MB payloads are to fit into a load process of 300 MiB."""
    size = 64 << 20
    tracemalloc.start()
    try:
        chosen = payloads.generated([(size, 1.0), (size - 1, 1.0)], 1, with_digests=True, compressible=compressible)
        assert chosen.largest_bytes == size
        assert tracemalloc.get_traced_memory()[1] < 1.3 * size
    finally:
        tracemalloc.stop()


# ── what the store needs ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_store_needs_each_name_once_and_what_is_under_way():
    named = (1000 + 4000) * VARIANTS_PER_SIZE * NAMES_PER_PAYLOAD
    assert small_set().store_bytes(0) == named
    assert small_set().store_bytes(10) == named + 10 * 4000


def test_files_of_one_name_are_stored_once():
    files = [Payload("a", memoryview(bytes(size)), None, ("a",)) for size in (5, 9, 7)]
    assert PayloadSet(files, [1.0] * 3, 1).store_bytes(0) == 9


# ── a folder of files ─────────────────────────────────────────────────────────────────────────────────────────────


def from_folder(folder):
    return payloads.from_folder(folder, 1, with_digests=True)


def test_files_of_a_folder(tmp_path, caplog):
    """What is no file is passed over, which is said the first time."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a").write_bytes(b"A")
    (tmp_path / "deep" / "er" / "größe.bin").write_bytes(b"BB" * 500)
    (tmp_path / "empty").touch()
    for name, target in (
        ("link", "a"),
        ("broken", "nowhere"),
        ("deep/loop", ".."),
        ("self", "self"),
        ("other", "/etc"),
    ):
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "deep" / "socket"))
    chosen = from_folder(tmp_path)
    assert caplog.messages == [f"payload folder: passed over in '{tmp_path}': 5 links, 1 pipe, 1 socket"]
    assert {p.name: b"".join(p.pieces()) for p in chosen.payloads} == {
        "a": b"A",
        "größe.bin": b"BB" * 500,
        "empty": b"",
    }
    assert all(payload.names == (payload.name,) for payload in chosen.payloads)
    assert {payload.name for payload, _ in (chosen.pick(0, n) for n in range(1000))} == {"a", "größe.bin", "empty"}
    assert sequence(chosen) == sequence(from_folder(tmp_path))
    assert arrivals(chosen) == arrivals(from_folder(tmp_path))
    assert len(caplog.messages) == 1
    assert (chosen.largest_bytes, chosen.store_bytes(2)) == (1000, 1001 + 2 * 1000)


def folder_error(folder):
    with pytest.raises(PayloadError) as caught:
        from_folder(folder)
    text = str(caught.value)
    assert text.startswith("payload folder: ")
    assert "\n" not in text
    return text


def test_folder_errors(tmp_path):
    assert folder_error(tmp_path / "none") == f"payload folder: '{tmp_path}/none' is not a folder"
    (tmp_path / "file").touch()
    assert "is not a folder" in folder_error(tmp_path / "file")
    (tmp_path / "bare" / "deep").mkdir(parents=True)
    assert folder_error(tmp_path / "bare") == f"payload folder: '{tmp_path}/bare' has no files"


def test_a_folder_that_is_too_large(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(MAX_TOTAL_BYTES + 1)
    assert "has over 1 GiB, the most that is held in memory" in folder_error(tmp_path)


def test_a_folder_that_takes_long_shows_that_it_goes_on(tmp_path):
    """On the terminal of `run`, which sets up no log."""
    for name in ("a", "b"):
        (tmp_path / name).touch()
    script = "import pathlib, sys; from loadtest import payloads as p; p.TELL_EVERY_S = 0;"
    script += "p.from_folder(pathlib.Path(sys.argv[1]), 1, with_digests=False)"
    told = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    lines = [f"payload folder: {number} files {done} so far" for done in ("found", "read") for number in range(2)]
    assert told.stderr.splitlines() == lines


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("new\nline", "the file name has a control character"),
        ("back\\", "'back\\\\' names no file"),
        ("control\x01", "the file name has a control character"),
        (os.fsdecode(b"no-utf8-\xff"), "its name is not UTF-8"),
    ],
)
def test_names_that_cannot_be_uploaded(tmp_path, name, why):
    (tmp_path / name).touch()
    assert folder_error(tmp_path) == f"payload folder: {str(tmp_path / name)!r} cannot be uploaded: {why}"


def test_names_are_the_same_in_every_locale(tmp_path):
    (tmp_path / "größe").touch()
    script = "import pathlib, sys; from loadtest import payloads as p;"
    script += "print(ascii(p.from_folder(pathlib.Path(sys.argv[1]), 1, with_digests=False).payloads[0].name))"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    told = subprocess.run(
        [sys.executable, "-c", script, tmp_path], env=os.environ | locale, capture_output=True, text=True, check=True
    )
    assert told.stdout == ascii("größe") + "\n"


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(path):  # root may read every file
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "secret").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert folder_error(tmp_path) == f"payload folder: '{tmp_path}/secret' cannot be read: Permission denied"


def test_a_file_that_vanishes(tmp_path, monkeypatch):
    def vanish(path, **_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "lstat", vanish)
    assert folder_error(tmp_path).endswith("/file' cannot be read: No such file or directory")


@contextmanager
def as_nobody():
    """Root may read everything, so it is somebody else for a moment."""
    uid = os.geteuid()
    os.seteuid(NOBODY if uid == 0 else uid)
    try:
        yield
    finally:
        os.seteuid(uid)


@pytest.mark.parametrize(
    ("mode", "named"), [(0o000, "deep/closed"), (0o111, "deep/closed"), (0o444, "deep/closed/file")]
)
def test_a_folder_below_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch, mode, named):
    closed = tmp_path / "deep" / "closed"
    closed.mkdir(parents=True)
    for folder in (tmp_path, closed.parent, closed):
        (folder / "file").touch()
        folder.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the folders above are root's own
    closed.chmod(mode)
    try:
        with as_nobody():
            assert folder_error(Path("deep")) == f"payload folder: '{named}' cannot be read: Permission denied"
    finally:
        closed.chmod(0o755)
