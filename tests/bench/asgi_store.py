"""An ASGI application that stores what is PUT, as its author would write it who cares for speed: for `uvicorn`, beside
which the bench measures our server. STORE in the environment is the folder."""

import itertools
import os

STORE = os.environ["STORE"]
numbers = itertools.count()


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    temporary = f"{STORE}/.{os.getpid()}-{next(numbers)}"
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    more = True
    while more:
        message = await receive()
        os.write(file, message.get("body", b""))
        more = message.get("more_body", False)
    os.close(file)
    os.rename(temporary, f"{STORE}/{scope['path'].rpartition('/')[2]}")  # noqa: PTH104
    await send({"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
