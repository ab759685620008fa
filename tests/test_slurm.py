"""Jobs through a real Slurm of one node, which the tests bring up where Debian's packages are: slurm-wlm and munge."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsjax.scripts import launch
from wsjax.scripts.launch import Job
from wsjax.storage.records import read_run

pytest.importorskip("submitit", reason="submitit is not installed")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "scancel", "squeue")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"there is no Slurm here: {', '.join(MISSING)} missing"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons are started by root"),
    # submitit's pickles and files are not all closed by itself.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    # Local jobs are started by a fork, of which JAX, loaded by other tests, warns: a job begins with an exec.
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
]

SCRIPT = Path(__file__).parents[1] / "experiments" / "offline.py"
TINY = (
    "--dataset=digits", "--methods", "WS", "RI", "--hidden=8", "--first_epochs=20", "--epochs=300",
    "--checkpoint_every=5",
)  # fmt: skip


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of this machine alone, on ports of its own; it ends with the tests."""
    folder = tmp_path_factory.mktemp("slurm")
    host, ports = socket.gethostname().split(".")[0], []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            ports.append(probe.getsockname()[1])
    settings = {
        "ClusterName": "test", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmUser": "root", "AuthType": "auth/munge",
        "AuthInfo": "cred_expire=5",  # a requeued job waits so long
        "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none", "SwitchType": "switch/none",
        "MpiDefault": "none", "ReturnToService": 2, "SchedulerType": "sched/backfill",
        "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core",
        "AccountingStorageType": "accounting_storage/none", "JobAcctGatherType": "jobacct_gather/none",
        "JobRequeue": 1, "KillWait": 10, "SlurmctldPort": ports[0], "SlurmdPort": ports[1],
        "SlurmctldPidFile": folder / "slurmctld.pid", "SlurmdPidFile": folder / "slurmd.pid",
        "SlurmctldLogFile": folder / "slurmctld.log", "SlurmdLogFile": folder / "slurmd.log",
        "SlurmdSpoolDir": folder / "spool", "StateSaveLocation": folder / "state",
    }  # fmt: skip
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines += [f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=4000 State=UNKNOWN",
              "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP"]  # fmt: skip
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    for name in ("spool", "state"):
        (folder / name).mkdir()
    before, path = os.environ.get("SLURM_CONF"), os.environ["PATH"]
    os.environ |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{path}:/usr/sbin"}
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    if subprocess.run(["pgrep", "-x", "munged"], capture_output=True).returncode:
        subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged"], check=True)
    for daemon in ("slurmctld", "slurmd"):
        subprocess.run([daemon, "-f", str(folder / "slurm.conf")], check=True, capture_output=True)
    wait(lambda: "idle" in command("sinfo", "-h", "-o", "%T"), 30)
    yield
    command("scancel", "--user=root")
    for daemon in ("slurmd", "slurmctld"):
        os.kill(int((folder / f"{daemon}.pid").read_text()), 15)
    os.environ["PATH"] = path
    os.environ.pop("SLURM_CONF") if before is None else os.environ.update(SLURM_CONF=before)


def command(*words):
    return subprocess.run(words, capture_output=True, text=True).stdout


def wait(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def jobs(workdir):
    return [
        Job(f"job{seed}", (str(SCRIPT), *TINY, f"--seeds={seed}", f"--run=job{seed}", f"--workdir={workdir}"),
            (workdir / "offline" / f"job{seed}",), 10.0)
        for seed in range(4)
    ]  # fmt: skip


def rows(job):
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")}
            for row in read_run(job.folders[0]).rows]  # fmt: skip


def epochs(job):
    records = job.folders[0] / "records.jsonl"
    return records.read_bytes().count(b"\n") if records.exists() else 0


# Seconds of patience: Slurm alone waits for one or two minutes before a requeued job starts again.
@pytest.mark.timeout(1500)
def test_an_array_that_is_requeued_and_cancelled_ends_in_the_rows_of_local_runs(slurm, tmp_path):
    here, there = jobs(tmp_path / "local"), jobs(tmp_path / "slurm")
    numbers = launch.run_slurm(there, tmp_path / "files", 2)
    assert len({number.split("_")[0] for number in numbers.values()}) == 1  # one array
    wait(lambda: epochs(there[0]) > 30 and epochs(there[1]) > 30, 400)
    command("scontrol", "requeue", numbers["job0"])
    command("scancel", numbers["job1"])
    wait(lambda: there[0].done and there[2].done and there[3].done, 500)
    assert not there[1].done
    wait(lambda: not there[1].held, 60)
    again = launch.run_slurm([job for job in there if not job.done], tmp_path / "files", 2)
    assert list(again) == ["job1"]
    wait(lambda: there[1].done, 400)
    ended = launch.run_local(here, tmp_path / "logs", 2, lambda running, end: None)
    assert [end.code for end in ended] == [0] * 4
    assert [rows(job) for job in there] == [rows(job) for job in here]


def test_processes_under_srun_find_each_other_and_are_one_run(slurm, tmp_path):
    several = {"JAX_NUM_CPU_DEVICES": "1"}
    flags = (*TINY, "--first_epochs=4", "--epochs=6", "--seeds=0", "--run=run")
    there = subprocess.run(
        ["srun", "--ntasks=2", "--label", sys.executable, str(SCRIPT), *flags, f"--workdir={tmp_path / 'srun'}"],
        capture_output=True, text=True, timeout=300, env=os.environ | several,
    )  # fmt: skip
    assert there.returncode == 0, there.stderr
    assert "0: Records:" in there.stdout
    assert "1: Records:" not in there.stdout  # process 0 alone speaks
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    by_hand = [
        subprocess.Popen([sys.executable, str(SCRIPT), *flags, f"--workdir={tmp_path / 'hand'}", "--num_processes=2",
                          f"--coordinator=localhost:{port}", f"--process_id={number}"],
                         stdout=subprocess.DEVNULL, env=os.environ | several)
        for number in range(2)
    ]  # fmt: skip
    assert [process.wait(300) for process in by_hand] == [0, 0]
    own, other = (Job("run", (), (tmp_path / name / "offline" / "run",), 0.0) for name in ("srun", "hand"))
    assert rows(own) == rows(other)
