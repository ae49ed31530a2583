"""Simulates hosts on one machine: each has its own network, process table, home and sshd, and no route to the outside.

A host is a set of Linux namespaces (mount, PID, network, UTS, IPC) whose first process is this file, run as
`hosts.py SETTINGS.json`. Hosts share a bridge in a network namespace that leads nowhere, and, if asked for, one folder
that stands for network storage. All have the same Python environment, as machines made from one image would: a virtual
environment in ~/venv that finds the dependencies of the one the tests run in, but not Buttress itself.

Everything dies with the process that made it: the first process of a host is killed with its `unshare`, and namespaces,
mounts and interfaces go with their last process. Needs root, and Debian's iproute2, openssh-server and rsync.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

NETWORK = "10.77.0"
ROOT = Path(__file__).parents[1]
#: The home of every host's only user.
HOME = "/root"
#: A host has its own files under each of these; what it needs of the machine's files there is mounted again.
OWN = (HOME, "/tmp", "/run", "/dev/shm")
#: What a host's first process writes to its log: that it is ready, or what was refused.
READY, REFUSED = "ready", "refused: "


#: Bytes of free memory for four hosts with Ray on three of them and a sweep's workers on two.
MEMORY = 3 << 30


class Refused(RuntimeError):
    """The machine does not allow a command that hosts need; the message holds the command and its output."""


@cache
def lacking() -> str | None:
    """Returns why hosts cannot be made here, or None. Makes two hosts and logs in from one to the other (2 s)."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts in namespaces need Linux and root"
    needed = ("unshare", "nsenter", "ip", "mount", "sshd", "ssh", "ssh-keygen", "rsync", "ps")
    if tools := [tool for tool in needed if _which(tool) is None]:
        return f"not installed: {', '.join(tools)} (Debian: iproute2, openssh-server, rsync, util-linux, procps)"
    if (free := psutil.virtual_memory().available) < MEMORY:
        return f"hosts need {MEMORY >> 30} GiB of free memory, and {free / (1 << 30):.1f} are there"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "storage").mkdir()
        try:
            with hosts(["one", "two"], folder / "made", folder / "storage") as made:
                one, two = made.values()
                # with a terminal, as `ray up` logs in; and the storage that both see
                line = f"ssh -tt -o BatchMode=yes -o StrictHostKeyChecking=no {two.address} 'hostname > /mnt/seen'"
                entered = one.run(line, check=False, timeout=60)
                seen = folder / "storage" / "seen"
                if entered.returncode != 0 or not seen.exists() or seen.read_text().strip() != "two":
                    return f"a host cannot be logged in to: {(entered.stdout + entered.stderr).strip()}"
        except Refused as refusal:
            return f"hosts cannot be made here: {refusal}"
    return None


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Host:
    """One host; `run` runs a command on it in a shell, in the user's home."""

    def __init__(self, name: str, address: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name, self.address, self._process, self._log = name, address, process, log

    def ready(self) -> bool:
        _alive(self._process, self._log)
        return READY in self._log.read_text().splitlines()

    @property
    def first(self) -> int:
        """The process id of the host's process 1 on this machine."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children:
            raise RuntimeError(f"{self.name} is down: {self._log.read_text()}")
        return int(children[0])

    def command(self, line: str) -> list[str]:
        enter = ["nsenter", "--target", str(self.first), "--mount", "--uts", "--ipc", "--net", "--pid"]
        home = ["env", "-i", f"HOME={HOME}", "USER=root", "LANG=C.UTF-8", "TERM=dumb", "OMP_NUM_THREADS=1"]
        path = f"PATH={HOME}/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*enter, *home, path, "bash", "-c", f"cd {HOME}; {line}"]

    def run(self, line: str, *, timeout: float = 120.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(line), capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
        if check and done.returncode != 0:
            raise AssertionError(f"on {self.name}: {line}\nleft with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(self, line: str, log: Path) -> subprocess.Popen[str]:
        with log.open("w") as out:
            return subprocess.Popen(
                self.command(line), stdout=out, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
            )

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        self.run(f"mkdir -p {shlex.quote(str(Path(path).parent))} && cat > {shlex.quote(path)} <<'EOT'\n{text}\nEOT")
        self.run(f"chmod {mode:o} {shlex.quote(path)}")

    def processes(self, *words: str) -> list[str]:
        """Returns the titles of the host's processes that contain all of `words`."""
        titles = self.run("ps -eo args --no-headers", timeout=30).stdout.splitlines()
        return [title for title in titles if all(word in title for word in words)]


@contextmanager
def hosts(names: list[str], folder: Path, shared: Path | None = None) -> Iterator[dict[str, Host]]:
    """Starts hosts that reach each other by SSH with one key, and stops them at the end.

    Args:
        names: The hosts' names.
        folder: Where their files and logs are.
        shared: A folder that is /mnt on all of them.

    Raises:
        Refused: The machine does not allow them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key"))
    addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, 1)}
    with ExitStack() as stack:
        log = folder / "network.log"
        network = stack.enter_context(_namespaces(["--net", "sleep", "infinity"], log))
        inside = ["nsenter", "--target", str(network.pid), "--net", "ip"]
        _until(lambda: _separate(network, log), "the network did not come up")
        _run(*inside, "link", "add", "br0", "type", "bridge")
        _run(*inside, "link", "set", "br0", "up")
        made = {}
        for number, (name, address) in enumerate(addresses.items(), 1):
            settings = {
                "name": name, "address": address, "addresses": addresses, "folder": str(folder / name),
                "key": (folder / "key").read_text(), "public": (folder / "key.pub").read_text(),
                "shared": str(shared) if shared else None,
            }  # fmt: skip
            (folder / name).mkdir()
            (folder / f"{name}.json").write_text(json.dumps(settings))
            command = ["--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
            command += [sys.executable, __file__, str(folder / f"{name}.json")]
            log = folder / f"{name}.log"
            process = stack.enter_context(_namespaces(command, log))
            _until(lambda p=process, log=log: _separate(p, log), f"{name} did not come up")  # type: ignore[misc]
            peer = ["peer", "name", "eth0", "netns", str(process.pid)]
            _run(*inside, "link", "add", f"host{number}", "type", "veth", *peer)
            _run(*inside, "link", "set", f"host{number}", "master", "br0", "up")
            made[name] = Host(name, address, process, log)
        for name, host in made.items():
            _until(host.ready, f"{name} did not come up")
        yield made


@contextmanager
def _namespaces(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as out:
        process = subprocess.Popen(
            ["unshare", *arguments], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _separate(process: subprocess.Popen[str], log: Path) -> bool:
    """Whether the process has left this machine's own network."""
    _alive(process, log)
    try:
        return Path(f"/proc/{process.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    except FileNotFoundError:  # it has just ended: what it said is there next time
        return False


def _alive(process: subprocess.Popen[str], log: Path) -> None:
    """Raises Refused if a command of the process was refused, RuntimeError if it ended for another reason."""
    if process.poll() is None:
        return
    said = log.read_text().strip()
    if said.startswith(("unshare:", REFUSED)):
        raise Refused(said.removeprefix(REFUSED))
    raise RuntimeError(f"the first process of {log.stem} ended: {said}")


def _until(true: Callable[[], bool], otherwise: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(0.02)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(f"{shlex.join(command)}: {(done.stderr or done.stdout).strip()}")


# --- what follows runs inside a host, as its process 1 -------------------------------------------------------------


def boot(settings: dict[str, Any]) -> None:
    """Sets up files, address and sshd, then reaps processes until the host is killed."""
    socket.sethostname(settings["name"])
    _files(settings)
    _home(settings)
    _python()
    _until(lambda: Path("/sys/class/net/eth0").exists() or _has_link(), "no network interface")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", f"{settings['address']}/24", "dev", "eth0")
    _run("ip", "link", "set", "eth0", "up")
    _sshd(settings["address"])
    print(READY, flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:  # reaps orphans, as process 1 has to
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.2)


def _has_link() -> bool:
    return "eth0" in subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=False).stdout


def _files(settings: dict[str, Any]) -> None:
    _run("mount", "--make-rprivate", "/")
    own = Path(settings["folder"])
    _run("mount", "-t", "tmpfs", "-o", "size=4g", "tmpfs", str(own))
    for path in OWN:
        (own / path.lstrip("/")).mkdir(parents=True)
    seen = {sys.prefix, sys.base_prefix, str(ROOT)}
    for path in sorted(seen, key=len):
        if path.startswith(OWN) and not (own / path.lstrip("/")).exists():
            (own / path.lstrip("/")).mkdir(parents=True)
            _run("mount", "--bind", path, f"{own}{path}")
            _run("mount", "-o", "remount,bind,ro", f"{own}{path}")
    for name, text in (("hosts", _etc_hosts(settings)), ("resolv.conf", "")):
        (own / name).write_text(text)
        _run("mount", "--bind", str(own / name), os.path.realpath(f"/etc/{name}"))
    if settings["shared"]:
        _run("mount", "--bind", settings["shared"], "/mnt")
    _run("mount", "-t", "proc", "proc", "/proc")
    _run("mount", "-t", "devpts", "-o", "newinstance,gid=5,mode=620,ptmxmode=666", "devpts", "/dev/pts")
    for path in sorted(OWN, key=lambda path: str(own).startswith(path)):  # the one that hides `own` comes last
        _run("mount", "--rbind", f"{own}{path}", path)
    Path("/tmp").chmod(0o1777)


def _etc_hosts(settings: dict[str, Any]) -> str:
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in settings["addresses"].items())]
    return "\n".join(lines) + "\n"


