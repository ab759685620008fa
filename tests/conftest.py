"""What all tests share."""

import atexit
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

# Several CPU devices in every run. Kernels, and programs that tests compile again and again, come from a cache of this
# run's own, which its workers and their processes inherit.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="wsjax-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["XDG_CACHE_HOME"] = _cache
# A shell's background jobs begin with Ctrl-C ignored, and so would the scripts that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch's threads wait for each other where other tests keep the cores busy
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


# The files that take longest, which start first: else one worker would be left alone with them at the end.
LONGEST = (
    "test_online", "test_offline", "test_hosts", "test_benchmarks", "test_rounds", "test_slurm", "test_transfer",
    "test_hyperparameters", "test_early_stopping", "test_gradients", "test_parallel", "test_retraining", "test_retrain",
    "test_shrink_only", "test_augment", "test_train", "test_models", "test_study", "test_folders", "test_cli",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Puts the longest files first, the others as they come."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture
def script(monkeypatch, tmp_path, capfd):
    """Runs one of the experiments' scripts, or of wsjax's commands, in this process: (exit code, stdout, stderr)."""
    from wsjax.commands.main import COMMANDS
    from wsjax.scripts import cli

    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.delenv("WSJAX_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", lambda *_, **__: None)  # put back after the script has set its own

    def run(name, *arguments):
        path = Path(__file__).parents[1] / "experiments" / f"{name}.py"
        if name in COMMANDS:
            module = importlib.import_module(COMMANDS[name].module)
        else:
            spec = importlib.util.spec_from_file_location(name, path)
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [path.name, *map(str, arguments)])
        code = 0
        try:
            cli.run_script(module.main, module.defaults, module.__doc__)
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    return run
