"""W&B: real runs in processes of their own, with their own home and without the variables of the machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.record.wandb_examples import ROOT, environment, offline_folders, records, rows

KEY = "0123456789abcdef" * 3
START = """
import os, signal, sys, time
from pathlib import Path
from dreamer_torchrl.record.wandb_run import WandbRun
from dreamer_torchrl.record.wandb_start import Place
run_dir = Path("run")
run_dir.mkdir(exist_ok=True)
"""


def run_program(home: Path, program: str, **variables: str) -> list[str]:
    """Lines that a program prints; it must end well, and say nothing on the error stream."""
    command = [sys.executable, "-c", START + program]
    outcome = subprocess.run(
        command, cwd=home, env=environment(home, **variables), capture_output=True, text=True, timeout=300
    )
    assert outcome.returncode == 0, outcome.stderr
    assert not outcome.stderr
    return outcome.stdout.splitlines()


def log_of(folder: Path) -> bytes:
    """What a run folder holds for the server."""
    (path,) = folder.glob("*.wandb")
    return path.read_bytes()


def test_an_offline_run_holds_what_it_was_given_and_nothing_else(tmp_path: Path) -> None:
    """Configuration, scalars and the video; no package list, code, diff, command line or statistics."""
    (tmp_path / "eval.mp4").write_bytes(b"a film" * 1000)
    (tmp_path / "dream.gif").write_bytes(b"a dream" * 1000)
    program = """
run = WandbRun(run_dir, "offline", Place("a-project", name="a-name"), config={"env": {"name": "CartPole"}})
for step in range(50):
    run.write(step, {"episode/return": float(step), "train/loss_actor": float("nan")})
run.video(50, "eval/video", Path("eval.mp4"))
run.video(50, "dream/video", Path("dream.gif"))
run.close()
"""
    lines = run_program(tmp_path, program)
    (folder,) = offline_folders(tmp_path / "run")
    assert lines == [f"W&B: to upload this run, use: wandb sync {folder.relative_to(tmp_path)}"]
    log = log_of(folder)
    for word in (b"a-project", b"a-name", b"CartPole", b"episode/return", b"eval/video", b"dream/video"):
        assert word in log
    films = sorted(path for path in (folder / "files").rglob("*") if path.is_file())
    assert [film.read_bytes() for film in films] == [
        (tmp_path / name).read_bytes() for name in ("dream.gif", "eval.mp4")
    ]
    for word in (b"tensordict", b"CPython", sys.executable.encode(), str(ROOT).encode()):
        assert word not in log, word


LINES = """
import json
def lines(*steps):
    with open(run_dir / "metrics.jsonl", "a") as file:
        for step in steps:
            for number in (0, 1):
                values = {"episode/return": step + number / 2, "episode/environment": number, "time/elapsed": 36.0}
                file.write(json.dumps({"step": step, **values}) + "\\n")
                run.write(step, values)
def kept():
    return os.path.getsize(run_dir / "metrics.jsonl")
"""


def returns(home: Path) -> list[float]:
    """Of all rows of a run, whichever process wrote them."""
    return [row["episode/return"] for folder in offline_folders(home / "run") for row in rows(folder)]


def test_a_resumed_run_goes_on_where_wandb_is(tmp_path: Path) -> None:
    """The first process told more than its checkpoint knows, and in the middle of a step; none of it comes twice."""
    first = f"""{LINES}
run = WandbRun(run_dir, 'offline')
lines(10, 20, 30)
run.write(40, {{"episode/return": 40.0, "episode/environment": 0}})
run.close()
"""
    second = f"""{LINES}
