"""The command `wsjax`; tests/test_wheel.py installs it."""

import subprocess
import sys
from importlib import import_module, metadata

import pytest

from wsjax.commands import main
from wsjax.scripts import ending


@pytest.fixture
def wsjax(monkeypatch, capfd, tmp_path):
    """Runs the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(ending, "begin", lambda: lambda: None)  # it would listen for signals from here on
    monkeypatch.setattr("warnings.showwarning", lambda *_, **__: None)  # put back after the command has set its own
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["/usr/bin/wsjax", *map(str, arguments)])
        code = 0
        try:
            main.main()
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    return run


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_commands(wsjax, flag):
    code, said, errors = wsjax(flag)
    assert (code, errors) == (0, "")
    for name, command in main.COMMANDS.items():
        assert f"{name} " in said
        assert command.text in said
    assert max(map(len, said.splitlines())) < 100


def test_the_version(wsjax, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: {"wsjax": "7.8"}[name])
    assert wsjax("--version") == (0, "7.8\n", "")


def test_a_command_that_is_none(wsjax):
    available = ", ".join(main.COMMANDS)
    assert wsjax("retrian") == (
        2,
        "",
        f"error: unknown command 'retrian'; available: {available}; did you mean 'retrain'?\n",
    )
    assert wsjax() == (2, "", f"error: a command is missing; available: {available}; or wsjax --help\n")
    code, said, errors = wsjax("\x1b[2J\n")
    assert (code, said, errors.count("\n")) == (2, "", 1)
    assert "\x1b" not in errors


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_what_a_script_has(wsjax, name):
    module = import_module(main.COMMANDS[name].module)
    assert callable(module.main)
    code, said, errors = wsjax(name, "--help")
    assert (code, errors) == (0, "")
    assert said.startswith(f"usage: wsjax {name} ")
    assert " ".join(module.__doc__.partition("\n")[0].split()) in " ".join(said.split())


def test_its_errors_are_those_of_the_script(wsjax):
    assert wsjax("retrain", "--model_dir=m") == (
        2,
        "",
        "error: --data is missing: give files, folders or globs, such as --data 'incoming/*.npz'\n",
    )


def test_it_listens_before_its_imports():
    code = """
import importlib.abc, os, signal, sys, time
from wsjax.commands import main

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "tyro":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

sys.meta_path.insert(0, Slow())
sys.argv = ["wsjax", "retrain", "--model_dir=m"]
main.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=15)
    assert (done.returncode, done.stderr) == (143, "error: terminated; the same command continues the run\n")
