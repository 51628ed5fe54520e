import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # shared cases and plug-ins of these tests
torch.set_num_threads(1)  # the cases are so small that threads would only wait for each other

from s3_server import S3Server, serving  # noqa: E402


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server without faults, found by clients through the environment."""
    s3_process.clear()
    for name, value in s3_process.environment().items():
        monkeypatch.setenv(name, value)
    return s3_process
