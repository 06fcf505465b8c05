"""An interpreter for workers that is warm: each is forked from one process that has imported the heavy packages.

A cold worker spends eight seconds of processor time on imports, and the tests of the flows start hundreds. What a warm
one computes, its pipe, its files and its signals are the same. How a worker starts is tested with cold ones, in
`tests/backprop_core/worker`, `tests/faults` and wherever a test calls a program of its own.

As a module (`python -m tests.warm_worker SOCKET`) it is the process that is forked from. Run as a file, with
`WARM_SOCKET` set, it is the interpreter: `warm_worker.py -m backprop_core.worker.main ORDERS`.
"""

import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress

MAIN = "backprop_core.worker.main"
SOCKET = "WARM_SOCKET"
PATIENCE = 240  # seconds for the imports on a busy machine


def serve(address: str) -> None:
    """Fork a worker for each connection, until stdin closes."""
    from backprop_core.training import distributed  # noqa: F401  # what a worker imports
    from backprop_core.worker import main, runner  # noqa: F401

    main.preload()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while listener in (ready := select.select([listener, sys.stdin], [], [])[0]) and sys.stdin not in ready:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                attend(connection)
            connection.close()


def attend(connection: socket.socket) -> None:
    """Start one worker, say its pid, wait for its end, say its status; kill it if its caller was killed."""
    size, files, *_ = socket.recv_fds(connection, 4, 3)
    said = json.loads(connection.makefile("rb").read(int.from_bytes(size)))
    pid = os.fork()
    if pid == 0:
        connection.close()
        become(said, files)
    for file in files:
        os.close(file)
    connection.sendall(pid.to_bytes(4))
    ended = os.pidfd_open(pid)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(BrokenPipeError):  # its caller was killed
        connection.sendall(status.to_bytes(4, signed=True))
    os._exit(0)


def become(said: dict, files: list[int]) -> None:
    """Be the process that was asked for: its files, environment, directory and arguments."""
    from backprop_core.worker import main

    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    os.environ.clear()
    os.environ.update(said["environment"])
    os.chdir(said["directory"])
    try:
        main.main(said["arguments"][-1])
    except BaseException:  # noqa: BLE001 - what an interpreter does with it
        traceback.print_exc()
    os._exit(1)


def connected(address: str) -> socket.socket:
    """A connection to the process that is forked from, once it is there."""
    connection, deadline = socket.socket(socket.AF_UNIX), time.monotonic() + PATIENCE
    while connection.connect_ex(address):
        if time.monotonic() > deadline:
            sys.exit(f"no process answers at {address}")
        time.sleep(0.1)
    return connection


def ask() -> None:
    """Have a worker forked with our own files, environment and directory, and end as it ends."""
    arguments = sys.argv[1:]
    if arguments[:2] != ["-m", MAIN]:
        os.execv(sys.executable, [sys.executable, *arguments])
    said = {"arguments": arguments, "environment": dict(os.environ), "directory": os.getcwd()}
    text = json.dumps(said).encode()
    with connected(os.environ[SOCKET]) as connection:
        socket.send_fds(connection, [len(text).to_bytes(4)], [0, 1, 2])
        connection.sendall(text)
        pid = int.from_bytes(connection.recv(4))
        signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
        status = int.from_bytes(connection.recv(4), signed=True)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        ask()
