"""The command `nc-callbacks`."""

import sys
import types

import pytest

from nc_callbacks import __main__ as command
from nc_callbacks import __version__


@pytest.fixture
def given(monkeypatch):
    """Calls the command, with a stand-in for the module of `train` that notes its arguments, or fails."""
    monkeypatch.setattr(sys, "argv", ["nc-callbacks"])
    noted = []

    def call(*arguments, error=None, status=None):
        def main():
            noted.append(sys.argv[1:])
            if error is not None:
                raise error
            return status

        module = types.SimpleNamespace(main=main)
        monkeypatch.setitem(sys.modules, command.COMMANDS["train"].module, module)
        return command.main(arguments or None), noted

    return call


def test_without_arguments_it_lists_what_there_is(given, capsys):
    assert given() == (0, [])
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in ("train", "report", "rank", "dashboard"))
    assert given("--version") == (0, [])
    assert capsys.readouterr().out.strip() == __version__


def test_the_rest_goes_to_the_command_in_hydras_order(given):
    assert given("train", "model=mlp", "-m", "seed=1,2") == (0, [["-m", "model=mlp", "seed=1,2"]])
    assert given("train", "--help", status=3)[0] == 3


def test_a_misspelt_command(given, capsys):
    assert given("trian") == (2, [])
    error = capsys.readouterr().err
    assert error == "Expected one of train, report, rank, dashboard; got 'trian'. Did you mean train?\n"


@pytest.mark.parametrize(
    ("missing", "extra"), [("hydra.core", "experiments"), ("sklearn", "experiments"), ("wandb_workspaces", "dashboard")]
)
def test_what_is_missing_is_said_with_the_extra(given, capsys, missing, extra):
    assert given("train", error=ModuleNotFoundError(name=missing))[0] == 1
    package = missing.partition(".")[0]
    assert capsys.readouterr().err == f"train needs {package}: pip install 'nc-callbacks[{extra}]'.\n"


def test_a_missing_module_of_another_package_is_an_error(given):
    with pytest.raises(ModuleNotFoundError):
        given("train", error=ModuleNotFoundError(name="somewhere"))


@pytest.mark.parametrize("name", ["report", "rank", "dashboard"])
def test_the_commands_are_there(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nc-callbacks"])
    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
