"""A server whose main thread has ended while another goes on: the kernel calls it a zombie, and shows nothing of what
it has under its pid. Its first line is its port; it runs until it is ended."""

MAINLESS = """
import ctypes, os, socket, threading, time
listener = socket.create_server(("127.0.0.1", 0))
def go_on():
    while open(f"/proc/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.001)
    print(listener.getsockname()[1], flush=True)
    threading.Event().wait()
threading.Thread(target=go_on).start()
ctypes.CDLL(None).pthread_exit(None)
"""
