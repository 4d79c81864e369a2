"""``explain()`` tells the truth: the script builds the same container, the kernel saw the same steps."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import r2d2
from _needs import needs
from _replay import replay

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from r2d2.explain import Explanation

ODD = "a b,c:d'e\"f\n$g%h\\i"


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A root file system of busybox, behind a path with every character that anybody splits at."""
    root = tmp_path / ODD.replace('"', "") / "layer"
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    busybox = shutil.which("busybox")
    assert busybox, "busybox in PATH (Debian: busybox-static)"
    shutil.copy(busybox, root / "bin")
    for applet in ("sh", "cat", "readlink", "ls", "id", "grep", "touch", "ps", "ip", "stat", "echo"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    return root


COMMANDS = """
    id; ls -a /
    ls -l /dev | grep -v '^total' | while read -r mode links owner group rest; do echo $mode $owner; done
    cat /etc/hosts /etc/hostname; grep -E 'Cap|NoNewPrivs' /proc/self/status; ulimit -n; umask; pwd
    (echo x > /new && cat /new) 2>/dev/null || echo refused
"""


def same(container: r2d2.Container, tmp_path: Path, commands: str = COMMANDS) -> None:
    by_hand, real = replay(container, commands, tmp_path)
    assert by_hand.namespaces == real.namespaces
    assert by_hand.mounts == real.mounts
    assert by_hand.hostname == real.hostname
    assert by_hand.output == real.output


def test_replay_of_layers(layer: Path, tmp_path: Path) -> None:
    second = tmp_path / "second \\ layer"
    second.mkdir()
    (second / "from the second").touch()
    same(r2d2.Container(r2d2.Image.from_dir([second, layer])), tmp_path)


def test_replay_of_a_layer_with_a_double_quote(layer: Path, tmp_path: Path) -> None:
    layer.rename(tmp_path / ODD)
    by_hand, real = replay(r2d2.Container(r2d2.Image.from_dir(tmp_path / ODD)), COMMANDS, tmp_path)
    # mount(8) cannot be told such a path: the script opens the directory and names the descriptor.
    named = tuple(mount.replace("/proc/self/fd/3", str(tmp_path / ODD)) for mount in by_hand.mounts)
    assert named == real.mounts
    assert by_hand.output == real.output


def test_replay_of_a_layer_that_is_no_utf8(layer: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff\xfe")
    layer.rename(odd)
    same(r2d2.Container(r2d2.Image.from_dir(odd)), tmp_path)


def test_replay_of_the_host(tmp_path: Path) -> None:
    same(r2d2.Container("host"), tmp_path, COMMANDS + "command -v python3 mount; ls /usr | wc -l")


def test_replay_of_minimal(tmp_path: Path) -> None:
    same(r2d2.Container(r2d2.Image.minimal(["cat", "id", "ls", "grep", "readlink"])), tmp_path)


def test_replay_of_scratch(tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    assert busybox
    mounts = [(busybox, f"/bin/{applet}", True) for applet in ("sh", "cat", "readlink", "ls", "grep", "id")]
    same(r2d2.Container("scratch", mounts=mounts), tmp_path)


def test_replay_of_a_writable_directory(layer: Path, tmp_path: Path) -> None:
    for name in ("proc", "sys", "dev"):
        (layer / name).mkdir()
    same(r2d2.Container(r2d2.Image.from_dir(layer, writable=True)), tmp_path, "touch /stays; ls -a /")
    assert (layer / "stays").exists()


def test_replay_with_mounts(layer: Path, tmp_path: Path) -> None:
    for name in ("var", "run", "tmp"):
        (layer / name).mkdir()
    (layer / "var/run").symlink_to("/run")  # absolute: must not lead out of the image
    (layer / "up").symlink_to("../../../../tmp")
    shared = tmp_path / ODD / "shared"
    shared.mkdir(parents=True)
    (shared / "file").write_text("content\n")
    (tmp_path / "lower1").mkdir()
    (tmp_path / "lower2").mkdir()
    before = sorted(os.listdir("/run"))
    mounts = [
        r2d2.Mount(shared, f"/mnt/{ODD}"),
        r2d2.Mount(shared, "/read only", readonly=True),
        r2d2.Mount(shared / "file", "/var/run/deep/file", readonly=True),
        r2d2.Mount(shared, "/up/there"),
        r2d2.Mount(None, "/scratch space", type="tmpfs", size="1m"),
        r2d2.Mount(None, "/both", type="overlay", lower=(tmp_path / "lower1", tmp_path / "lower2")),
    ]
    commands = "cat /run/deep/file; ls /tmp /up/; (touch '/read only/x') 2>/dev/null || echo refused"
    same(r2d2.Container(r2d2.Image.from_dir(layer), mounts=mounts), tmp_path, commands)
    assert sorted(os.listdir("/run")) == before
    assert not os.path.lexists("/tmp/there")


@pytest.mark.parametrize(
    "keywords",
    [
        {"readonly": True, "hostname": "another.name"},
        {"network": "host"},
        {"limits": {"rlimits": {"nofile": 64, "core": 0}}, "cap_drop": ["ALL"], "no_new_privs": False},
        {"cap_add": ["ALL"], "workdir": "/etc", "env": {"ODD": ODD}},
        {"proc": "none"},
        {"tmpfs_size": "8m"},
    ],
    ids=" ".join,
)
def test_replay_with(keywords: dict[str, object], layer: Path, tmp_path: Path) -> None:
    if keywords.get("proc") == "none":
        container = r2d2.Container(r2d2.Image.from_dir(layer), **keywords)
        script = container.explain().script(["sh", "-c", "ls -a /proc /; echo $HOME"])
        by_hand = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=60)
        with container:
            real = container.run(["sh", "-c", "ls -a /proc /; echo $HOME"], capture_output=True, text=True)
        assert by_hand.stdout == real.stdout
        return
    same(r2d2.Container(r2d2.Image.from_dir(layer), **keywords), tmp_path, COMMANDS + 'echo "$ODD"; ip link')


@needs("cgroup")
def test_replay_with_control_groups(layer: Path) -> None:
    (layer / "bin/sleep").symlink_to("busybox")
    container = r2d2.Container(r2d2.Image.from_dir(layer), limits={"pids": 20})
    crowd = "n=0; while [ $n -lt 40 ]; do sleep 1 & n=$((n + 1)); done"
    script = container.explain().script(["sh", "-c", "cat /proc/self/cgroup; " + crowd])
    by_hand = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    with container:
        real = container.run(["cat", "/proc/self/cgroup"], capture_output=True, text=True)
    assert by_hand.stdout == real.stdout
    assert "fork" in by_hand.stderr  # the limit binds


def test_replay_keeps_the_exit_status_and_takes_another_command(layer: Path) -> None:
    script = r2d2.Container(r2d2.Image.from_dir(layer)).explain().script()
    run = subprocess.run(
        ["sh", "-c", script, "sh", "sh", "-c", "cat; exit 7"],
        input=b"in",
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (7, b"in", b"")


def test_the_script_leaves_nothing(layer: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    script = (
        r2d2.Container(r2d2.Image.from_dir(layer))
        .explain()
        .script(["sh", "-c", "echo $$; readlink /proc/self"])
    )
    subprocess.run(["sh", "-c", script], check=True, capture_output=True, timeout=60)
    assert Path("/proc/self/mountinfo").read_text() == before


def test_comments_are_the_steps_without_a_command_and_no_others() -> None:
    steps = r2d2.Container("scratch").explain()
    comments = {step.title: step.shell for step in steps if step.shell.startswith("#")}
    assert comments == {
        "take /mnt/root as the new root": "# a descriptor of the new root; a script has its path",
        "join a new session keyring": (
            "# keyctl(1) session would join a new session keyring; it is not part of util-linux"
        ),
        "start PID 1": (
            "# PID 1 is a small static program in a sealed memfd, all other descriptors closed; "
            "in a script sh takes its place"
        ),
    }
    with_upper = [step.shell for step in r2d2.Container("host").explain() if step.shell.startswith("#")]
    assert sorted({*with_upper} - {*comments.values()}) == [
        "# a descriptor of the upper layer, which PID 1 keeps for diff(); a script has no use for it"
    ]
    # In the script stand the same: after each step's title either commands or one of these.
    script = r2d2.Container("host").explain().script().splitlines()
    titles = [i for i, line in enumerate(script) if re.match(r"# \d+\. ", line)]
    own = [script[i + 1] for i in titles if script[i + 1].startswith("#") and i + 1 not in titles]
    assert {line for line in own if "old root lies" not in line and "more than one id" not in line} == {
        *with_upper
    } - {comments["take /mnt/root as the new root"]} | {
        "# a descriptor of the new root; a script has its path"
    }


def test_the_table_fits() -> None:
    explanation = r2d2.Container("host").explain()
    for text in (str(explanation), str(started(r2d2.Container("host")))):
        lines = text.splitlines()
        assert max(map(len, lines)) <= 100
        assert lines[0].split()[:2] == ["#", "who"]
    assert "took" not in str(explanation).splitlines()[0]


def started(container: r2d2.Container) -> Explanation:
    with container:
        return container.explain()


def test_before_and_after_are_equal_but_for_times() -> None:
    container = r2d2.Container("scratch")
    before = container.explain()
    after = started(container)
    assert before == after
    assert hash(before) == hash(after)
    assert before.total is None
    assert after.total == sum(step.took or 0 for step in after) > 0
    assert [step.number for step in after] == list(range(1, len(after) + 1))
    assert {step.who for step in after} == {"caller", "child"}
    assert before != r2d2.Container("scratch", hostname="other").explain()
    assert before != "a string"
    assert "not started" in repr(before)


def test_json_and_html(tmp_path: Path) -> None:
    odd = tmp_path / "<b>&\n\udcff"
    odd.mkdir()
    explanation = r2d2.Container(r2d2.Image.from_dir(odd)).explain()
    data = json.loads(explanation.to_json())
    assert [step["title"] for step in data["steps"]] == [step.title for step in explanation]
    html = explanation._repr_html_()
    html.encode()
    assert "<b>" not in html
    assert "<script" not in html
    assert "currentColor" in html
    str(explanation).encode()


def test_an_error_names_the_step_as_the_table_does(layer: Path) -> None:
    container = r2d2.Container(r2d2.Image.from_dir(layer), mounts=[("/etc/passwd", "/bin", True)])
    with pytest.raises(r2d2.SetupError) as caught:
        container.start()
    number = int(re.match(r"step (\d+) of", caught.value.step)[1])
    assert (
        caught.value.step
        == f"step {number} of {len(container.explain())}, {container.explain()[number - 1].title}"
    )


# What the kernel saw

STATE = re.compile(
    r"unshare|setns|mount_setattr|mount|umount2|pivot_root|fsopen|fsconfig|fsmount|move_mount|open_tree|"
    r"mkdir(at)?|symlink(at)?|link(at)?|unlink(at)?|rename\w*|mknod\w*|write|truncate|f?chmod\w*|f?chown\w*|"
    r"f?chdir|chroot|sethostname|socket|ioctl|keyctl|prlimit64|prctl|capset|seccomp|bpf|setsid|set\w*[ug]ids?|"
    r"setgroups|execve|execveat|close_range|t?kill|ptrace"
)


def calls(trace: Path) -> Iterator[str]:
    """The child's system calls that change anything, in order."""
    for line in trace.read_text(errors="replace").splitlines():
        found = re.match(r"(\w+)\((.*)", line)
        if found is None:
            continue
        name, arguments = found[1], found[2]
        opens = name == "openat" and ("O_CREAT" in arguments or "O_DIRECTORY" in arguments)
        if opens or STATE.fullmatch(name):
            yield name
        if name == "execveat":
            return  # from here on it is PID 1


@needs("strace")
def test_the_kernel_saw_the_steps_and_nothing_else(layer: Path, tmp_path: Path) -> None:
    program = tmp_path / "start.py"
    program.write_text(
        "import r2d2, sys\n"
        "c = r2d2.Container(r2d2.Image.from_dir(sys.argv[1]), mounts=[('/etc', '/mnt/etc', True)],\n"
        "                   limits={'rlimits': {'nofile': 64}}, readonly=True)\n"
        "with c:\n"
        "    for step in c.explain():\n"
        "        print(step.who, step.errno or 0, step.title, '|', step.syscalls)\n"
    )
    traces = tmp_path / "traces"
    traces.mkdir()
    run = subprocess.run(
        ["strace", "-ff", "-qq", "-s", "200", "-o", traces / "t", sys.executable, program, layer],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    rows = [line.rsplit(" | ", 1) for line in run.stdout.splitlines()]
    steps = [(left.split(" ", 2), right.split(", ")) for left, right in rows]
    child = [file for file in traces.iterdir() if "pivot_root(" in file.read_text(errors="replace")]
    assert len(child) == 1
    second = [
        file
        for file in traces.iterdir()
        if file != child[0] and "move_mount(" in file.read_text(errors="replace")
    ]
    assert len(second) == 1

    # Who does what (``container::child::beside``): a thread the mounts up to ``lo``; the child the network
    # namespace before anything else, what concerns itself alone, and what needs the network; and of the masks
    # of /proc each takes the next.
    theirs = [(title, errno, calls) for (who, errno, title), calls in steps if who == "child"]
    at = {title: i for i, (title, _, _) in enumerate(theirs)}
    mounts, network = at["make all mounts private"], at["bring up lo"]
    shared = next(i for i, (title, _, _) in enumerate(theirs) if title.endswith("on ROOT/proc/acpi"))
    system = [i for i, (title, _, _) in enumerate(theirs) if i > network and "ROOT/sys" in title]
    alone = [
        i
        for i, (_, _, calls) in enumerate(theirs)
        if calls in (["sethostname"], ["keyctl"]) or (i > network and calls == ["prctl"])
    ]
    rest = [i for i in range(network + 1, len(theirs)) if i not in system + alone]
    anybody = range(shared, network)

    def expected(numbers: Iterable[int]) -> list[tuple[str, str]]:
        return [
            (theirs[i][0], pattern(theirs[i][2], skipped=theirs[i][1] != "0"))
            for i in numbers
            if theirs[i][2] != [""]
        ]

    some = "(?:" + "|".join({part for _, part in expected(anybody)}) + ")*"
    die = ("die with the caller", "prctl ")
    first, last = expected(range(mounts)), expected(rest)
    own = [die, *expected([network]), *first, *expected(alone), *expected(system), ("masks", some), *last]
    taken = parts(own, list(calls(child[0]))) + parts(
        [*expected(range(mounts, shared)), ("masks", some)], list(calls(second[0]))
    )
    if all(theirs[i][1] == "0" for i in anybody):
        wanted = "".join(part for _, part in expected(anybody))
        assert Counter(taken.split()) == Counter(wanted.split())


def parts(wanted: list[tuple[str, str]], seen: list[str]) -> str:
    """Matches what the kernel saw of a process with its steps; what of it was the masks of /proc."""
    text = "".join(f"{name} " for name in seen)
    patterns = [f"(?P<masks>{part})" if title == "masks" else part for title, part in wanted]
    found = re.fullmatch("".join(patterns), text)
    if found is None:  # say where they part
        good = max(n for n in range(len(patterns) + 1) if re.match("".join(patterns[:n]), text))
        matched = re.match("".join(patterns[:good]), text)
        assert matched is not None
        title = wanted[good - 1][0] if good else "the beginning"
        pytest.fail(f"after {title!r} the kernel saw {text[matched.end() :][:100]}")
    return found["masks"]


def pattern(calls: list[str], *, skipped: bool) -> str:
    """What a step's system calls look like in the trace."""
    names = [{"prlimit": "prlimit64"}.get(name, name) for name in calls]
    parts = [
        f"(?:{name} )+" if name in ("fsconfig", "prctl", "close_range", "write") else f"{name} "
        for name in names
    ]
    if (
        "openat" in names and "fsconfig" in names
    ):  # layers that are too long for fsconfig(2) are opened between
        parts = ["fsopen ", "(?:fsconfig |openat )+", "fsmount ", "move_mount "]
    # A step that was refused ended somewhere on its way.
    return "".join(f"(?:{part}" for part in parts) + ")?" * len(parts) if skipped else "".join(parts)


def test_a_script_ends_with_its_terminal(layer: Path) -> None:
    """Killing the script's process ends the container: ``unshare --kill-child``."""
    script = r2d2.Container(r2d2.Image.from_dir(layer)).explain().script(["sh", "-c", "echo up; exec cat"])
    process = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGKILL)
        assert process.stdout.read() == b""
