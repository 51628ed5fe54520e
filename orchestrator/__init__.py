"""From the sweep file to the plan, the launch and the answers: the command line's functions, for Python.

>>> from orchestrator import invariance, launch, plan, sql, status  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cluster
    from analysis.compaction import compact
    from analysis.density import spectral_density
    from analysis.exchange import export, import_trials
    from analysis.invariance import invariance
    from analysis.power import power, power_of_pilot
    from analysis.queries import named
    from analysis.report import verdict_text
    from analysis.reproduction import check
    from analysis.sql import sql
    from analysis.trajectories import trajectory
    from analysis.verification import verify
    from orchestrator import data
    from orchestrator.control import logs, remove, status, stop
    from orchestrator.diagnosis import doctor
    from orchestrator.extending import extend
    from orchestrator.inspection import run_trial
    from orchestrator.interpolation import interpolate
    from orchestrator.launching import launch, resume
    from orchestrator.planning import plan
    from orchestrator.sweepfile import init

_HOME = {
    "check": "analysis.reproduction",
    "compact": "analysis.compaction",
    "doctor": "orchestrator.diagnosis",
    "export": "analysis.exchange",
    "extend": "orchestrator.extending",
    "import_trials": "analysis.exchange",
    "init": "orchestrator.sweepfile",
    "interpolate": "orchestrator.interpolation",
    "invariance": "analysis.invariance",
    "launch": "orchestrator.launching",
    "logs": "orchestrator.control",
    "named": "analysis.queries",
    "plan": "orchestrator.planning",
    "power": "analysis.power",
    "power_of_pilot": "analysis.power",
    "remove": "orchestrator.control",
    "resume": "orchestrator.launching",
    "run_trial": "orchestrator.inspection",
    "spectral_density": "analysis.density",
    "sql": "analysis.sql",
    "status": "orchestrator.control",
    "stop": "orchestrator.control",
    "trajectory": "analysis.trajectories",
    "verdict_text": "analysis.report",
    "verify": "analysis.verification",
}

__all__ = [
    "check",
    "cluster",
    "compact",
    "data",
    "doctor",
    "export",
    "extend",
    "import_trials",
    "init",
    "interpolate",
    "invariance",
    "launch",
    "logs",
    "named",
    "plan",
    "power",
    "power_of_pilot",
    "remove",
    "resume",
    "run_trial",
    "spectral_density",
    "sql",
    "status",
    "stop",
    "trajectory",
    "verdict_text",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "data":  # a module: its functions are named as the commands under `isoratio data`
        return importlib.import_module("orchestrator.data")
    if name == "cluster":  # a package, whose functions are named as the commands under `isoratio cluster`
        return importlib.import_module("cluster")
    if name in _HOME:  # imported when first used, so that no command pays for another
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'orchestrator' has no attribute {name!r}; it has {', '.join(__all__)}")
