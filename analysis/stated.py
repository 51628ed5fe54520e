"""What the sweep file in a store says."""

from __future__ import annotations

import tomllib
from typing import Any

from ruamel.yaml import YAML

from trainables.store import SweepStore


def stated_in(sweep: SweepStore) -> dict[str, Any] | None:
    """The content of a sweep's file, as it was launched last; None where there is none, as for what was imported."""
    found = sweep.sweep_file()
    if found is None:
        return None
    suffix, text = found
    content = tomllib.loads(text) if suffix == ".toml" else YAML(typ="safe").load(text)
    return dict(content or {})
