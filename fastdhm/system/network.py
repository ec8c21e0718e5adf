"""The network between the machines of a run: where the first process is met, and over which interface."""

import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from typing import TypeVar

from fastdhm.errors import UserError, few
from fastdhm.system.waiting import POLL_S, Wait, limit_s

RESOLVE_S = 20.0  # a name server may learn of a machine that has just started
ANSWER_S = 20.0  # in which who answers at a port says that it holds a store
GLOO = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # of netdevice(7): the address of an interface
T = TypeVar("T")


def resolved(host: str) -> str:
    """The address of ``host``, of version 4 if it has one.

    Raises:
        ValueError: no name server knows it.
    """
    end = time.monotonic() + min(RESOLVE_S, limit_s())
    while True:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
        except OSError as error:
            if time.monotonic() > end or error.errno == socket.EAI_FAMILY:
                raise UserError(
                    f"{host}, the machine of process 0, has no address on {socket.gethostname()} ({error.strerror}): "
                    "set MASTER_ADDR to a name or address that all machines reach"
                ) from error
        except UnicodeError as error:
            raise UserError(f"MASTER_ADDR is {host!r}: that is no name of a machine") from error
        time.sleep(POLL_S)


def reached(host: str, port: int) -> str:
    """The address of ``host``, once something answers at ``port``.

    Raises:
        ValueError: no name server knows it, or nothing did.
    """
    address, reason = resolved(host), "it did not answer"
    coming = Wait(
        f"process 0 at {host}:{port}",
        lambda: f"{reason}; it may not have begun, or MASTER_ADDR, MASTER_PORT or a firewall is wrong",
    )
    while True:
        try:
            socket.create_connection((address, port), timeout=2 * POLL_S).close()
            return address
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        coming.on()
        time.sleep(POLL_S / 5)


def in_time(work: Callable[[], T], seconds: float = ANSWER_S) -> T:
    """What ``work`` gives; ``TimeoutError`` if it does not in time. Then it goes on in a thread.

    torch waits without end for a port that takes a connection and says nothing.
    """
    answer: Future[T] = Future()

    def compute() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=compute, daemon=True).start()
    wait([answer], seconds)
    if not answer.done():
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    return answer.result()


def own_address(towards: str) -> str:
    """This machine's address on the way to ``towards``; empty if there is no way. Nothing is sent."""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    with suppress(OSError), closing(socket.socket(family, socket.SOCK_DGRAM)) as way:
        way.connect((towards, 1))
        return str(way.getsockname()[0])
    return ""


def is_loopback(address: str) -> bool:
    """Whether only this machine itself is reached by it."""
    return address.startswith("127.") or address in ("", "::1")


def interface_of(address: str) -> str | None:
    """The name of the network interface that has this address; None if it is not of version 4."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no such address
                answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address or (name == "lo" and is_loopback(address)):
                    return name
    return None


def check_interface(environ: Mapping[str, str] = os.environ) -> None:
    """``ValueError`` if the user named an interface for gloo that is not there."""
    there, named = [name for _, name in socket.if_nameindex()], environ.get(GLOO, "")
    if named and not {*named.split(",")} <= {*there}:
        raise UserError(f"{GLOO} is {named}: {socket.gethostname()} has {few(there)}; set one of these, or none")
