"""Two instances on one address: the second one says so and goes; the first goes on."""

import os
import socket

import pytest

from lib.dacd import write_ini
from lib.service import run_dacd, until


def second(dac, **server):
    """Runs another dacd with some settings of [server] changed."""
    sections = {k: dict(v) for k, v in dac.sections.items()}
    sections["server"].update(server)
    conf = dac.folder / "second.conf"
    write_ini(conf, sections)
    return run_dacd("-c", conf)


@pytest.mark.smoke
def test_the_same_port_is_refused(dac):
    code, _, err = second(dac)
    assert code == 1
    assert f"address 127.0.0.1:{dac.port} is already in use" in err
    assert str(dac.pid) in err
    assert dac.get_sync("/livez")[0] == 200


def test_the_same_port_under_another_name_is_refused(dac):
    code, _, err = second(dac, name=f"{dac.name}-b")
    assert code == 1
    assert f"address 127.0.0.1:{dac.port} is already in use" in err
    assert "another dacd" in err
    assert not os.path.exists(f"/dev/shm/{dac.name}-b")
    assert dac.get_sync("/livez")[0] == 200


def test_the_same_name_on_another_port_is_refused(dac):
    code, _, err = second(dac, listen="127.0.0.1:1")
    assert code == 1
    assert f'"{dac.name}" is already running' in err and "name" in err
    assert dac.get_sync("/livez")[0] == 200


def test_a_port_of_another_program_is_refused(make_dac):
    dac = make_dac(start=False)
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", dac.port))
        s.listen()
        dac.allow_log = ["already in use"]
        dac.expect_exit = 1
        dac.start(wait=False)
        assert dac.process.wait(10) == 1
    assert f"address 127.0.0.1:{dac.port} is already in use" in dac.log


def listen_also_at(dac, path):
    dac.sections["server"]["listen"] = f"127.0.0.1:{dac.port}, unix:{path}"
    return dac.start()


def ask_unix(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(path))
        s.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return s.recv(100)


def test_a_unix_socket_is_served_and_removed(make_dac, tmp_path):
    path = tmp_path / "dac.sock"
    dac = listen_also_at(make_dac(start=False), path)
    assert ask_unix(path).startswith(b"HTTP/1.1 200")
    dac.stop()
    assert not path.exists()


def test_a_stale_unix_socket_is_replaced(make_dac, tmp_path):
    path = tmp_path / "dac.sock"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
    listen_also_at(make_dac(start=False), path)
    assert ask_unix(path).startswith(b"HTTP/1.1 200")


def test_a_unix_socket_that_answers_is_left_alone(make_dac, tmp_path):
    path = tmp_path / "dac.sock"
    listen_also_at(make_dac(start=False), path)
    other = make_dac(start=False)
    other.sections["server"]["listen"] = f"unix:{path}"
    other.allow_log = ["already in use"]
    other.expect_exit = 1
    other.start(wait=False)
    assert other.process.wait(10) == 1
    assert f"unix:{path} is already in use" in other.log
    assert ask_unix(path).startswith(b"HTTP/1.1 200")


def test_a_file_in_the_socket_s_place_is_left_alone(make_dac, tmp_path):
    path = tmp_path / "dac.sock"
    path.write_text("precious")
    dac = make_dac(start=False)
    dac.sections["server"]["listen"] = f"127.0.0.1:{dac.port}, unix:{path}"
    dac.allow_log = ["could not bind"]
    dac.expect_exit = 1
    dac.start(wait=False)
    assert dac.process.wait(10) == 1
    assert path.read_text() == "precious"
    until(lambda: not dac.processes(), "nothing left")
