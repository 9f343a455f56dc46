"""Strangers on the port: they do not learn, delay or change anything."""

import ipaddress
import json
import struct
from typing import Any

import fault_programs as programs
import pytest

from jaxckpt import testing

pytestmark = [testing.requires_private_disks, pytest.mark.timeout(120)]


def frame(header: Any) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("!I", len(text)) + text


PROOF = {"t": "Proof", "process": 1, "nonce": "0" * 32, "mac": "0" * 64}
BOMBS = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff" * 64,
    struct.pack("!I", 2**32 - 1),
    frame(b"[" * 4000),
    frame(b'{"n": NaN}'),
    frame(b'{"n": 1e999}'),
    frame(b'{"n": -1}'),
    frame(b'{"n": ' + b"9" * 4000 + b"}"),
    frame(b'{"process": Infinity, "nonce": "", "mac": ""}'),
    frame(b"[]"),
    frame(b"\x00\xff"),
    frame({}),
    frame(PROOF),
    frame(PROOF),
    frame({**PROOF, "process": "1"}),
    frame({**PROOF, "process": True}),
    frame({**PROOF, "mac": "\u00e9"}),
    frame({**PROOF, "nonce": [1]}),
]


def test_strangers(tmp_path: Any) -> None:
    disk = str(tmp_path / "disk")
    with testing.Job(processes=3, private=disk) as job:
        for io in (0, 1):
            for process, addresses in enumerate(job.run(programs.listening_in_a_meeting, f"{disk}/a{io}/ckpt", io)):
                assert len(addresses) == (1 if process in (0, io) else 0), addresses
                for host, _ in addresses:
                    assert not ipaddress.ip_address(host).is_unspecified
            for found, heard, printed in job.run(programs.harassed, f"{disk}/b{io}/ckpt", io, 5, BOMBS, 40):
                assert found["error"] is None, found
                assert printed == ""
                for answer in heard:
                    assert b"Hello" in answer or answer == b"", answer
                    assert b"Welcome" not in answer
            for found in job.run(programs.restore, f"{disk}/b{io}/ckpt", io, secs=20):
                assert found["value"][1] == 5
