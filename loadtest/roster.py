"""The load processes of a run: who is there, who still has something to do, and who has fallen silent.

Plain values and no waiting: the keeper asks after every message and once a second.
"""

LOST_S = 5.0  # silent for so long means gone: five batches


class Roster:
    """A load process is known from its first word to its last. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._heard_s: dict[str, float] = {}
        self._busy: set[str] = set()
        self._final: set[str] = set()
        self._reported: set[str] = set()

    def __len__(self) -> int:
        return len(self._heard_s)

    def came(self, name: str, now_s: float) -> None:
        self._heard_s[name] = now_s

    def heard(self, name: str, now_s: float) -> None:
        self._reported.add(name)
        if name in self._heard_s:
            self._heard_s[name] = now_s

    def went(self, name: str) -> None:
        """It is gone, and nobody waits for it any more."""
        self._heard_s.pop(name, None)
        self._busy.discard(name)
        self._final.discard(name)

    def share_out(self) -> list[str]:
        """Open model: from now on each has arrivals to send, until it is `done`. Returns all names, as they came."""
        self._busy = set(self._heard_s)
        return list(self._heard_s)

    def done(self, name: str) -> None:
        self._busy.discard(name)

    def final(self, name: str) -> None:
        """That was its last batch."""
        self._final.add(name)

    @property
    def has_shares(self) -> bool:
        """Whether somebody still has arrivals to send."""
        return bool(self._busy)

    @property
    def all_final(self) -> bool:
        return self._final >= self._heard_s.keys()

    @property
    def missing(self) -> int:
        """How many have not sent their last batch."""
        return len(self._heard_s.keys() - self._final)

    def all_reported(self) -> bool:
        """Whether everybody has sent a batch since this was last true, or `begin_second` was called."""
        return self._reported >= self._heard_s.keys()

    def begin_second(self) -> None:
        self._reported.clear()

    def lost(self, now_s: float) -> list[str]:
        """Those that have been silent for too long, and owe a batch."""
        silent = [name for name, heard_s in self._heard_s.items() if heard_s < now_s - LOST_S]
        return [name for name in silent if name not in self._final]

    def excuse_silence(self, now_s: float) -> None:
        """It was we who did not listen."""
        self._heard_s = dict.fromkeys(self._heard_s, now_s)
