"""Locust's web page through its HTTP API, as a browser uses it: runs are started, stopped and refused there."""

import json
import re
import signal
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from loads import LOCUST, Command, acked, assert_complete, built, events, failures, seconds, started
from servers import DEADLINE_S, ROOT, eventually, free_port, running

from loadtest.options import OPTIONS
from reports import run_folder


@dataclass
class Page:
    """A Locust with its web page, and the server that it loads."""

    url: str
    job: Command
    host: str

    def get(self, path):
        with urllib.request.urlopen(f"{self.url}{path}", timeout=DEADLINE_S) as answer:
            return answer.read().decode()

    def post(self, path, **fields):
        data = urllib.parse.urlencode(fields).encode()
        with urllib.request.urlopen(f"{self.url}{path}", data=data, timeout=DEADLINE_S) as answer:
            return json.load(answer)

    def start(self, **fields):
        """Start as the page's form does: all fields are sent, each as a text, a checkbox as true or false."""
        form = {option.field: option.default for option in OPTIONS if option.in_form}
        form |= {"plan": "long", "phase_seconds": "600", "payloads": "4KiB", "wait": "25ms", "label": "page"}
        form |= {"user_count": 2, "spawn_rate": 100, "host": self.host} | fields
        checkboxes = {key: str(value).lower() for key, value in form.items() if isinstance(value, bool)}
        return self.post("/swarm", **form | checkboxes)

    def trust(self):
        """What the tab "Trust" says: (now, means) of each of its rows."""
        [table] = json.loads(self.get("/stats/requests"))["extended_stats"]
        return {row["what"]: (row["now"], row["means"]) for row in table["data"]}

    def wait_for(self, state):
        """Until the page shows this state; it shows one that is up to 2 s old."""
        eventually(lambda: json.loads(self.get("/stats/requests"))["state"] == state, f"the page says {state}")

    def loading(self, number):
        """Wait until the `number`-th run has acknowledged uploads."""
        eventually(lambda: len(self.job.runs()) == number, f"run {number} has begun")
        self.job.in_phase("warm-up")

    def finished(self, number):
        """The folder of the `number`-th run, once all but its report is written down."""

        def ended():
            info = self.job.info() if len(self.job.runs()) == number else None
            return info is not None and info.ended is not None

        eventually(ended, f"the end of run {number}; it said:\n{self.job.said()}")
        return self.job.runs()[number - 1]

    def reported(self, number):
        """The same of a page whose runs have reports."""
        folder = self.finished(number)
        eventually((folder / run_folder.REPORT_HTML).exists, f"report {number}; it said:\n{self.job.said()}")
        return folder


@contextmanager
def web_page(tmp_path, host, *options, web_host="127.0.0.1"):
    port = free_port()
    address = ["--host", host, "--web-host", web_host, "--web-port", str(port)]
    with started(tmp_path, *LOCUST, *address, *options) as job:
        page = Page(f"http://{web_host}:{port}", job, host)
        eventually(lambda: answers(page), "the page answers")
        yield page
        job.process.send_signal(signal.SIGTERM)
        job.wait()


def answers(page):
    try:
        return page.get("/")
    except OSError:
        return None


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def session(server, tmp_path_factory):
    """One session for all tests here, as a person would have it, but for the reports: who looks at one builds it."""
    with web_page(tmp_path_factory.mktemp("web"), f"tcp://127.0.0.1:{server.port}", "--no-report") as page:
        yield page


@pytest.fixture
def page(session):
    yield session
    session.post("/stop")  # a test that failed must not leave its run to the next one


