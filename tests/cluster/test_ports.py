"""Ports that are free, taken, or silent, on real sockets."""

import socket

import pytest

from tfscale.cluster import ports


def test_free_ports_differ_and_can_be_opened():
    chosen = ports.free_ports(20)
    assert len(set(chosen)) == 20
    for port in chosen:
        ports.check_port_free(f"127.0.0.1:{port}")


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_own_port_in_use_is_refused(host):
    with socket.create_server((host, 0)) as taken:
        address = f"worker0:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"Received: '{address}': a port in use.*another port"):
            ports.check_port_free(address)


def test_a_connection_in_time_wait_does_not_block_the_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first waits
        assert client.recv(1) == b""
        client.close()
    with open("/proc/net/tcp") as table:
        states = [line.split()[3] for line in table if line.split()[1].endswith(f":{port:04X}")]
    assert states == ["06"]  # TIME_WAIT
    ports.check_port_free(f"127.0.0.1:{port}")


def test_probe_tells_up_from_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert ports.probe(address, 1.0) == "up"
    assert ports.probe(address, 1.0) == "refused"


def test_probe_of_a_host_that_does_not_answer_is_silent():
    # A listener whose queue is full drops what comes, like a frozen host.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        with socket.create_connection(address), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(address)
            assert ports.probe(f"127.0.0.1:{address[1]}", 0.3) == "silent"


def test_probe_of_an_unknown_name_is_unresolvable():
    assert ports.probe("no-such-host.invalid:2222", 1.0) == "unresolvable"
    assert ports.probe("bad..name:2222", 1.0) == "unresolvable"


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:x", "host:0", "host:65536"])
def test_address_without_a_port_is_refused(address):
    with pytest.raises(ValueError, match="must be 'host:port'"):
        ports.split_address(address)


def test_ipv6_address():
    assert ports.split_address("[::1]:2222") == ("::1", 2222)
