"""Where the first process of a run is met, and over which network interface."""

import socket
import time

import pytest

from fastdhm.errors import UserError
from fastdhm.system import network


def test_a_name_without_an_address_is_said(monkeypatch):
    monkeypatch.setattr(network, "RESOLVE_S", 0)
    with pytest.raises(UserError, match=r"no-such-host\.invalid, the machine of process 0, has no address on"):
        network.resolved("no-such-host.invalid")
    with pytest.raises(UserError, match="that is no name of a machine"):
        network.resolved("." * 3)


def test_a_port_where_nobody_answers_is_said(monkeypatch):
    monkeypatch.setenv("FASTDHM_WAIT_SECONDS", "0.3")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert network.reached("127.0.0.1", port) == "127.0.0.1"
    with pytest.raises(UserError, match=f"process 0 at 127.0.0.1:{port} did not come.*connection refused"):
        network.reached("127.0.0.1", port)


def test_an_interface_is_found_by_its_address():
    assert network.interface_of(network.own_address("127.0.0.1")) == "lo"
    assert network.interface_of("127.0.1.1") == "lo"  # what Debian gives a machine's own name
    assert network.interface_of("198.51.100.7") is None


def test_an_interface_that_is_not_there_is_refused():
    network.check_interface({})
    network.check_interface({"GLOO_SOCKET_IFNAME": "lo"})
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME is nowhere0: .* has .*lo"):
        network.check_interface({"GLOO_SOCKET_IFNAME": "lo,nowhere0"} | {"GLOO_SOCKET_IFNAME": "nowhere0"})


def test_what_gives_no_answer_is_not_waited_for():
    assert network.in_time(lambda: 3, 5) == 3
    with pytest.raises(TimeoutError):
        network.in_time(lambda: time.sleep(2), 0.05)
    with pytest.raises(KeyError):
        network.in_time(lambda: {}[1], 5)
