"""Two processes on localhost run as one."""

import socket

import pytest

from jaxprob import runtime
from tests.runtime.test_resume import arrays, assert_same, finish, worker


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def both(out, *arguments):
    coordinator = f"127.0.0.1:{free_port()}"
    common = ["--devices", 2, "--coordinator", coordinator, "--every", 1000, "--chunk", 0.5, *arguments]
    return [worker(out, *common, "--process", process) for process in range(2)]


@pytest.mark.timeout(300)
def test_two_processes_give_the_draws_of_one(tmp_path):
    for process in both(tmp_path / "two"):
        finish(process)
    finish(worker(tmp_path / "one", "--devices", 4))
    assert_same(arrays(tmp_path / "two"), arrays(tmp_path / "one"))
    meta = runtime.load(tmp_path / "two").meta
    assert meta["mesh"]["processes"] == 2
    assert meta["mesh"]["chains"] == 4


@pytest.mark.timeout(300)
def test_two_processes_are_resumed_by_one(tmp_path):
    processes = both(tmp_path / "run")
    for line in processes[0].stdout:
        if line.startswith("update") and int(line.split()[1]) > 100:
            break
    processes[1].terminate()  # one of them is told; all of them stop
    for process in processes:
        assert "status stopped" in finish(process)
    finish(worker(tmp_path / "run", "--devices", 2))
    finish(worker(tmp_path / "whole", "--devices", 2))
    assert_same(arrays(tmp_path / "run"), arrays(tmp_path / "whole"))


def test_half_an_address_is_refused():
    with pytest.raises(ValueError, match="connect: process_id is None; expected all of coordinator, num_processes and"):
        runtime.connect("127.0.0.1:1234", 2)
    with pytest.raises(ValueError, match="connect: coordinator is None; expected an address"):
        runtime.connect()
