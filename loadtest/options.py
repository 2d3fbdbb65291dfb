"""What a run was told to do: one frozen value, made from the texts of a command line or of Locust's web form.

Both give texts, and Locust answers a field it cannot convert with a bare error 500; so everything arrives here as
text and is validated in one place, with one clear sentence for each mistake. `OPTIONS` is that place's table: both
command lines and the form are made from it, so that no option can be known to one and not to another.
"""

import resource
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loadtest import arrivals, credentials, payloads, wires
from loadtest.arrivals import Profile, ProfileKind
from loadtest.client import Close, Closer
from loadtest.link import leave
from loadtest.option_error import OptionError
from loadtest.plan import WARM_UP_S, PlannedPhase, make_plan
from loadtest.tls_link import in_words
from loadtest.wires import Target, WireFactory
from reports import thresholds
from reports.thresholds import OPEN_MODEL_ONLY, Threshold, ThresholdError
from server.units import SIZE, Kind, choice, format_size, parse_duration, write_duration

AtCap = Literal["queue", "drop"]
Shape = Literal["none", "ramp", "step", "soak"]

ANSWERS_WITHIN_S = 5.0  # a server that is looked for before a run
SPARE_DESCRIPTORS = 200  # for all that is no connection: Locust's own, the run folder's, logs
LONGEST_S = 30 * 86_400.0  # of anything: longer is a slip of the pen, and timers overflow


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _write_time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 86_400 else f"{seconds / 86_400:g} days"


TEXT = Kind("TEXT", str)
NUMBER = Kind("N", _whole, "{:,}".format)
TIME = Kind("TIME", parse_duration, _write_time)


@dataclass(frozen=True, slots=True)
class Option:
    """One option: a field of the form, and with dashes an option of the command lines."""

    field: str
    default: str | bool
    help: str
    kind: Kind = TEXT
    bounds: tuple[float, float] | None = None
    """The least and the most that can work."""
    in_form: bool = True
    """Whether Locust's page may set it, too."""
    reads_files: bool = False
    """Whether it names files of this machine, which not everybody who sees the page may have sent somewhere."""

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")

    def read(self, text: str) -> Any:
        """What the text means. OptionError for what cannot work."""
        name, kind = self.field.replace("_", " "), self.kind
        if kind.choices and text not in kind.choices:
            raise OptionError(f"{name} is {text!r}, not one of {', '.join(kind.choices)}")
        try:
            value = kind.read(text)
        except ValueError as error:
            raise OptionError(f"{name}: {error}") from None
        if self.bounds is not None and not self.bounds[0] <= value <= self.bounds[1]:
            least, most = map(kind.write, self.bounds)
            raise OptionError(f"{name} is {kind.write(value)}: it must be from {least} to {most}")
        return value


def _credential(field: str, help: str) -> Option:
    return Option(field, "", help, in_form=False, reads_files=True)


