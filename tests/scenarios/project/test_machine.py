"""One machine: what was deployed on it, and what a program may do there."""

import subprocess

import pytest

import r2d2


def sh(container, script, **keywords):
    return container.run(["sh", "-c", script], check=True, capture_output=True, text=True, **keywords).stdout


def test_configuration_is_deployed(container):
    assert container.path("/etc/app.conf").read_text() == "workers = 4\n"


@pytest.mark.parametrize("worker", ["one", "two"])
def test_tests_do_not_share_state(container, worker):
    assert not container.path("/srv/app/lock").exists()
    container.path("/srv/app/lock").write_text(worker)


@pytest.mark.r2d2(env={"STAGE": "staging"}, hostname="shop")
def test_environment_and_hostname(container):
    assert sh(container, "echo $STAGE; hostname") == "staging\nshop\n"


@pytest.mark.r2d2(limits={"memory": "64m", "pids": 50, "best_effort": True})
def test_service_starts_in_small_memory(container):
    assert sh(container, "python3 -c 'print(sum(range(1000)))'") == "499500\n"


def test_source_is_read_only(container_factory, tmp_path):
    (tmp_path / "main.py").write_text("print(1)")
    c = container_factory(mounts=[f"{tmp_path}:/src:ro"])
    assert sh(c, "ls /src") == "main.py\n"
    with pytest.raises(subprocess.CalledProcessError):
        sh(c, "echo 2 > /src/main.py")


def test_deployment_changes_nothing_else(container):
    sh(container, "echo 2 > /etc/app.conf")
    assert [str(change) for change in container.diff()] == ["C /etc/app.conf"]


def test_hanging_job_is_stopped(container):
    with pytest.raises(subprocess.TimeoutExpired):
        container.run(["sh", "-c", "sleep 1000 & wait"], timeout=0.5)
    assert "sleep" not in sh(container, "ps -e -o comm")


def test_missing_program(container):
    with pytest.raises(FileNotFoundError):
        container.run(["no-such-program"])


def test_rollback(container, container_factory):
    release = container.snapshot()
    sh(container, "rm -r /srv/app")
    assert container_factory(release).path("/srv/app/index.html").exists()
    release.remove()


def test_archive_is_copied_out(container, tmp_path):
    sh(container, "tar -C /srv -cf /tmp/app.tar app")
    container.copy_out("/tmp/app.tar", tmp_path)
    assert (tmp_path / "app.tar").stat().st_size > 0


def test_forgotten_program_ends_with_the_container():
    with r2d2.Container("host") as c:
        job = c.popen(["sleep", "1000"])
    assert job.wait() != 0
