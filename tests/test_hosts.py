"""Two processes on this machine stand for two hosts."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsjax.errors import UsageError
from wsjax.scripts import hosts
from wsjax.scripts.config import Common, check_config
from wsjax.storage.records import read_run

SCRIPT = Path(__file__).parents[1] / "experiments" / "online.py"
ARGUMENTS = (
    "--increment", "30", "--num_train", "60", "--epochs", "40", "--threshold", "1", "--hidden", "8", "--seeds", "0",
    "1", "--methods", "WS", "SP", "--checkpoint_every", "5",
)  # fmt: skip


def start(workdir, *arguments):
    command = [sys.executable, str(SCRIPT), *ARGUMENTS, "--workdir", str(workdir), *arguments]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def start_two(workdir):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = ("--coordinator", f"localhost:{port}", "--num_processes", "2")
    return [start(workdir, *flags, "--process_id", str(number)) for number in (0, 1)]


def records_of(workdir):
    return workdir / "online" / "digits-mlp-adam" / "records.jsonl"


def rows(workdir):
    records = read_run(records_of(workdir).parent).rows
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in records]


ALL = {"coordinator": "node1:12345", "num_processes": 2, "process_id": 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"coordinator": None}, "all three, unless srun started them: --coordinator missing"),
        ({"num_processes": None, "process_id": None}, "--num_processes and --process_id missing"),
        ({"coordinator": None, "num_processes": None}, "--coordinator and --num_processes missing"),
        ({"process_id": 2}, "--process_id counts from 0, below --num_processes=2, not 2"),
        ({"process_id": -1}, "--process_id counts from 0, below --num_processes=2, not -1"),
        ({"num_processes": 0}, "--num_processes must be positive, not 0"),
        ({"coordinator": "node1"}, "--coordinator is HOST:PORT of process 0, such as node1:12345, not 'node1'"),
        ({"coordinator": "node1:99999"}, "not 'node1:99999'"),
        ({"coordinator": ":12"}, "not ':12'"),
    ],
)
def test_flags_of_several_processes_are_all_given_and_fit(monkeypatch, changes, said):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "")  # as a script may leave it
    check_config(Common(**ALL), Common())
    check_config(Common(**ALL | {"coordinator": "[::1]:12345"}), Common())
    with pytest.raises(UsageError, match=re.escape(said)):
        check_config(Common(**ALL | changes), Common())


def test_srun_tells_what_flags_do_not(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    check_config(Common(process_id=1), Common())
    assert hosts.has_several_processes(Common())
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "")
    assert not hosts.has_several_processes(Common())


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "not all of 2 processes have come to localhost:{port}: "),
        (1, "no connection to localhost:{port}: is process 0 running, and is the address right?"),
    ],
)
def test_processes_that_do_not_find_each_other_say_so(tmp_path, number, said):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    code = (
        "import runpy, sys; from wsjax import parallel; parallel.JOIN_WITHIN = 2;"
        f"sys.argv = ['x', '--coordinator=localhost:{port}', '--num_processes=2', '--process_id={number}',"
        f"'--workdir={tmp_path}']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"error: {said.format(port=port)}" in done.stderr
    assert "has ended" not in done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rows of two processes that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    processes = start_two(folder)
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "Records:" in outputs[0][0]
    assert "Records:" not in outputs[1][0]  # process 0 alone speaks
    assert len(rows(folder)) > 40
    return rows(folder)


def test_two_processes_are_one_run(whole, tmp_path):
    process = start(tmp_path)
    process.communicate(timeout=300)
    assert process.returncode == 0
    alone = rows(tmp_path)
    key = ("method", "seed", "round", "epoch", "samples", "steps")
    assert [[row[k] for k in key] for row in whole] == [[row[k] for k in key] for row in alone]
    for field in ("train_loss", "train_accuracy"):
        assert [row[field] for row in whole] == pytest.approx([row[field] for row in alone], abs=1e-3)


@pytest.mark.parametrize(("victim", "how"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (0, signal.SIGINT)])
def test_a_process_that_ends_early_ends_the_other_and_the_run_resumes(whole, tmp_path, victim, how):
    processes = start_two(tmp_path)
    records = records_of(tmp_path)
    deadline = time.monotonic() + 120
    while not records.exists() or records.read_bytes().count(b"\n") < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes[victim].send_signal(how)
    _, error = processes[1 - victim].communicate(timeout=60)
    assert processes[1 - victim].returncode == 2
    assert "another process of this run has ended; give the same commands again to continue the run" in error
    processes[victim].communicate(timeout=60)
    assert processes[victim].returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[how]

    before = records.read_bytes().splitlines()
    again = start_two(tmp_path)
    outputs = [process.communicate(timeout=300) for process in again]
    assert [process.returncode for process in again] == [0, 0], outputs
    assert rows(tmp_path) == whole
    # The rows up to the first checkpoint were not trained anew: they keep the seconds that they took.
    assert records.read_bytes().splitlines()[:10] == before[:10]
