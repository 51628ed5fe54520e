"""Slurm on machines made of namespaces: a login node with the controller, and nodes with a daemon each."""

from __future__ import annotations

import re
import secrets
import shutil
from dataclasses import dataclass

from namespaces import Host, Network, until

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scancel", "scontrol", "sinfo", "srun")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Of a user who has activated nothing."""
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
CONFIGURATION = """\
ClusterName=real
SlurmctldHost=login
SlurmUser=root
AuthType=auth/munge
# How long a job that was queued again waits, too.
AuthInfo=socket={shared}/munge.socket,cred_expire=5
StateSaveLocation={shared}/state
SlurmdSpoolDir={shared}/spool-%n
SlurmctldPidFile={shared}/slurmctld.pid
SlurmdPidFile={shared}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=3,bf_interval=3,batch_sched_delay=0
SlurmdTimeout=20
ReturnToService=2
NodeName={names} CPUs=1 RealMemory=8192 State=UNKNOWN
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Which of Slurm's programs are not here; empty where all are."""
    without = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"there is no {', '.join(without)} (Debian: slurm-wlm, munge)" if without else ""


@dataclass
class Slurm:
    """A cluster that takes jobs.

    Attributes:
        login: where users are, and the controller.
        nodes: where jobs run.
    """

    login: Host
    nodes: list[Host]

    def submit(self, script: str, **environment: str) -> int:
        """Queues a job that lies in the HOME of the login node; returns its number."""
        return int(self.tell("sbatch", "--parsable", script, **environment))

    def tell(self, *command: object, **environment: str) -> str:
        """Runs a command of Slurm on the login node; returns what it says."""
        done = self.login.run(*command, env={"PATH": PATH} | environment)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def show(self, job: int) -> dict[str, str]:
        """What Slurm knows of a job."""
        return dict(re.findall(r"(\w+)=(\S+)", self.tell("scontrol", "--oneliner", "show", "job", job)))

    def queued_again(self, job: int, seconds: float = 300) -> None:
        """Waits for a job to be queued for the second time."""
        until(lambda: self.show(job)["Restarts"] == "1" or self.show(job)["JobState"] in ENDED, seconds)
        assert self.show(job)["Restarts"] == "1", self.log(job)

    def ended(self, job: int, seconds: float = 600) -> str:
        """Waits for a job to end for good; returns its state."""
        until(lambda: self.show(job)["JobState"] in ENDED, seconds)
        return self.show(job)["JobState"]

    def log(self, job: int) -> str:
        """What a job has said."""
        return (self.login.home / f"isoratio-{job}.log").read_text()

    def idle(self) -> int:
        """How many nodes wait for work."""
        return sum(state == "idle" for state in self.tell("sinfo", "--Node", "--noheader", "--format=%t").split())


def start(net: Network, *names: str) -> Slurm:
    """A cluster of the nodes that are named. It ends with its machines."""
    hosts = [net.add(name, SLURM_CONF=str(net.shared / "slurm.conf")) for name in ("login", *names)]
    (net.shared / "state").mkdir()
    (net.shared / "slurm.conf").write_text(CONFIGURATION.format(shared=net.shared, names=",".join(names)))
    for host in hosts:  # as Debian does it, a machine's own name is on its loopback
        known = "".join(f"{'127.0.1.1' if each is host else each.address} {each.name}\n" for each in hosts)
        (host.home / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
        host.run("mount", "--bind", host.home / "hosts", "/etc/hosts")
        host.run("ip", "route", "add", "default", "dev", "eth0")  # to nowhere; Ray asks by it which address is its own
    key, socket = net.shared / "munge.key", net.shared / "munge.socket"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    files = [f"--{name}-file={net.shared}/munged.{name}" for name in ("pid", "log", "seed")]
    login, *nodes = hosts
    login.start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket}", *files)
    until(socket.exists)
    login.start("slurmctld", "-D", log=net.shared / "slurmctld.log")
    for node in nodes:
        node.start("slurmd", "-D", log=net.shared / f"slurmd-{node.name}.log")
    slurm = Slurm(login, nodes)
    until(lambda: slurm.idle() == len(nodes))
    return slurm
