"""The one way in which child processes are run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from caption_extents import spawning
from caption_extents.children import Channel, ChannelError, Child, Children, arrays_in
from caption_extents.errors import DecodeError
from caption_extents.spawning import ChildKind, SpawnedProcess

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


def echo(channels: list[Channel]) -> None:
    """In a child: send back what comes."""
    while True:
        message, payloads = channels[0].receive()
        if "raise" in message:
            channels[0].send_error({"DecodeError": DecodeError, "KeyError": KeyError}[message["raise"]]("planted"))
        elif "write" in message:
            channels[0].memory(message["write"])[:] = 7
            channels[0].send({})
        elif "shrink" in message:
            try:
                os.ftruncate(channels[0]._memory.fileno(), 0)
                channels[0].send({"shrunk": True})
            except OSError:
                channels[0].send({"shrunk": False})
        else:
            channels[0].send(message, *payloads)


def spin(channels: list[Channel]) -> None:
    """In a child: never look at the channels again, as a codec that hangs."""
    channels[0].send({"ready": True})
    while True:
        pass


def lie(channels: list[Channel]) -> None:
    """In a child: send the bytes that it was asked for, whatever they mean."""
    (_, (data,)) = channels[0].receive()
    channels[0]._end.sendall(bytes(data))
    time.sleep(60)


def relay(channels: list[Channel], word: str, ready: list[tuple[ChildKind, SpawnedProcess]]) -> None:
    """In a child: have its own child, which was started ahead, send back what comes."""
    with closing(Children(ready)) as children:
        own = children.start(ready[0][0])
        channels[0].send({"word": word, "own": own.process_id, "ahead": ready[0][1].process.pid})
        while True:
            own.channels[0].send(channels[0].receive()[0])
            channels[0].send(own.receive()[0])


def start(function: str) -> Child:
    return Children().start(ChildKind(f"tests.test_children:{function}"))


def test_messages_and_payloads_come_back() -> None:
    with closing(start("echo")) as child:
        payloads = [np.arange(12, dtype=np.int64).reshape(3, 4).T, b"", b"abc"]
        child.channels[0].send({"one": [1, None, "\u00fc"]}, *payloads)
        message, found = child.receive()
        assert message == {"one": [1, None, "\u00fc"]}
        assert [bytes(data) for data in found] == [np.ascontiguousarray(payloads[0]).tobytes(), b"", b"abc"]


def test_errors_keep_their_class_if_it_is_known() -> None:
    with closing(start("echo")) as child:
        for name, kind in (("DecodeError", DecodeError), ("KeyError", RuntimeError)):
            child.channels[0].send({"raise": name})
            with pytest.raises(kind, match="planted"):
                child.receive()


def test_memory_is_shared_and_cannot_shrink() -> None:
    with closing(start("echo")) as child:
        (array,) = arrays_in(child.channels[0].memory(5000), [(50, 100)])
        child.channels[0].send({"write": 5000})
        child.receive()
        assert (array == 7).all()
        child.channels[0].send({"shrink": True})
        assert child.receive()[0] == {"shrunk": not hasattr(os, "memfd_create")}
        if hasattr(os, "memfd_create"):
            assert (array == 7).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff" * 64, "a message of"),
        (b"\x02\0\0\0\x01\0\0\0" + b"\0\0\0\xff\0\0\0\0{}", "payloads of"),
        (b"\x02\0\0\0\0\0\0\0[]", "no object"),
        (b"\x04\0\0\0\0\0\0\0nope", "no JSON"),
        (b"\x40\x0d\x03\0\0\0\0\0" + b"[" * 200_000, "no JSON"),
    ],
    ids=["noise", "size", "list", "text", "depth"],
)
def test_a_child_that_lies_is_found_out(data: bytes, message: str) -> None:
    with closing(start("lie")) as child:
        child.channels[0].send({}, data)
        with pytest.raises(ChannelError, match=message):
            child.receive(limit_bytes=1 << 20)


@linux
def test_a_child_that_hangs_ends_with_its_parent() -> None:
    code = (
        "import time\nfrom caption_extents.children import Children\nfrom caption_extents.spawning import ChildKind\n"
        "child = Children().start(ChildKind('tests.test_children:spin'))\nchild.receive()\n"
        "print(child.process_id, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    number = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while _runs(number) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(number)


@linux
def test_children_of_a_run_are_counted_and_closed_together() -> None:
    children = Children()
    started = [children.start(ChildKind("tests.test_children:echo", 2)) for _ in range(2)]
    for child in started:
        child.channels[1].shut_down()
        child.channels[0].send({})
        child.receive()
    assert children.peak_memory_bytes > 2 << 20
    assert children.cpu_seconds > 0
    for _ in range(2):
        children.close()
    assert all(child.has_ended for child in started)


@linux
def test_what_was_started_ahead_is_used_or_ended() -> None:
    one, other = ChildKind("tests.test_children:echo"), ChildKind("tests.test_children:spin")
    ready = [(kind, SpawnedProcess(kind)) for kind in (one, one, other)]
    children = Children(ready)
    ready[0][1].process.kill()
    ready[0][1].process.wait()
    assert children.start(one).process_id == ready[1][1].process.pid, "the first has died"
    new = children.start(one)
    new.channels[0].send({"n": 1})
    assert new.receive()[0] == {"n": 1}
    children.close()
    assert not any(_runs(spawned.process.pid) for _, spawned in ready)


def test_a_child_whose_own_cannot_be_started_begins_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = ChildKind("tests.test_children:echo", ahead=(ChildKind("tests.test_children:echo"),) * 3)
    code = (
        "import resource, subprocess, sys; from caption_extents import child\n"
        "def refuse(*_, **__): raise OSError(24, 'too many open files')\n"
        "subprocess.Popen = refuse; child.main()"
    )
    monkeypatch.setattr(spawning, "COMMAND", [sys.executable, "-c", code])
    with closing(Children().start(kind)) as child:
        child.channels[0].send({"n": 1})
        assert child.receive()[0] == {"n": 1}


@linux
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_child_starts_its_own_ahead(is_killed: bool) -> None:
    echoes = ChildKind("tests.test_children:echo", arguments=())
    child = Children().start(ChildKind("tests.test_children:relay", arguments=("x",), ahead=(echoes, echoes)))
    told, _ = child.receive()
    assert told["word"] == "x"
    assert told["own"] == told["ahead"]
    child.channels[0].send({"n": 1})
    assert child.receive()[0] == {"n": 1}
    if is_killed:
        os.kill(child.process_id, signal.SIGKILL)
    child.close()
    deadline = time.monotonic() + 10
    while _runs(told["own"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(told["own"])


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
