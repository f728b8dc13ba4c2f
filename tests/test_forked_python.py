"""The Python that tests start, held to the real one."""

import os
import select
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.forked_python import executable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there it is Python itself")

SCRIPT = """
import multiprocessing, os, sys

def square(x):
    return x * x

if __name__ == "__main__":
    print(sys.argv[1:], __name__, os.path.basename(__file__), sys.path[0] == os.path.dirname(os.path.abspath(__file__)))
    print(os.getcwd(), os.environ["GIVEN"], multiprocessing.get_start_method(), multiprocessing.current_process().name)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(square, [2, 3]))
    sys.exit("gone" if len(sys.argv) > 1 else None)
"""
COMMANDS = {
    "script": ["own script.py"],
    "arguments": ["own script.py", "a b", "-c"],
    "code": ["-u", "-c", "import sys; print(sys.argv); sys.exit(7)", "more"],
    "module": ["-W", "ignore", "-m", "json.tool", "--help"],
    "exception": ["-c", "import atexit; atexit.register(print, 'end'); print('before'); {}['no']"],
    "signal": ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"],
    "syntax": ["-c", "no Python"],
    "closed": ["-c", "import sys; sys.stdout.close(); print('told', file=sys.stderr)"],
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_same_as_python(kind, tmp_path):
    (tmp_path / "own script.py").write_text(SCRIPT)
    settings = {"capture_output": True, "text": True, "cwd": tmp_path, "env": os.environ | {"GIVEN": "a value"}}
    real, forked = (subprocess.run([python, *COMMANDS[kind]], **settings) for python in (sys.executable, executable()))
    assert forked.returncode == real.returncode
    assert forked.stdout == real.stdout
    assert forked.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


WAITING = """
import os, signal
def heard(number, frame):
    # It may come while the number is being printed.
    os.write(1, f"heard {number}\\n".encode())
    os._exit(3)
signal.signal(signal.SIGUSR1, heard)
print(os.getpid(), flush=True)
signal.pause()
"""


def started(code):
    process = subprocess.Popen([executable(), "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def test_signals_are_passed_on():
    process, _ = started(WAITING)
    process.send_signal(signal.SIGUSR1)
    assert process.communicate()[0] == f"heard {signal.SIGUSR1.value}\n"
    assert process.returncode == 3


@pytest.mark.parametrize("first", ["command", "process"])
def test_neither_outlives_the_other(first):
    process, forked = started(WAITING)
    ended = os.pidfd_open(forked)
    if first == "command":
        process.kill()
    else:
        os.kill(forked, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert select.select([ended], [], [], 60)[0] == [ended]
    os.close(ended)
    process.stdout.close()
