"""Published protocols: what the flag sets, that flags come before it, and who takes which."""

import dataclasses
import runpy
from pathlib import Path

import pytest

from wsjax.errors import UsageError
from wsjax.scripts import cli, config, optimisers, protocols, study

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
OFFLINE, ONLINE = ("fire", "hare-tortoise", "offline-50"), ("dash", "dash-tuned")


def settings(script, *flags):
    return study.parsed(EXPERIMENTS / f"{script}.py", flags)


@pytest.mark.parametrize(("script", "protocol"), [("offline", n) for n in OFFLINE] + [("online", n) for n in ONLINE])
def test_every_protocol_sets_what_it_names_and_can_be_run(script, protocol):
    found = settings(script, "--protocol", protocol)
    for name, value in protocols.PROTOCOLS[protocol].items():
        assert getattr(found, name) == value
    assert found.protocol == protocol
    config.check_config(found)
    kinds = {method for method in found.methods if method in optimisers.KINDS}
    assert kinds <= set(config.IN_OPTIMIZER)


def test_every_part_is_still_a_flag_and_the_data_set_too():
    found = settings("offline", "--protocol=fire", "--epochs=3", "--dataset=digits", "--no-own_first", "--l2_init=0.1")
    assert (found.epochs, found.dataset, found.l2_init, found.first_epochs) == (3, "digits", 0.1, 1000)
    assert settings("offline", "--protocol=fire").dataset == "cifar10"


def test_a_protocol_of_another_script_is_refused():
    for script, protocol, possible in (("offline", "dash", OFFLINE), ("online", "fire", ONLINE)):
        default = runpy.run_path(str(EXPERIMENTS / f"{script}.py"))["defaults"]
        message = f"unknown protocol '{protocol}'; available here: {', '.join(possible)}$"
        with pytest.raises(UsageError, match=message):
            cli.default_of(default, ["--protocol", protocol])
    with pytest.raises(UsageError, match="early_stopping.py does not take --protocol=fire"):
        settings("early_stopping", "--protocol=fire")


def test_without_one_the_defaults_are_the_scripts():
    default = runpy.run_path(str(EXPERIMENTS / "online.py"))["defaults"]
    assert cli.default_of(default, ["--dataset", "svhn"]) == default("svhn")
    assert cli.default_of(default, []) == default(None)
    assert dataclasses.asdict(default("svhn"))["protocol"] is None
