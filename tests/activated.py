"""Run a command as a service manager does that lends it sockets (man 3 sd_listen_fds):

python activated.py FD[:NAME],... COMMAND ARGUMENT...
"""

import fcntl
import os
import sys

FIRST_FD = 3


def main(lent: str, *command: str) -> None:
    pairs = [entry.partition(":") for entry in lent.split(",")]
    copies = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd, _, _ in pairs]  # out of the way of their new numbers
    for number, fd in enumerate(copies, FIRST_FD):
        os.dup2(fd, number)
        os.close(fd)
    os.environ["LISTEN_FDS"] = str(len(pairs))
    os.environ["LISTEN_FDNAMES"] = ":".join(name for _, _, name in pairs)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
