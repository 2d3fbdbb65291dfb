"""What the two halves of a run tell each other, through Locust: a single process loops its messages back to itself.

keeper  ─ PHASE ────► load   closed model: the phase that is now
keeper  ─ SCHEDULE ─► load   open model: when the plan starts, and which share of it is whose
load    ─ HELLO ────► keeper a load process is there
load    ─ BATCH ────► keeper what it did since the last one; `final` after its last upload
load    ─ DONE ─────► keeper open model: all its arrivals have ended, or were given up
load    ─ FAILED ───► keeper it cannot make this load
load    ─ HOPELESS ─► keeper none of its uploads can succeed

Those to the keeper name their run (`RUN`), or a load process that comes late would speak into the next one.
"""

RUN = "socketswarm_run"
"""Both the key of a message and the attribute of Locust's parsed options, which its master sends with each start."""

PHASE = "socketswarm-phase"
SCHEDULE = "socketswarm-schedule"
HELLO = "socketswarm-hello"
BATCH = "socketswarm-batch"
DONE = "socketswarm-done"
FAILED = "socketswarm-failed"
HOPELESS = "socketswarm-hopeless"
