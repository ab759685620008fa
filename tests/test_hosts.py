"""Two processes on this machine stand for two hosts."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
