"""Which paths lead over a network, by the mounts of the machine."""

from pathlib import Path

import pytest

from jaxckpt.storage import stores
from jaxckpt.storage.stores import networked

MOUNTS = r"""22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /data rw,relatime shared:5 master:2 - nfs4 server:/data rw,vers=4.2
31 30 0:41 / /data/local rw - xfs /dev/sdb rw
32 22 0:42 / /with\040space rw - fuse.gcsfuse bucket rw
33 22 0:43 / /both rw - lustre there rw
34 22 0:44 / /both rw - tmpfs tmpfs rw
35 22 0:45 / /windows rw - cifs //server/share rw
36 22 0:46 / /stick rw - fuseblk /dev/sdc1 rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/run", False),
        ("/data", True),
        ("/data/run/not/there", True),
        ("/database/run", False),
        ("/data/local/run", False),
        ("/with space/run", True),
        ("/both/run", False),
        ("/windows/x", True),
        ("/stick/x", False),
    ],
)
def test_paths(tmp_path: Path, path: str, expected: bool) -> None:
    listed = tmp_path / "mountinfo"
    listed.write_text(MOUNTS)
    assert networked.is_networked(path, str(listed)) is expected


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert networked.is_networked("/data", str(tmp_path / "absent")) is False


def test_buckets_and_this_machine() -> None:
    assert stores.is_networked("gs://bucket/run/ckpt-1")
    assert not stores.is_networked("/proc/self")
