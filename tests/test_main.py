"""The `tfscale` command: the choice of the sub-command, before anything is imported."""

import subprocess
import sys
import types

import pytest

import tfscale
from tfscale.__main__ import COMMANDS, main


def test_help_lists_every_command_without_tensorflow():
    code = (
        "import sys\nfrom tfscale.__main__ import main\n"
        "assert main(['--help']) == 0\nassert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tfscale {tfscale.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [(["evalute"], "Received: 'evalute'. Did you mean 'evaluate'?"), ([], "usage: tfscale")],
)
def test_no_such_command_is_exit_code_2_with_the_way_out(capsys, argv, expected):
    assert main(argv) == 2
    assert expected in capsys.readouterr().err


def test_command_gets_the_rest_of_the_line_and_gives_its_exit_code(monkeypatch):
    received = []
    command = types.ModuleType("tfscale.fit")
    command.main = lambda argv: received.append(argv) or 143
    monkeypatch.setitem(sys.modules, "tfscale.fit", command)
    assert main(["fit", "--workers=2", "--help"]) == 143
    assert received == [["--workers=2", "--help"]]
