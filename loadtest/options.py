"""What a run was told to do: one frozen value, made from the texts of a command line or of Locust's web form.

Both give texts, and Locust answers a field it cannot convert with a bare error 500; so everything arrives here as
text and is validated in one place, with one clear sentence for each mistake.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest import payloads, phases
from loadtest.client import HostError, parse_host
from server.units import parse_duration

DEFAULT_PHASE_SECONDS = "10"
DEFAULT_WAIT = "40ms"
DEFAULT_SEED = "1"
# Field names, as options (--phase-seconds) and as form fields (phase_seconds).
FIELDS = ("plan", "phase_seconds", "payloads", "payload_dir", "wait", "verify_digest", "seed", "label")


class OptionError(ValueError):
    """An option is wrong; the text names it and says what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Times in seconds. `payload_dir` None means generated payloads of `mix`."""

    address: tuple[str, int]
    plan: tuple[phases.PlannedPhase, ...]
    mix: list[tuple[int, float]]
    payload_dir: Path | None
    wait_s: float
    verify_digest: bool
    seed: int

    def load_payloads(self) -> payloads.PayloadSet:
        """Read or generate the payloads. PayloadError when they cannot be had."""
        if self.payload_dir is not None:
            return payloads.from_folder(self.payload_dir, self.seed, with_digests=self.verify_digest)
        return payloads.generated(self.mix, self.seed, with_digests=self.verify_digest)


def validate(host: str, fields: Mapping[str, Any]) -> LoadOptions:
    """Options from texts, keyed as in FIELDS. OptionError for the first one that is wrong."""
    try:
        phase_s = parse_duration(str(fields["phase_seconds"]))
        wait_s = parse_duration(str(fields["wait"]))
        address = parse_host(host)
        mix = payloads.parse_mix(str(fields["payloads"]))
    except (HostError, payloads.PayloadError) as error:
        raise OptionError(str(error)) from None
    except ValueError as error:
        raise OptionError(f"phase seconds or wait: {error}") from None
    if phase_s < 1:
        raise OptionError(f"phase seconds is {phase_s:g}: a phase needs at least 1 s to be measured")
    if str(fields["plan"]) not in phases.PLANS:
        raise OptionError(f"plan is {fields['plan']!r}, not one of {', '.join(phases.PLANS)}")
    payload_dir = str(fields["payload_dir"] or "").strip()
    if payload_dir and not Path(payload_dir).is_dir():
        raise OptionError(f"payload folder: {payload_dir!r} is not a folder")
    return LoadOptions(
        address=address,
        plan=phases.plan(str(fields["plan"]), phase_s),
        mix=mix,
        payload_dir=Path(payload_dir) if payload_dir else None,
        wait_s=wait_s,
        verify_digest=bool(fields["verify_digest"]),
        seed=_seed(str(fields["seed"])),
    )


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise OptionError(f"seed is {text!r}, not a whole number from 0")
    return int(text)
