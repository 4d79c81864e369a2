"""A pool of containers that are ready before they are asked for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import r2d2
from _proc import until


def test_each_is_used_once(image: r2d2.Image) -> None:
    with r2d2.Pool(image, 2, hostname="pooled") as pool:
        assert until(lambda: pool.ready == 2, 30)
        names = set()
        for _ in range(5):
            with pool.container() as container:
                assert container.running
                assert container.run(["hostname"], capture_output=True, text=True).stdout == "pooled\n"
                assert not container.path("/used").exists()
                container.path("/used").touch()
                names.add(container.name)
        assert len(names) == 5
        assert not container.running
        kept = pool.take()
        assert until(lambda: pool.ready == 2, 30)
    assert kept.running, "what was taken is the caller's"
    kept.stop()
    with pytest.raises(r2d2.ContainerClosed, match="the pool was closed"):
        pool.take()
    pool.close()


def test_from_many_threads(image: r2d2.Image) -> None:
    def work(number: int) -> str:
        with pool.container() as container:
            return container.run(["echo", str(number)], capture_output=True, text=True).stdout

    with r2d2.Pool(image, 3) as pool, ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(12))) == [f"{number}\n" for number in range(12)]


def test_warming_and_its_failure(image: r2d2.Image) -> None:
    calls: list[int] = []

    def warm(container: r2d2.Container) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("not warm")
        container.path("/warm").touch()

    with r2d2.Pool(image, 1, warm=warm) as pool:
        with pytest.raises(ValueError, match="not warm"):
            pool.take()
        with pool.container() as container:
            assert container.path("/warm").exists()


def test_one_that_died_is_not_handed_out(image: r2d2.Image) -> None:
    seen: list[r2d2.Container] = []
    with r2d2.Pool(image, 1, warm=seen.append) as pool:
        assert until(lambda: pool.ready == 1, 30)
        seen[0].kill()
        assert until(lambda: not seen[0].running, 10)
        with pool.container() as container:
            assert container is not seen[0]


def test_a_wait_that_is_too_long(image: r2d2.Image) -> None:
    go = threading.Event()
    pool = r2d2.Pool(image, 1, warm=lambda container: go.wait(60))
    with pytest.raises(TimeoutError, match="got ready"):
        pool.take(timeout=0.05)
    go.set()
    pool.take().stop()
    pool.close()


def test_mistakes_are_found_at_once() -> None:
    with pytest.raises(r2d2.SpecError, match="at least 1"):
        r2d2.Pool("host", 0)
    with pytest.raises(r2d2.SpecError, match="names of their own"):
        r2d2.Pool("host", name="x")
    with pytest.raises(r2d2.ImageNotFound):
        r2d2.Pool("debian")
    with pytest.raises(TypeError):
        r2d2.Pool("host", nonsense=1)