def test_the_form_has_our_fields(page):
    html = page.get("/")
    for option in OPTIONS:
        assert (f'"{option.field}": {{' in html) is option.in_form
    for field in ("run_folder", "run_command", "no_report"):
        assert f'"{field}"' not in html


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"plan": "middle"}, "plan is 'middle', not one of compare, long, short"),
        ({"phase_seconds": "abc"}, "'abc' is not a duration: write seconds"),
        ({"phase_seconds": "0"}, "phase seconds is 0 s: it must be from 1 s to 30 days"),
        ({"payloads": "4KX"}, "payloads: '4KX' is not a size"),
        ({"payload_dir": "/no/such/folder"}, "payload folder: '/no/such/folder' is not a folder"),
        ({"wait": "-1"}, "'-1' is not a duration"),
        ({"seed": "one"}, "seed: 'one' is not a whole number"),
        ({"host": "tcp://127.0.0.1:{closed}"}, "no server at tcp://127.0.0.1:{closed}: Connection refused"),
        ({"host": "http://127.0.0.1:{closed}/"}, "no server at http://127.0.0.1:{closed}/: Connection refused"),
        ({"host": "https://127.0.0.1:1"}, "https:// is not supported: write http://HOST:PORT/PATH"),
        ({"host": "http://user:hunter2@127.0.0.1"}, "what was given is not a host: it has a user or a password"),
        ({"host": "tcp://127.0.0.1:1?hunter2"}, "what was given is not a host: it has a query or a fragment"),
        ({"host": ""}, "'' is not a host"),
        ({"host": "tcp://a..b:1"}, "'tcp://a..b:1' is not a host"),
        ({"user_count": "many"}, "Invalid user_count"),
        ({"user_count": "0"}, "number of users is 0: a run of the closed model needs at least 1"),
        ({"user_count": "0", "arrival_rate": "x"}, "arrival rate 'x' is not one of profile constant"),
        ({"arrival_rate": "100"}, "an arrival rate and 2 users: the open model has no users; set users to 0"),
        ({"arrival_rate": "100", "user_count": "-1"}, "an arrival rate and -1 users"),
        ({"arrival_profile": "square"}, "not one of constant, poisson, ramp, step"),
        ({"run_folder": "elsewhere"}, "run_folder can be set on the command line only"),
        ({"run_command": "rm"}, "run_command can be set on the command line only"),
        ({"no_report": "true"}, "no_report can be set on the command line only"),
        ({"shape": "square"}, "shape is 'square', not one of none, ramp, step, soak"),
        ({"max_store": "1KiB"}, "over 1 KiB: allow it with --max-store"),
        ({"fail_if": "p99 > 1ms"}, "there is no metric 'p99'"),
        ({"wire": "loadtest.wires:FramedWire"}, "wire can be set on the command line only"),
        ({"token_file": "/etc/hostname"}, "token_file can be set on the command line only"),
        ({"key": "/etc/hostname"}, "key can be set on the command line only"),
        ({"host": "tls://127.0.0.1:{closed}"}, "no server at tls://127.0.0.1:{closed}: Connection refused"),
        ({"host": "unix:///no/socket"}, "no server at unix:///no/socket: No such file or directory"),
    ],
    ids=str,
)
def test_wrong_fields_are_refused(page, fields, said):
    closed = free_port()
    before = page.job.runs()
    answer = page.start(**{key: value.format(closed=closed) for key, value in fields.items()})
    assert answer["success"] is False
    assert said.format(closed=closed) in answer["message"]
    assert "\n" not in answer["message"]
    assert "hunter2" not in str(answer) + page.get("/") + page.job.said()
    assert page.job.runs() == before


def test_an_empty_folder_is_refused(page, tmp_path):
    answer = page.start(payload_dir=str(tmp_path))
    assert (answer["success"], answer["message"]) == (False, f"payload folder: '{tmp_path}' has no files")


def test_two_runs_in_one_session(tmp_path, server):
    with web_page(tmp_path, f"tcp://127.0.0.1:{server.port}") as page:
        run_twice(page, server)