OPTIONS = (
    Option(
        "plan", "compare", "phases: compare (long, short, short, long connections), long, short, or sweep:1,2,5,20,0"
    ),
    Option("uploads_per_connection", "", "in place of the plan's: one phase for each, such as 1,5,0; 0 for no end"),
    Option("phase_seconds", "10", "length of each measured phase, such as 10s", TIME, (1.0, LONGEST_S)),
    Option(
        "warm_up",
        write_duration(WARM_UP_S),
        "load before the first measured phase that does not count",
        TIME,
        (0.0, LONGEST_S),
    ),
    Option("drain", "10s", "how long uploads under way may still take when the plan is over", TIME, (0.0, LONGEST_S)),
    Option("arrival_rate", "0", "open model: uploads due a second, whatever the server does; 0 for the closed model"),
    Option(
        "arrival_profile",
        "constant",
        "constant, poisson, ramp (rate FROM-TO, or TO from 0) or step (rates R1,R2,...)",
        choice(ProfileKind),
    ),
    Option(
        "max_in_flight",
        "900",
        "open model: the most uploads under way at once, in all load processes",
        NUMBER,
        (1, 60_000),
    ),
    Option("at_cap", "queue", "what becomes of an arrival then: it waits, or is dropped and counted", choice(AtCap)),
    Option("shape", "none", "closed model: how users come and go during the plan", choice(Shape)),
    Option("payloads", payloads.DEFAULT_MIX, "sizes and weights such as 4KiB:70,1MiB:5, or lognormal:16KiB,1.5"),
    Option("payload_dir", "", "upload the files of this folder instead", reads_files=True),
    Option("compressible", False, "generate text instead of random bytes"),
    Option("max_store", "1GiB", "refuse a run that could need more of the store than this", SIZE),
    Option("wait", "40ms", "closed model: mean pause of a user between uploads; 0 for none", TIME, (0.0, LONGEST_S)),
    Option("timeout", "30s", "how long a server may be silent before an upload fails", TIME, (0.1, LONGEST_S)),
    Option("closer", "server", "who closes a connection after its last upload", choice(Closer)),
    Option("close", "fin", "how a client closes: fin, or rst, which leaves no TIME_WAIT", choice(Close)),
    Option(
        "wire", "", "protocol, if not the one of the host's scheme: MODULE:CLASS, see loadtest/wires.py", in_form=False
    ),
    _credential("token_file", "file with the token that every upload carries"),
    _credential("ca", "tls://: file with the certificates (PEM) of the authorities to trust, instead of the system's"),
    _credential(
        "cert", "tls://: file with a certificate of the load's own and its key (PEM), for a server that asks for one"
    ),
    _credential("key", "tls://: file with that key, if it is in another"),
    Option("verify_digest", True, "compare the digest in the reply"),
    Option("fail_if", "", "exit code 3 when this came true, such as 'p99(transaction) > 20ms'; several with ;"),
    Option(
        "seed", "1", "of sizes, names, order, pauses and arrivals: the same seed, the same run", NUMBER, (0, 10**18)
    ),
    Option("label", "load", "goes into the run folder's name and the report"),
)
FIELDS = tuple(option.field for option in OPTIONS)
DEFAULTS: dict[str, str | bool] = {option.field: option.default for option in OPTIONS}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Times in seconds. `profile` None is the closed model; `payload_dir` None means generated payloads of `mix`."""

    target: Target
    wire: WireFactory
    tls: ssl.SSLContext | None
    """What a `tls://` target is verified with, and what is shown to it."""
    plan: tuple[PlannedPhase, ...]
    drain_s: float
    profile: Profile | None
    max_in_flight: int
    at_cap: AtCap
    shape: Shape
    mix: list[tuple[int, float]]
    payload_dir: Path | None
    compressible: bool
    max_store_bytes: int
    wait_s: float
    timeout_s: float
    closer: Closer
    close: Close
    verify_digest: bool
    thresholds: list[Threshold]
    seed: int

    @property
    def planned_s(self) -> float:
        return sum(phase.duration_s for phase in self.plan)

    def profile_of(self, phase: PlannedPhase) -> Profile | None:
        """The arrivals of this phase: a warm-up has an even rate, that of the profile's beginning."""
        if self.profile is None or phase.kind == "measure":
            return self.profile
        return arrivals.warm_up(self.profile)

    def load_payloads(self) -> payloads.PayloadSet:
        """Read or generate the payloads. PayloadError when they cannot be had."""
        if self.payload_dir is not None:
            return payloads.from_folder(self.payload_dir, self.seed, with_digests=self.verify_digest)
        return payloads.generated(self.mix, self.seed, with_digests=self.verify_digest, compressible=self.compressible)


def validate(host: str, fields: Mapping[str, Any]) -> LoadOptions:
    """Options from texts, keyed as in FIELDS. OptionError for the first one that is wrong."""
    value = {option.field: option.read(str(fields[option.field] or "").strip()) for option in OPTIONS}
    payload_dir = value["payload_dir"]
    if payload_dir and not payloads.is_folder(Path(payload_dir)):
        raise OptionError(f"payload folder: {payload_dir!r} is not a folder")
    if value["close"] == "rst" and value["closer"] == "server":
        raise OptionError("close is 'rst', but the server closes: set closer to client")
    try:
        target = wires.parse_target(host)
        identity = credentials.read(target, value, wire=value["wire"])
        if value["close"] == "rst" and target.scheme == "unix":
            raise OptionError("close is 'rst', which unix sockets have not")
        profile = arrivals.parse_profile(value["arrival_profile"], value["arrival_rate"])
        conditions = thresholds.parse_all(value["fail_if"])
        _check_model(profile, value["shape"], conditions)
        return LoadOptions(
            target=target,
            wire=wires.wire_of(target, value["wire"], identity.token),
            tls=identity.tls,
            plan=make_plan(
                value["plan"],
                value["phase_seconds"],
                warm_up_s=value["warm_up"],
                uploads_per_connection=value["uploads_per_connection"],
            ),
            drain_s=value["drain"],
            profile=profile,
            max_in_flight=value["max_in_flight"],
            at_cap=value["at_cap"],
            shape=value["shape"],
            mix=payloads.parse_mix(value["payloads"]),
            payload_dir=Path(payload_dir) if payload_dir else None,
            compressible=bool(fields["compressible"]),
            max_store_bytes=value["max_store"],
            wait_s=value["wait"],
            timeout_s=value["timeout"],
            closer=value["closer"],
            close=value["close"],
            verify_digest=bool(fields["verify_digest"]),
            thresholds=conditions,
            seed=value["seed"],
        )
    except ThresholdError as error:
        raise OptionError(str(error)) from None