os.truncate(run_dir / "metrics.jsonl", kept() // 3)  # what the checkpoint of step 10 knows
run = WandbRun(run_dir, 'offline', kept=kept())
lines(20, 30, 40, 50)
run.close()
"""
    run_program(tmp_path, first)
    (line,) = run_program(tmp_path, second)
    assert returns(tmp_path) == [10, 10.5, 20, 20.5, 30, 30.5, 40, 40.5, 50, 50.5]
    folders = offline_folders(tmp_path / "run")
    assert {records(folder, "run")[0]["run_id"] for folder in folders} == {
        (tmp_path / "run/wandb/run_id").read_text().strip()
    }
    assert line.endswith(f"wandb sync {' '.join(str(folder.relative_to(tmp_path)) for folder in folders)}")


def test_what_a_killed_process_did_not_get_to_wandb_is_sent_again(tmp_path: Path) -> None:
    """W&B's own process writes to the disk now and then: what was not there yet comes from the lines of the run."""
    first = f"{LINES}\nrun = WandbRun(run_dir, 'offline')\nlines(10, 20)\ntime.sleep(1)\nos.kill(os.getpid(), 9)\n"
    second = f"{LINES}\nrun = WandbRun(run_dir, 'offline', kept=kept())\nlines(30)\nrun.close()\n"
    killed = subprocess.run([sys.executable, "-c", START + first], cwd=tmp_path, env=environment(tmp_path), timeout=300)
    assert killed.returncode == -signal.SIGKILL
    run_program(tmp_path, second)
    assert returns(tmp_path) == [10, 10.5, 20, 20.5, 30, 30.5]
    last = rows(offline_folders(tmp_path / "run")[-1])
    assert all(row["time/hours"] == 0.01 for row in last if row["step"] < 30)


def test_a_log_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    """Nobody knows how far it goes, so nothing of before is sent again."""
    other = tmp_path / "run/wandb/offline-run-20200101_000000-other/run-other.wandb"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"something else" * 10_000)
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 10, "episode/return": 1.0}\n')
    run_program(tmp_path, f"{LINES}\nrun = WandbRun(run_dir, 'offline', kept=kept())\nlines(20)\nrun.close()\n")
    logged = [row["step"] for folder in offline_folders(tmp_path / "run")[1:] for row in rows(folder)]
    assert logged == [20, 20]


def test_a_training_that_went_back_is_told_once(tmp_path: Path) -> None:
    """After too many faults it returns to a checkpoint: W&B keeps what it has, and goes on after that."""
    program = f"{LINES}\nrun = WandbRun(run_dir, 'offline')\nlines(10, 20, 30, 20, 30, 40)\nrun.close()\n"
    run_program(tmp_path, program)
    (folder,) = offline_folders(tmp_path / "run")
    assert [row["step"] for row in rows(folder)] == [10, 10, 20, 20, 30, 30, 40, 40]


