"""A job as Slurm runs it, without Slurm: submitit asks for its checkpoint in the handler of a signal."""

import subprocess
import sys

import pytest

from wsjax.scripts.launch import Command

# The command writes its checkpoint when it is told to end.
COMMAND = """
import pathlib, signal, sys, time

def end(number, frame):
    pathlib.Path("checkpoint").touch()
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, end)
pathlib.Path("started").touch()
time.sleep(60)
"""
# submitit's handler runs on the main thread, which waits for the command meanwhile.
JOB = """
import os, pathlib, signal, sys, threading, time, types
from wsjax.scripts.launch import Command

helpers = types.ModuleType("submitit.helpers")
helpers.DelayedSubmission = lambda command: command
sys.modules |= {"submitit": types.ModuleType("submitit"), "submitit.helpers": helpers}
command = Command(["-c", sys.argv[1]], pathlib.Path.cwd())

def time_runs_out(number, frame):
    print(command.checkpoint().command == command.command, flush=True)
    sys.exit(7)

def tell():
    while not pathlib.Path("started").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGUSR2)

signal.signal(signal.SIGUSR2, time_runs_out)
threading.Thread(target=tell, daemon=True).start()
command()
"""


def test_a_job_whose_time_runs_out_writes_its_checkpoint_and_is_queued_again(tmp_path):
    words = [sys.executable, "-c", JOB, COMMAND]
    job = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (job.returncode, job.stdout) == (7, "True\n"), job.stderr
    assert (tmp_path / "checkpoint").exists()


# The fork of which JAX, loaded by other tests, warns is followed by an exec.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_job_gives_the_code_of_its_command(tmp_path):
    assert Command(["-c", "pass"], tmp_path)() == 0
