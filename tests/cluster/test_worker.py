"""The half of a Tune run that lives in a worker: where it finds what travelled with a job."""

import pytest

from cluster.worker import laid_down


@pytest.mark.parametrize(
    ("directory", "here", "expected"),
    [
        ("/tmp/ray/s/_ray_pkg_1/mine", "/scratch/ray/s/_ray_pkg_1", "/scratch/ray/s/_ray_pkg_1/mine"),
        ("/tmp/ray/s/_ray_pkg_1/mine", "/tmp/ray/s/_ray_pkg_1", "/tmp/ray/s/_ray_pkg_1/mine"),
        ("/tmp/ray/s/_ray_pkg_1/mine", "/tmp/ray/s/_ray_pkg_2", "/tmp/ray/s/_ray_pkg_1/mine"),
        ("/srv/work/mine", "/data/me/work", "/srv/work/mine"),
        ("/srv/work", "/", "/srv/work"),
    ],
)
def test_what_travelled_with_a_job_lies_elsewhere_on_each_node(directory: str, here: str, expected: str) -> None:
    assert laid_down(directory, here) == expected
