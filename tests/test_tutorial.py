"""The tutorial, done in a shell as a reader does it: each of its blocks, in order, on a sandbox of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "docs" / "tutorial.md").read_text()
LONGEST_SECONDS = 1800  # it takes a minute or two where nothing else is going on

# Asks the sandbox for all messages, and prints them in one line that begins with what was shown last. Then waits for
# the end of the sandbox's hour, so that the next section begins with a whole one, however fast this machine is.
LOOK = """python - "$1" <<'EOF'
import json, sys, time, urllib.request
def get(what):
    return urllib.request.urlopen("http://127.0.0.1:8090/_sandbox/" + what).read().decode()
print("SEEN", sys.argv[1], get("messages"))
while json.loads(get("state"))["quota"]["is_open"]:
    time.sleep(0.2)
EOF"""


def script() -> str:
    """Make a shell script of the page: its commands as they are, and its files saved where it says."""
    lines = ["set -e", "look() {", LOOK, "}"]
    number = ""
    for heading, path, language, block in re.findall(
        r"^## (\d)\.|^Save this as `([^`]+)`|^```(\w+)\n(.*?)^```$",
        PAGE.replace('"Heer"? Save', "Save"),
        re.MULTILINE | re.DOTALL,
    ):
        if heading:
            lines += [f"look {number}"] if int(heading) > 4 else []
            number = heading
        elif path:
            saved = path
        elif language == "python":
            lines += [f"cat > {saved} <<'EOF'", block.rstrip(), "EOF"]
        else:
            assert language == "bash"
            lines.append(block)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> str:
    """Do the tutorial, and give all that the shell printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    # Those of the Airflow that is here, which need not be the one of constraints.txt.
    constraints = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    freeze = [sys.executable, "-m", "uv", "pip", "freeze", "--python", sys.executable, "--exclude-editable"]
    constraints.write_text(subprocess.run(freeze, capture_output=True, text=True, check=True).stdout)
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        # The reader's environment is made, and finds installed what it would have to download.
        "PYTHONPATH": f"{REPOSITORY}:{packages}",
        "PIP_NO_INDEX": "1",
        "YOUR_AIRFLOW_CONSTRAINTS": str(constraints),
    }
    with subprocess.Popen(
        ["bash"],
        cwd=tmp_path_factory.mktemp("tutorial"),
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            printed, _ = shell.communicate(script().replace("8090", str(port)), timeout=LONGEST_SECONDS)
        finally:
            with suppress(ProcessLookupError):  # as it should be: the page tidies up
                os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, printed[-5000:]
    return printed


@pytest.fixture(scope="module")
def seen(told) -> dict[str, list[dict]]:
    """Give the sandbox's messages as they were after each section."""
    return {
        number: json.loads(messages)
        for number, messages in re.findall(r"^SEEN (\d) (.*)$", told, re.MULTILINE)
    }


def test_the_connection_works(told):
    assert "Connection success!" in told


def test_three_are_told_once_though_the_dag_ran_twice(seen):
    assert [(m["visitorId"], m["text"]) for m in seen["4"]] == [
        (visitor, f"Hi {name}! Version 1 is heer.")
        for visitor, name in sorted([("ann", "Ann"), ("bob", "Bob"), ("cem", "there")], key=order(seen["4"]))
    ]


def order(messages):
    """Give the key that sorts visitors as the messages are: by rank."""
    visitors = [message["visitorId"] for message in messages]
    return lambda pair: visitors.index(pair[0])


def test_the_task_was_deferred_and_came_back_to_write_to_the_rest(told, seen):
    assert "Campaign release-2 waits for quota: deferring until" in told
    assert sum(message["text"] == "Version 2 is here." for message in seen["5"]) == 120


def test_the_typo_is_gone_for_three_calls(told, seen):
    texts = [message["text"] for message in seen["6"]]
    assert sum("heer" in text for text in texts) == 0
    assert sum("Version 1 is here." in text for text in texts) == 3
    assert "Campaign release-1: 3 calls" in told


def test_it_is_taken_back(seen):
    assert {m["visitorId"] for m in seen["7"] if m["deleted"]} == {"ann", "bob", "cem"}
