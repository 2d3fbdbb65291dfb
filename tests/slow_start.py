"""A second locustfile, with which a test takes long to start, as it does on a machine that is busy."""

import gevent
from locust import events


@events.init.add_listener
def _begin(environment, **_):
    environment.events.test_start.add_listener(lambda **_: gevent.sleep(1.5))
