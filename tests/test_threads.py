"""Any thread, any number at once; beside asyncio and forks."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import r2d2

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def together(count: int, work: Callable[[int], None]) -> None:
    """Runs ``work(number)`` in as many threads, which begin at once."""
    gate = threading.Barrier(count)

    def begin(number: int) -> None:
        gate.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(begin, range(count)))


def test_starts_from_eight_threads(image: r2d2.Image) -> None:
    def work(number: int) -> None:
        for turn in range(20):
            text = f"{number}-{turn}"
            done = r2d2.run(
                ["echo", text], image=image, hostname=f"h{number}", capture_output=True, text=True
            )
            assert done.stdout == f"{text}\n"

    together(8, work)


def test_processors_are_the_caller_s(image: r2d2.Image) -> None:
    """The thread that makes the mounts of a start is sent to another one: nobody else is, and one will do."""

    def allowed(pid: str) -> str:
        line = container.run(["grep", "Cpus_allowed_list", f"/proc/{pid}/status"], text=True, stdout=-1)
        return line.stdout.split()[1]

    def mine() -> str:
        with open("/proc/thread-self/status", encoding="ascii") as file:
            return next(line.split()[1] for line in file if line.startswith("Cpus_allowed_list"))

    every = os.sched_getaffinity(0)
    try:
        for some in (every, {min(every)}):
            os.sched_setaffinity(0, some)
            with r2d2.Container(image) as container:
                assert [allowed("1"), allowed("self")] == [mine()] * 2
    finally:
        os.sched_setaffinity(0, every)


def test_execs_in_one_container_from_sixteen_threads(image: r2d2.Image) -> None:
    with r2d2.Container(image) as container:

        def work(number: int) -> None:
            for turn in range(20):
                text = f"{number}-{turn}\n" * 200
                done = container.run(["cat"], input=text, stdout=subprocess.PIPE, text=True)
                assert done.stdout == text
                assert container.run(["sh", "-c", f"exit {number}"], **QUIET).returncode == number

        together(16, work)


def test_one_program_is_waited_for_by_many(image: r2d2.Image) -> None:
    with r2d2.Container(image) as container:
        program = container.popen(["sh", "-c", "read x; exit 6"], stdin=subprocess.PIPE)

        def work(number: int) -> None:
            if number == 0:
                program.communicate(b"\n")
            assert program.wait(10) == 6

        together(8, work)


def test_stop_from_many_threads(image: r2d2.Image) -> None:
    for _ in range(10):
        container = r2d2.Container(image).start()
        together(8, lambda _: container.stop())  # noqa: B023 - called at once
        assert not container.running


def test_a_container_is_ended_under_its_programs(image: r2d2.Image) -> None:
    for _ in range(10):
        container = r2d2.Container(image).start()
        ended = []

        def work() -> None:
            try:
                while True:
                    ended.append(container.run(["true"], **QUIET).returncode)  # noqa: B023
            except r2d2.ContainerClosed:
                pass

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not ended:
            time.sleep(0.001)
        container.stop()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert set(ended) <= {0, -9}


def test_asyncio_waits_by_descriptor(image: r2d2.Image) -> None:
    async def ended(program: r2d2.Process) -> int:
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def readable() -> None:
            loop.remove_reader(program.fileno())
            future.set_result(None)

        loop.add_reader(program.fileno(), readable)
        await asyncio.wait_for(future, 10)
        code = program.poll()
        assert code is not None
        return code

    async def main(container: r2d2.Container) -> None:
        programs = [container.popen(["sh", "-c", f"read x; exit {code}"], stdin=-1) for code in range(1, 9)]
        waits = [asyncio.ensure_future(ended(program)) for program in programs]
        await asyncio.sleep(0)
        assert not any(wait.done() for wait in waits)
        for program in reversed(programs):
            program.communicate(b"\n")
        assert await asyncio.gather(*waits) == list(range(1, 9))
        done = await asyncio.to_thread(r2d2.run, ["echo", "x"], image=container.image, stdout=subprocess.PIPE)
        assert done.stdout == b"x\n"
        # And beside its own children.
        child = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
        assert await child.wait() == 3

    with r2d2.Container(image) as container:
        asyncio.run(main(container))


@pytest.mark.timeout(300)
def test_31_a_thousand_starts_while_threads_allocate_and_log(image: r2d2.Image) -> None:
    # What runs between clone and execve takes no lock: one held by another thread would never be given back.
    over = threading.Event()
    logger = logging.getLogger("r2d2-test")
    logger.propagate = False
    logger.addHandler(logging.StreamHandler(open(os.devnull, "w")))  # noqa: SIM115 - closed below

    def work() -> None:
        while not over.is_set():
            kept = [bytearray(size) for size in range(1, 20000, 500)]
            logger.warning("%d", len(kept))
            os.listdir("/proc/self")

    threads = [threading.Thread(target=work) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    for thread in threads:
        thread.start()
    try:
        for _ in range(500):
            assert r2d2.run(["true"], image=image, **QUIET).returncode == 0
        with r2d2.Container(image) as container:
            for _ in range(500):
                assert container.run(["true"], **QUIET).returncode == 0
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
        for handler in logger.handlers:
            handler.stream.close()
        logger.handlers.clear()


def test_31_forks_of_a_program_that_starts_containers_in_threads(image: r2d2.Image) -> None:
    # The fork has one thread and every lock as it was: those of r2d2 must not matter.
    script = """
import os, sys, threading, r2d2
image = r2d2.Image.from_dir(sys.argv[1])
r2d2.run(["true"], image=image)  # or a fork keeps the lock of a module that is just imported
over = threading.Event()
def work():
    while not over.is_set():
        r2d2.run(["true"], image=image)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for _ in range(60):
    pid = os.fork()
    if pid == 0:
        os._exit(r2d2.run(["sh", "-c", "exit 7"], image=image).returncode)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
over.set()
for thread in threads: thread.join()
print("well")
"""
    command = [sys.executable, "-W", "ignore", "-c", script, image.layers[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")


@pytest.mark.timeout(300)
def test_five_hundred_containers_at_once_from_eight_threads(image: r2d2.Image) -> None:
    containers: list[r2d2.Container] = []
    lock = threading.Lock()

    def start(number: int) -> None:
        del number
        while True:
            with lock:
                if len(containers) >= 500:
                    return
                container = r2d2.Container(image)
                containers.append(container)
            container.start()

    def use(number: int) -> None:
        for i in range(number, 500, 8):
            done = containers[i].run(["echo", str(i)], stdout=subprocess.PIPE, text=True)
            assert done.stdout == f"{i}\n"

    def stop(number: int) -> None:
        for container in containers[number::8]:
            container.stop()

    began = time.monotonic()
    try:
        together(8, start)
        assert sum(container.running for container in containers) == 500
        together(8, use)
    finally:
        together(8, stop)
    assert time.monotonic() - began < 60
