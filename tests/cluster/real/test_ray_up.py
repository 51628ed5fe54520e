"""Machines of one's own, reached by SSH: the commands of docs/clusters.md, as they are typed on a laptop."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from namespaces import Host, Network, end, missing, network, until

PACKAGES = {"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "rsync": "rsync"}
LACKING = ", ".join(sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None}))
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(bool(LACKING), reason=f"install these packages of Debian: {LACKING}"),
    pytest.mark.timeout(1200),
]

DASHBOARD = "http://127.0.0.1:8265"

SWEEP = """\
name: naps
dataset: digits
train: {call: "naps:nap"}
grid: {lr: [0.1], batch_size: [8], seed: {range: 16}}
pack: {max_trials: 1}
resources: {cpu: 2}
"""

NAPS = """\
import socket
import time


def nap(config):
    time.sleep(2)
    with open("NOTES", "a") as file:
        print(socket.gethostname(), config["seed"], file=file)
    return {"test_loss": config["seed"] / 7}
"""

SSHD = """\
HostKey {key}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
"""


@dataclass
class Lab:
    """A laptop, and machines that take its key.

    Attributes:
        store: a directory that all see.
        notes: where trials write which machine ran them.
    """

    laptop: Host
    machines: list[Host]
    store: Path
    notes: Path

    def typed(self, line: str) -> str:
        """What a command says that a person types on the laptop, and that must go well."""
        done = self.laptop.run("bash", "-c", f"cd; {line}", timeout=300)
        assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def rows(self, store: Path) -> list[dict[str, object]]:
        """What trials gave."""
        query = "SELECT trial_id, status, test_loss FROM trials ORDER BY ALL"
        rows: list[dict[str, object]] = json.loads(self.typed(f"isoratio sql '{query}' --format json --store {store}"))
        return rows

    def ran(self) -> Counter[str]:
        """How many trials each machine has run to their end."""
        return Counter(line.split()[0] for line in self.notes.read_text().splitlines())


@pytest.fixture
def lab() -> Iterator[Lab]:
    with network() as net:
        laptop, *machines = [net.add(name) for name in ("laptop", "gpu1", "gpu2")]
        for host in net.hosts:
            settle(net, host)
        key = laptop.home / ".ssh" / "lab"
        make_key(laptop, key)
        for host in machines:
            shutil.copy(f"{key}.pub", host.home / ".ssh" / "authorized_keys")
            serve_ssh(net, host)
            (host.home / ".isoratio").symlink_to(sys.prefix)  # in place of what `render` installs from the network
        lab = Lab(laptop, machines, net.shared / "results", net.shared / "notes")
        (laptop.home / "sweep.yaml").write_text(SWEEP)
        (laptop.home / "naps.py").write_text(NAPS.replace("NOTES", str(lab.notes)))
        yield lab


def settle(net: Network, host: Host) -> None:
    """Names of all machines; and a home as SSH finds it, which does not ask HOME."""
    hosts, users = net.shared / "hosts", net.shared / "etc" / host.name / "passwd"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{each.address} {each.name}\n" for each in net.hosts))
    users.parent.mkdir(parents=True)
    users.write_text(Path("/etc/passwd").read_text().replace(":/root:", f":{host.home}:", 1))
    for command in (
        ["mount", "--bind", hosts, "/etc/hosts"],
        ["mount", "--bind", users, "/etc/passwd"],
        ["mount", "-t", "tmpfs", "tmpfs", "/run"],
        ["mkdir", "/run/sshd"],
    ):
        assert host.run(*command).returncode == 0, command
    (host.home / ".ssh").mkdir(mode=0o700)
    for name in (".bashrc", ".profile"):
        shutil.copy(f"/etc/skel/{name}", host.home)


def make_key(host: Host, file: Path) -> None:
    assert host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file).returncode == 0


def serve_ssh(net: Network, host: Host) -> None:
    etc = net.shared / "etc" / host.name
    make_key(host, etc / "host_key")
    (etc / "sshd_config").write_text(SSHD.format(key=etc / "host_key"))
    host.start(shutil.which("sshd"), "-D", "-e", "-f", etc / "sshd_config", log=etc / "sshd.log")
    until(lambda: "Server listening" in (etc / "sshd.log").read_text())
    with (net.hosts[0].home / ".ssh" / "known_hosts").open("a") as known:  # as after a first login by hand
        known.write(f"{host.name} {(etc / 'host_key.pub').read_text()}")


def rays(host: Host) -> str:
    """The processes of Ray on a machine."""
    return host.run("pgrep", "--full", "--list-full", "ray::|/ray/core/|/ray/dashboard/|/ray/_private/").stdout


def test_from_nothing_to_a_finished_sweep_and_away_again(lab: Lab) -> None:
    lab.typed(
        "isoratio cluster render onprem --host gpu1 --host gpu2 --user root --ssh-key ~/.ssh/lab "
        f"--store {lab.store} -o cluster.yaml"
    )
    lab.typed("(umask 077; ray get-auth-token --generate > /dev/null)")
    assert "cluster.yaml: nothing is wrong with it" in lab.typed("isoratio cluster check cluster.yaml")
    lab.typed("ray up cluster.yaml -y")
    tunnel = lab.laptop.start("bash", "-c", "cd; ray dashboard cluster.yaml")
    until(lambda: "2 local.cluster.node" in lab.typed("ray exec cluster.yaml 'ray status'"), 300)
    asked = lab.typed(f"isoratio cluster check cluster.yaml --address {DASHBOARD}")
    assert f"{DASHBOARD} runs Ray" in asked
    assert "without a token" not in asked

    launched = lab.typed(f"isoratio launch sweep.yaml --address {DASHBOARD} --store {lab.store}")
    assert "16/16 trials done (0 diverged), 0 failed" in launched
    assert "WARNING" not in launched
    ran = lab.ran()
    assert ran.keys() == {"gpu1", "gpu2"}
    assert min(ran.values()) >= 3
    assert ran.total() == 16
    lab.typed(f"isoratio launch sweep.yaml --executor inline --store {lab.laptop.home}/here")
    assert lab.rows(lab.store) == lab.rows(lab.laptop.home / "here")
    assert len({row["trial_id"] for row in lab.rows(lab.store)}) == len(lab.rows(lab.store)) == 16

    doctor = lab.typed(f"isoratio doctor --address {DASHBOARD} --store {lab.store}")
    for words in ("token: it asks for a token, and takes ours", "gpu1 (10.77.0.2", "gpu2 (10.77.0.3", "found nothing"):
        assert words in doctor
    assert doctor.count(f"store: {lab.store}: can be written, and is the same") == 2

    end(tunnel)
    token = (lab.laptop.home / ".ray" / "auth_token").read_text().strip()
    assert all((m.home / ".ray/auth_token").stat().st_mode & 0o77 == 0 for m in lab.machines)
    assert token not in lab.typed("cat cluster.yaml")
    assert all("/raylet/" in rays(machine) for machine in lab.machines)
    steps = [line.lstrip("# ") for line in (lab.laptop.home / "cluster.yaml").read_text().splitlines()]
    lab.typed("; ".join(step for step in steps if step.startswith(("ray down", "for host"))))
    for machine in lab.machines:
        until(lambda machine=machine: not rays(machine), 30)