def test_disabled_imports_nothing(tmp_path: Path) -> None:
    """A run without W&B pays nothing for it, and neither do those who only read the words of a command."""
    program = """
run = WandbRun(run_dir, "disabled")
run.write(1, {"a": 1.0})
run.video(1, "eval/video", Path("eval.mp4"))
run.close()
print(sorted({"wandb", "torch"} & set(sys.modules)), os.listdir(run_dir))
"""
    assert run_program(tmp_path, program) == ["[] []"]


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """A server that knows no key."""

    class Refuse(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET = do_POST = refuse

        def log_message(self, format: str, *arguments: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def dripping_server() -> Iterator[str]:
    """A server that sends a byte now and then, so that no single wait takes long, and never comes to an end."""
    ended = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            for byte in b"HTTP/1.1 200 OK\r\nX-Wait: " + b"." * 1000:
                connection.send(bytes([byte]))
                if ended.wait(0.2):
                    return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        ended.set()
        thread.join()


ONLINE = """
start = time.perf_counter()
run = WandbRun(run_dir, "online", Place("a-project"), config={"seed": 0})
print(time.perf_counter() - start)
run.write(1, {"episode/return": 1.0})
run.close()
"""


def assert_fell_back(home: Path, lines: list[str], reason: str, seconds: float) -> None:
    """The run is there, offline; the first lines say why, the last how to upload it."""
    why, waited, how = lines
    assert reason in why and why.endswith("; this run is written offline"), why
    assert float(waited) < seconds
    (folder,) = offline_folders(home / "run")
    assert how.endswith(f"wandb sync {folder.relative_to(home)}")
    assert b"episode/return" in log_of(folder)


def test_online_without_a_key_becomes_offline(tmp_path: Path) -> None:
    """Nobody is asked for one."""
    lines = run_program(tmp_path, ONLINE)
    assert_fell_back(tmp_path, lines, "there is no key for api.", seconds=20)


def test_online_without_a_network_becomes_offline(tmp_path: Path) -> None:
    """The key comes from the environment; nobody listens at the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
    lines = run_program(tmp_path, ONLINE, WANDB_API_KEY=KEY, WANDB_BASE_URL=f"http://{host}")
    assert_fell_back(tmp_path, lines, f"{host} cannot be reached", seconds=20)


def test_a_server_that_hangs_does_not_hold_up_the_start(tmp_path: Path, dripping_server: str) -> None:
    """The key comes from the netrc file; the probe gives up after three seconds."""
    host = dripping_server.removeprefix("http://")
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine {host} login user password {KEY}\n")
    netrc.chmod(0o600)
    lines = run_program(tmp_path, ONLINE, WANDB_BASE_URL=dripping_server)
    assert_fell_back(tmp_path, lines, f"{host} cannot be reached", seconds=23)


@pytest.mark.parametrize(("key", "reason"), [(KEY, "401"), ("short", "40+ characters, has 5;")])
def test_a_wrong_key_becomes_offline(tmp_path: Path, refusing_server: str, key: str, reason: str) -> None:
    """Refused by the server, or by wandb itself."""
    lines = run_program(tmp_path, ONLINE, WANDB_API_KEY=key, WANDB_BASE_URL=refusing_server)
    assert_fell_back(tmp_path, lines, reason, seconds=30)


FIND_CORE = """
import subprocess
def core():
    command = ["ps", "-ww", "-A", "-o", "pid=,ppid=,args="]  # -ww: a long path is not cut at the terminal's width
    rows = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    (pid,) = [int(row.split()[0]) for row in rows if row.split()[1] == str(os.getpid()) and "wandb-core" in row]
    return pid
"""


def test_training_outlives_wandb(tmp_path: Path) -> None:
    """Its process is killed: one warning, then silence, and the run ends as it should."""
    program = f"""{FIND_CORE}
run = WandbRun(run_dir, "offline")
os.kill(core(), signal.SIGKILL)
for step in range(20):
    run.write(step, {{"episode/return": 1.0}})
    time.sleep(0.05)
run.close()
print("trained")
"""
    command = [sys.executable, "-c", START + program]
    outcome = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=300
    )
    warning, command, end = outcome.stdout.splitlines()
    assert warning.startswith("warning: W&B failed (") and warning.endswith("; training goes on without it")
    assert "wandb sync" in command
    assert (end, outcome.returncode) == ("trained", 0)


def test_writing_never_waits(tmp_path: Path) -> None:
    """While W&B's process is frozen, 30,000 records take no time, and one line says that some are left out."""
    program = f"""{FIND_CORE}
run = WandbRun(run_dir, "offline")
pid = core()
os.kill(pid, signal.SIGSTOP)
values = {{f"train/{{number}}": float(number) for number in range(10)}}
start = time.perf_counter()
for step in range(30_000):
    run.write(step, values)
print(time.perf_counter() - start)
os.kill(pid, signal.SIGCONT)
run.close()
"""
    warning, seconds, command = run_program(tmp_path, program)
    assert warning.startswith("warning: W&B does not keep up")
    assert float(seconds) < 10, "30,000 calls"
    assert "wandb sync" in command


def test_a_run_that_nobody_closes_lets_the_process_end(tmp_path: Path) -> None:
    """After an error in the training, for example."""
    start = time.monotonic()
    run_program(tmp_path, "run = WandbRun(run_dir, 'offline')\nrun.write(1, {'a': 1.0})\nsys.exit(0)")
    assert time.monotonic() - start < 15


def test_a_full_or_forbidden_folder_turns_it_off(tmp_path: Path) -> None:
    """Something stands where W&B's files should go: a warning, and training goes on."""
    program = """
(run_dir / "wandb").write_text("in the way")
run = WandbRun(run_dir, "offline")
run.write(1, {"a": 1.0})
run.close()
"""
    (warning,) = run_program(tmp_path, program)
    assert warning.startswith("warning: W&B failed (") and "training goes on without it" in warning


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_setting_that_wandb_refuses_turns_it_off(tmp_path: Path, mode: str) -> None:
    """What it raises then is of a class that is not its own."""
    program = f"run = WandbRun(run_dir, {mode!r})\nrun.write(1, {{'a': 1.0}})\nrun.close()"
    (warning,) = run_program(tmp_path, program, WANDB_BASE_URL="wandb.example.com")
    assert warning.startswith("warning: W&B failed (ValidationError: ") and "base_url" in warning
    assert warning.endswith("; training goes on without it")


def test_ctrl_c_does_not_reach_wandb(tmp_path: Path) -> None:
    """The whole group gets the signal; what is written while the program saves its last checkpoint still arrives."""
    program = """
stopped = []
signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
run = WandbRun(run_dir, "offline")
print("ready", flush=True)
while not stopped:
    time.sleep(0.05)
run.write(1, {"after/stop": 1.0})
run.close()
"""
    command = [sys.executable, "-c", START + program]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "failed" not in output
    assert b"after/stop" in log_of(offline_folders(tmp_path / "run")[0])