def _home(settings: dict[str, Any]) -> None:
    home = Path(HOME)
    (home / ".ssh").mkdir(mode=0o700)
    (home / ".ssh" / "authorized_keys").write_text(settings["public"])
    (home / ".ssh" / "id_ed25519").write_text(settings["key"])
    for file in (home / ".ssh").iterdir():
        file.chmod(0o600)
    (home / ".bashrc").write_text("")
    (home / ".profile").write_text("")
    (home / ".config" / "pip").mkdir(parents=True)
    # pip reads this `no-...` backwards: false means that it builds with the setuptools that is there
    (home / ".config" / "pip" / "pip.conf").write_text("[global]\nno-index = true\nno-build-isolation = false\n")
    home.chmod(0o700)


def _python() -> None:
    """~/venv: the dependencies of the environment that runs this, seen from an environment of the host's own."""
    _run(sys.executable, "-m", "venv", "--without-pip", f"{HOME}/venv")
    python = f"{HOME}/venv/bin/python"
    site = next(Path(f"{HOME}/venv/lib").glob("python*")) / "site-packages"
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "image.pth").write_text("\n".join(outer) + "\n")
    for name, call in (("ray", "ray.scripts.scripts"), ("pip", "pip._internal.cli.main")):
        script = Path(f"{HOME}/venv/bin") / name
        script.write_text(f"#!{python}\nimport sys\nfrom {call} import main\nsys.exit(main())\n")
        script.chmod(0o755)


def _sshd(address: str) -> None:
    Path("/run/sshd").mkdir(mode=0o755)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/run/host_key")
    Path("/run/sshd_config").write_text(
        f"ListenAddress {address}\nHostKey /run/host_key\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\nMaxStartups 50\nMaxSessions 50\n"
    )
    _run(str(_which("sshd")), "-f", "/run/sshd_config")


if __name__ == "__main__":
    try:
        boot(json.loads(Path(sys.argv[1]).read_text()))
    except (Refused, PermissionError) as refusal:
        sys.exit(f"{REFUSED}{refusal}")