def _check_model(profile: Profile | None, shape: Shape, conditions: list[Threshold]) -> None:
    """OptionError for what the other model has, and this one would pass over."""
    if profile is None:
        for condition in conditions:
            if condition.duration in OPEN_MODEL_ONLY:
                raise OptionError(
                    f"fail if {condition.text!r}: the closed model has no {condition.duration}; take another duration, "
                    "such as transaction, or give an arrival rate"
                )
        return
    if shape != "none":
        raise OptionError("shape belongs to the closed model: set it to none, or the arrival rate to 0")


def is_open(fields: Mapping[str, Any]) -> bool:
    """Whether these texts ask for the open model, be they right or wrong."""
    rate = str(fields["arrival_rate"]).strip()
    try:
        return rate != "" and float(rate) != 0
    except ValueError:  # more than one rate, or a mistake that `validate` will name
        return True


def check_users(options: LoadOptions, users: int) -> None:
    """OptionError when so many users do not go with the model."""
    if options.profile is not None and users != 0:
        raise OptionError(
            f"an arrival rate and {users} users: the open model has no users; set users to 0, or the arrival rate to 0"
        )
    if options.profile is None and users < 1:
        raise OptionError("number of users is 0: a run of the closed model needs at least 1, or give an arrival rate")


def check_store(options: LoadOptions, payload_set: payloads.PayloadSet, users: int) -> None:
    """OptionError when the run could fill more of the store than it may."""
    at_once = users if options.profile is None else options.max_in_flight
    needed = payload_set.store_bytes(at_once)
    if needed > options.max_store_bytes:
        limit, largest = format_size(options.max_store_bytes), format_size(payload_set.largest_bytes)
        raise OptionError(
            f"this run could need {format_size(needed)} of the server's store (each name once, and {at_once} uploads "
            f"under way of up to {largest}), over {limit}: allow it with --max-store, or take fewer or smaller ones"
        )


def check_descriptors(options: LoadOptions, users: int) -> None:
    """OptionError when this process may not have so many connections open."""
    at_once = users if options.profile is None else options.max_in_flight
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if allowed != resource.RLIM_INFINITY and at_once + SPARE_DESCRIPTORS > allowed:
        raise OptionError(
            f"{at_once:,} connections at once need more than the {allowed:,} files that a process may have open here "
            "(ulimit -Hn): allow it more, or take fewer users or a smaller --max-in-flight"
        )


def check_server(options: LoadOptions, host: str | None) -> None:
    """OptionError when nobody answers there, or not as TLS wants it."""
    try:
        _reach(options)
    except ssl.SSLError as error:
        raise OptionError(f"no TLS with {host}: {in_words(error)}") from None
    except ConnectionRefusedError as error:
        raise OptionError(f"no server at {host}: {error.strerror}; start one with: make serve") from None
    except OSError as error:
        raise OptionError(f"no server at {host}: {error.strerror or error}") from None


def _reach(options: LoadOptions) -> None:
    target = options.target
    if target.scheme == "unix":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(ANSWERS_WITHIN_S)
            sock.connect(target.path)
            leave(sock)
        return
    with socket.create_connection(target.address, timeout=ANSWERS_WITHIN_S) as sock:
        if options.tls is None:
            leave(sock)
        else:
            with options.tls.wrap_socket(sock, server_hostname=target.host) as secured:
                leave(secured)
