"""Published protocols: what the flag sets, that flags come before it, and who takes which."""

import dataclasses
import importlib.util
import sys
from functools import cache
from pathlib import Path

import pytest

from wsjax.errors import UsageError
from wsjax.scripts import cli, config, protocols

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
OFFLINE, ONLINE = ("fire", "hare-tortoise", "offline-50"), ("dash", "dash-tuned")


@cache
def loaded(script):
    spec = importlib.util.spec_from_file_location(f"protocols_{script}", EXPERIMENTS / f"{script}.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.defaults


def settings(script, *flags):
    return cli.parse(default_of(script, flags), flags)


def default_of(script, flags):
    return cli.default_of(loaded(script), flags)


@pytest.mark.parametrize(("script", "protocol"), [("offline", n) for n in OFFLINE] + [("online", n) for n in ONLINE])
def test_every_protocol_sets_what_it_names_and_can_be_run(script, protocol):
    found = settings(script, "--protocol", protocol)
    for name, value in protocols.PROTOCOLS[protocol].items():
        assert getattr(found, name) == value
    assert found.protocol == protocol
    config.check_config(found, default_of(script, ("--protocol", protocol)))


def test_every_part_is_still_a_flag_and_the_data_set_too():
    found = settings("offline", "--protocol=fire", "--epochs=3", "--dataset=digits", "--own_first", "--l2_init=0.1")
    assert (found.epochs, found.dataset, found.l2_init, found.first_epochs) == (3, "digits", 0.1, 1000)
    assert found.own_first
    assert found.hidden == settings("offline", "--dataset=digits").hidden  # what it does not name is the data set's
    assert settings("online", "--protocol=dash").fresh == settings("online", "--dataset=cifar10").fresh
    assert settings("offline", "--protocol=fire").dataset == "cifar10"
    assert not settings("offline", "--protocol=hare-tortoise", "--no-own_first").own_first


def test_a_protocol_of_another_script_is_refused(capfd):
    for script, protocol, possible in (("offline", "dash", OFFLINE), ("online", "fire", ONLINE)):
        message = f"unknown protocol '{protocol}'; available here: {', '.join(possible)}$"
        with pytest.raises(UsageError, match=message):
            cli.default_of(loaded(script), ["--protocol", protocol])
    assert "Unrecognized options: --protocol=fire" in refused(capfd, "early_stopping", "--protocol=fire")
    assert "--protocol" in refused(capfd, "offline", "--protocol")


def refused(capfd, *arguments):
    with pytest.raises(SystemExit):
        settings(*arguments)
    return capfd.readouterr().err


def test_without_one_the_defaults_are_the_scripts():
    default = loaded("online")
    assert cli.default_of(default, ["--dataset", "svhn"]) == default("svhn")
    assert cli.default_of(default, []) == default(None)
    assert dataclasses.asdict(default("svhn"))["protocol"] is None