def run_twice(page, server):
    stored = server.stored()
    assert page.start(seed="5", label="first")["success"] is True
    page.loading(1)
    page.wait_for("running")
    assert page.post("/stop")["success"] is True
    # The second begins while the first one's report is still being built, and ends by itself.
    fields = {"user_count": 3, "phase_seconds": "6", "warm_up": "0", "plan": "short", "verify_digest": "false"}
    assert page.start(**fields, shape="ramp")["success"] is True
    second = page.reported(2)
    first = page.job.runs()[0]
    page.wait_for("stopped")
    eventually(lambda: server.slots()[0].connections_now == 0, "no connection is left")

    info = assert_complete(first)
    assert (info.ended.how, info.users, info.seed, info.label) == ("stopped", 2, 5, "first")
    assert info.load_options["verify_digest"] is True
    assert failures(first) == failures(second) == {}
    info = assert_complete(second)
    assert (info.ended.how, info.users, info.label) == ("completed", 3, "page")
    assert info.load_options["verify_digest"] is False
    assert acked(second, "short-1")
    assert first.name.endswith("-first") and second.name.endswith("-page")
    assert acked(first) + acked(second) == server.stored() - stored

    # The shape's time began when the run before had its report. And it is not in the way of the next run.
    numbers = [event.details["users"] for event in events(second, "users-changed")]
    assert numbers[0] < numbers[-1] == 3
    assert re.search('"hide_common_options": (null|false)', page.get("/"))
    answer = page.post("/swarm", spawn_rate=1, host=page.host, payloads="4KX")
    assert (answer["success"], answer["message"][:29]) == (False, "Missing or invalid user_count")
    page.wait_for("stopped")
    assert len(page.job.runs()) == 2


@dataclass(frozen=True)
class Ended:
    """A run that was asked for more while it went on."""

    folder: Path
    stored: int
    """Uploads that the server has of it."""
    answers: dict[str, tuple[bool, str]]
    """What the page said, by what it was asked for."""
    trust: dict[str, tuple[str, str]]


OPEN = {"user_count": 0, "arrival_rate": "50"}
NOTHING = {"Verdict": ("–", "nothing was uploaded yet")}


def run_and_ask(page, server, questions, fields):
    """Start with these fields, start again with those of each question, and stop."""
    stored, number = server.stored(), len(page.job.runs()) + 1
    assert page.trust() == NOTHING
    assert page.start(**fields)["success"] is True
    page.loading(number)
    trust = eventually(lambda: (rows := page.trust()).get("Phase") == ("warm-up", "") and rows, "the tab shows the run")
    answers = {}
    for name, changed in questions.items():
        answer = page.start(**fields | changed)
        answers[name] = (answer["success"], answer["message"])
        if answer["success"]:
            eventually(lambda: has_had(page.job.runs()[-1], 4), "4 users")
    assert page.post("/stop")["success"] is True
    folder = page.finished(number)
    built(folder)
    return Ended(folder, server.stored() - stored, answers, trust)


def has_had(folder, users):
    return any(event.details["users"] == users for event in events(folder, "users-changed"))


@pytest.fixture(scope="module")
def closed_run(session, server):
    questions = {"seed": {"user_count": 4, "seed": "2"}, "wire": {"wire": "loadtest.wires:FramedWire"}}
    return run_and_ask(session, server, questions | {"users": {"user_count": 4}}, {"warm_up": "600"})


@pytest.fixture(scope="module")
def open_run(session, server):
    return run_and_ask(session, server, {"users": {"user_count": 4}}, OPEN | {"warm_up": "600"})


def test_users_can_be_added_to_a_run(closed_run):
    assert closed_run.answers["seed"] == (False, "seed cannot change while a test runs")
    assert closed_run.answers["users"][0] is True
    assert_complete(closed_run.folder)
    assert acked(closed_run.folder) == closed_run.stored


def test_the_open_model(page, server):
    """Its users are 0, which Locust takes for a test like any other."""
    stored, number = server.stored(), len(page.job.runs()) + 1
    assert page.start(**OPEN, phase_seconds="1", warm_up="0", plan="short", label="open")["success"] is True
    folder = page.finished(number)
    page.wait_for("stopped")
    built(folder)
    info = assert_complete(folder)
    assert (info.model, info.users, info.ended.how) == ("open", 0, "completed")
    assert [phase.offered for phase in info.phases if phase.kind == "measure"] == [50]
    assert (failures(folder), acked(folder), acked(folder, "short-1")) == ({}, 50, 50)
    assert server.stored() - stored == 50


def test_the_open_model_is_stopped(open_run):
    info = assert_complete(open_run.folder)
    assert (info.model, info.ended.how, info.phases[-1].name) == ("open", "stopped", "drain")
    assert failures(open_run.folder) == {}
    assert acked(open_run.folder) == open_run.stored


def test_the_open_model_gets_no_users_later(open_run):
    success, message = open_run.answers["users"]
    assert success is False
    assert "an arrival rate and 4 users: the open model has no users" in message
    assert {line.users for line in seconds(open_run.folder)} == {0}


def test_a_wire_cannot_be_set_during_a_run_either(closed_run):
    """It would be imported by the next one."""
    assert closed_run.answers["wire"] == (False, "wire can be set on the command line only")


def test_trust_is_shown_while_a_run_goes_on(page, closed_run, open_run):
    """And before it began there was nothing to tell, as there is nothing any more."""
    for run in (closed_run, open_run):
        assert run.trust["Verdict"][0] in ("VALID so far", "LOWER BOUND", "NOISY")
        assert run.trust["Uploads"][0].endswith("/s")
    assert page.trust() == NOTHING


def test_it_listens_on_loopback_only(tmp_path):
    """With the project's own defaults: Locust's are all interfaces, and it has no login."""
    port = free_port()
    command = [LOCUST[0], "-m", "locust", "--web-port", str(port)]
    with started(tmp_path, *command, cwd=ROOT) as job:
        eventually(lambda: answers(Page(f"http://127.0.0.1:{port}", job, "")), "the page answers")
        listening = [
            c.laddr for c in psutil.Process(job.process.pid).net_connections() if c.status == psutil.CONN_LISTEN
        ]
        assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", port)]
        assert "tcp://127.0.0.1:12345" in answers(Page(f"http://127.0.0.1:{port}", job, ""))
        job.process.send_signal(signal.SIGTERM)
        job.wait()


@pytest.fixture(scope="module")
def seen_by_others(server, tmp_path_factory):
    """(what the page said to who names a folder of this machine, the runs there were then, the run that came after): of
    a page that is not on localhost, and was ended in that run."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "secret").write_text("s")
    with web_page(folder, f"tcp://127.0.0.1:{server.port}", web_host="127.0.0.2") as page:
        answer = page.start(payload_dir=str(folder))
        before = page.job.runs()
        page.start()
        page.loading(1)
        page.job.process.send_signal(signal.SIGTERM)
        page.job.wait()
    return answer, before, page.job.runs()[0]


def test_ending_locust_in_a_run_leaves_its_report(seen_by_others):
    _, _, folder = seen_by_others
    assert assert_complete(folder).ended.how == "stopped"


def test_a_folder_of_this_machine_is_not_for_everybody_who_sees_the_page(seen_by_others):
    """Who could name it and the host would have its files."""
    answer, runs, _ = seen_by_others
    assert (answer["success"], answer["message"]) == (False, "payload_dir can be set on the command line only")
    assert runs == []


def test_a_start_waits_for_the_end_of_the_test_before(page, server):
    """And several starts at once are one test: those that come later change nothing, or are refused."""
    number = len(page.job.runs()) + 1
    assert page.start(warm_up="600")["success"] is True
    page.loading(number)
    assert page.post("/stop")["success"] is True
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: page.start(warm_up="600"), range(3)))
    assert any(answer["success"] for answer in answers)
    assert {answer["message"] for answer in answers if not answer["success"]} <= {"a test is starting already"}
    page.loading(number + 1)
    assert page.post("/stop")["success"] is True
    page.finished(number + 1)
    for folder in page.job.runs()[-2:]:
        built(folder)
        assert_complete(folder)


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://elsewhere.example"}, {"Host": "elsewhere.example"}], ids=["origin", "rebound name"]
)
def test_a_page_of_another_site_starts_nothing(page, headers):
    """Else any page that a person visits could have local folders uploaded to a host of its choice."""
    before = page.job.runs()
    form = urllib.parse.urlencode({"user_count": 1, "spawn_rate": 1, "host": page.host}).encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{page.url}/swarm", form, headers), timeout=DEADLINE_S)
    with refused.value as answer:
        assert answer.code == 403
        assert "another site" in answer.read().decode()
    assert page.job.runs() == before
