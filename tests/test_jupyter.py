"""Jupyter: cells in containers through real kernels, kernels in containers through the real client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import KernelManager
from jupyter_core.utils import run_sync
from traitlets.config import Config

import r2d2
from _proc import ended, until
from r2d2 import _core
from r2d2.cli import main
from r2d2.jupyter import kernelspec, reprs
from r2d2.jupyter.magics import ContainerMagics
from r2d2.overlay import Overlay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jupyter_client import BlockingKernelClient

ODD = os.fsdecode("<script>&\"'\x1b[31m字]]>".encode() + b"\xff")


@pytest.fixture(scope="module", autouse=True)
def _places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Jupyter's directories, and IPython's, away from those of whoever runs the tests."""
    top = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(top / name.lower()))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        patch.setenv("JUPYTER_PATH", str(top / "prefix/share/jupyter"))
        patch.setenv("A_SECRET_OF_THE_SERVER", "token")
        run_sync(asyncio.sleep)(0)  # the client's event loop, which it makes once for good
        yield


@pytest.fixture(scope="module")
def shell(_places: None) -> Iterator[InteractiveShell]:
    """IPython without a history file, with the extension."""
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    shell.run_line_magic("load_ext", "r2d2")
    yield shell
    shell.run_line_magic("unload_ext", "r2d2")
    assert "container" not in shell.magics_manager.magics["cell"]
    InteractiveShell.clear_instance()


@pytest.fixture
def lab(shell: InteractiveShell, image: r2d2.Image) -> Iterator[r2d2.Container]:
    """A live container in the user's variable of the same name."""
    with r2d2.Container(image, hostname="lab") as c:
        shell.user_ns["lab"] = c
        yield c
        shell.user_ns.clear()


def cell(shell: InteractiveShell, line: str, text: str) -> None:
    shell.run_cell_magic("container", line, text)


# Cells


def test_a_cell_runs_in_a_throwaway_container(
    shell: InteractiveShell, capsys: Any, image: r2d2.Image
) -> None:
    cell(shell, f"--image {image.layers[0]} --hostname box -e A=b", "hostname; echo $$ $A; echo err >&2")
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "box"
    assert out.splitlines()[1].split()[1] == "b"
    assert err == "err\n"


def test_a_cell_runs_in_a_live_container(shell: InteractiveShell, capsys: Any, lab: r2d2.Container) -> None:
    cell(shell, "lab -w /tmp", "hostname; pwd; echo kept > /kept")
    assert capsys.readouterr().out == "lab\n/tmp\n"
    assert lab.path("/kept").read_text() == "kept\n"
    cell(shell, lab.name, "cat /kept")
    assert capsys.readouterr().out == "kept\n"


def test_a_detached_container_by_its_name(
    shell: InteractiveShell,
    capsys: Any,
    image: r2d2.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("R2D2_RUNTIME", str(tmp_path / "runtime"))
    with r2d2.Detached.start(["sleep", "1000"], image=image, name="nb", hostname="away") as detached:
        pid = detached.pid
        cell(shell, "nb", "hostname")
        assert capsys.readouterr().out == "away\n"
        listed = shell.run_line_magic("containers", "")
        assert [(row[1], row[3]) for row in listed if row[0] == "(nb)"] == [("nb", "running")]
    # A child of ours that is nobody's is reaped whenever a detached container is looked for.
    assert until(lambda: _core.find(-1, 0, 0) is None and not Path(f"/proc/{pid}").exists())


def test_programs_do_not_read_the_cell(shell: InteractiveShell, capsys: Any, lab: r2d2.Container) -> None:
    cell(shell, "lab", "cat\necho after")
    assert capsys.readouterr().out == "after\n"
    cell(shell, "lab --interpreter cat", "an interpreter of no known kind\ngets it as its input")
    assert capsys.readouterr().out == "an interpreter of no known kind\ngets it as its input\n"
    many = "\n".join(f"true {i} {'x' * 100}" for i in range(3000))
    cell(shell, "lab", f"{many}\necho the end")
    assert capsys.readouterr().out == "the end\n"
    del lab


def test_python_cells(shell: InteractiveShell, capsys: Any) -> None:
    code = "import os, sys\nos.write(1, b'\\xe5\\xae'); import time; time.sleep(0.2); os.write(1, b'\\xb9')\n"
    cell(shell, "--python", code + "print(os.getpid() < 10, sys.version_info[0])")
    assert capsys.readouterr().out == "容True 3\n"
    with pytest.raises(r2d2.CommandError):
        cell(shell, "--python", "1/0")
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_exit_status(shell: InteractiveShell, capsys: Any, lab: r2d2.Container) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        cell(shell, "lab", "echo before; exit 7")
    assert caught.value.returncode == 7
    assert "%%container lab" in str(caught.value)
    assert capsys.readouterr().out == "before\n"
    cell(shell, "lab --no-raise-error", "exit 7")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        cell(shell, "lab", "kill -9 $$")
    assert caught.value.returncode == -9
    del lab


def test_output_in_variables(shell: InteractiveShell, capsys: Any, lab: r2d2.Container) -> None:
    cell(shell, "lab --out o --err e --no-raise-error", "echo 容器; echo wrong >&2; exit 1")
    assert (shell.user_ns["o"], shell.user_ns["e"]) == ("容器\n", "wrong\n")
    assert capsys.readouterr() == ("", "")
    cell(shell, "lab --out o", "true")
    assert shell.user_ns["o"] == ""
    del lab


def test_a_cell_in_the_background(shell: InteractiveShell, image: r2d2.Image) -> None:
    cell(shell, f"--image {image.layers[0]} --bg --out o --proc p", "echo started; exec sleep 1000")
    process, pipe = shell.user_ns["p"], shell.user_ns["o"]
    assert pipe.readline() == b"started\n"
    assert process.poll() is None
    listed = shell.run_line_magic("containers", "")
    assert [row[0] for row in listed] == ["(--bg)"]
    container = int(listed[0][4])
    process.kill()
    assert process.wait() == -9
    assert until(lambda: ended(container))  # it went with its only program
    assert until(lambda: not shell.run_line_magic("containers", ""))
    pipe.close()
    shell.user_ns.clear()


def test_background_cells_end_with_the_extension(shell: InteractiveShell, lab: r2d2.Container) -> None:
    cell(shell, "lab --bg --proc p", "exec sleep 1000")
    process = shell.user_ns["p"]
    magics = shell.magics_manager.registry["ContainerMagics"]
    assert isinstance(magics, ContainerMagics)
    assert process.poll() is None
    magics.stop_background()
    assert process.returncode == -9
    assert lab.running


def test_what_a_cell_leaves_behind_runs_on(shell: InteractiveShell, capsys: Any, lab: r2d2.Container) -> None:
    cell(shell, "lab", "(while [ ! -e /go ]; do sleep 0.01; done; echo late; echo late > /late) & echo now")
    assert capsys.readouterr().out == "now\n"
    assert not lab.path("/late").exists()
    lab.path("/go").touch()
    assert until(lambda: lab.path("/late").exists())  # SIGPIPE did not kill it


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("lab --memory 64m", "--memory: lab runs already"),
        ("lab --hostname=x", "--hostname: lab runs already"),
        ("nobody", "neither a variable nor a container"),
        ("number", "is a int"),
        ("--proc p", "--proc needs --bg"),
        ("--nonsense", "unrecognized arguments"),
        ("--network nowhere", "invalid choice"),
        ("--python --interpreter sh", "not allowed with"),
    ],
)
def test_mistakes_in_the_line(shell: InteractiveShell, lab: r2d2.Container, line: str, why: str) -> None:
    shell.user_ns["number"] = 7
    with pytest.raises(UsageError, match=re.escape(why)):
        cell(shell, line, "true")
    assert lab.running


def test_an_interpreter_that_is_not_there(shell: InteractiveShell, lab: r2d2.Container) -> None:
    with pytest.raises(FileNotFoundError):
        cell(shell, "lab --interpreter no-such-shell", "true")
    with pytest.raises(FileNotFoundError):
        cell(shell, "lab --python", "print()")
    lab.stop()
    with pytest.raises(r2d2.ContainerClosed):
        cell(shell, "lab", "true")


def test_line_magics(shell: InteractiveShell, lab: r2d2.Container) -> None:
    rows = shell.run_line_magic("containers", "")
    assert ("lab", lab.name, lab.image.name, "running", str(lab.pid)) in rows
    assert lab.name in rows._repr_mimebundle_()["text/plain"]
    assert shell.run_line_magic("r2d2", "doctor").checks
    assert shell.run_line_magic("r2d2", "explain lab") == lab.explain()
    assert len(shell.run_line_magic("r2d2", "explain scratch")) > 10
    lab.path("/new").touch()
    assert [str(change) for change in shell.run_line_magic("r2d2", "diff lab")] == ["A /new"]
    for wrong in ("", "nonsense", "diff", "doctor x"):
        with pytest.raises(UsageError):
            shell.run_line_magic("r2d2", wrong)
    assert "--hostname" in ContainerMagics.container.__doc__
    assert "%%container [NAME]" in ContainerMagics.container.__doc__


# Rich output


def bundles(container: r2d2.Container, overlay: Overlay) -> dict[str, Any]:
    return {
        "container": container,
        "new container": r2d2.Container("scratch", mounts=["/etc:/mnt:ro"], limits={"pids": 9}),
        "image": container.image,
        "host": r2d2.Image.host(),
        "namespaces": container.namespaces,
        "overlay": overlay,
        "changes": container.diff(),
        "no changes": type(container.diff())(),
        "explanation": container.explain(),
        "report": r2d2.doctor(),
        "completed": container.run(["sh", "-c", f"echo '{ODD.replace(chr(39), '')}'"], capture_output=True),
    }


def test_rich_output_is_safe_and_complete(shell: InteractiveShell, image: r2d2.Image, tmp_path: Path) -> None:
    for name in ("lower" + ODD, "upper" + ODD):
        (tmp_path / name).mkdir()
    with (
        Overlay(tmp_path / ("lower" + ODD), tmp_path / ("upper" + ODD)) as overlay,
        r2d2.Container(image, name="shown", env={"ODD": ODD}) as c,
    ):
        c.path("/" + ODD).touch()
        (overlay.merged / ODD).touch()
        for what, each in bundles(c, overlay).items():
            data, _ = shell.display_formatter.format(each)
            assert data["text/plain"].strip(), what
            assert ("text/html" in data) != ("image/svg+xml" in data), what
            shown = data.get("text/html") or data["image/svg+xml"]
            shown.encode()
            data["text/plain"].encode()
            assert "<script" not in shown, what
            assert "\x1b" not in shown + data["text/plain"], what
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|javascript:|\bon\w+=", shown), what


def test_rich_output_tells_the_facts(image: r2d2.Image, tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    with r2d2.Container(
        image, name="shown", hostname="facts", limits={"memory": "64m", "best_effort": True}
    ) as c:
        c.path("/new").write_text("12345")
        html = c._repr_mimebundle_()["text/html"]
        assert "Container shown: running" in html
        assert "<code" in html
        assert "facts" in html
        assert f">{c.pid}<" in html
        assert "memory 64m" in html
        table = c.diff()._repr_mimebundle_()
        assert table["text/plain"] == "A /new"
        assert ">1 change<" in table["text/html"]
        assert "5 bytes" in table["text/html"]
        namespaces = c.namespaces
        assert namespaces == r2d2.namespace.inspect(c.pid)
        assert isinstance(namespaces, dict)
        lines = namespaces._repr_mimebundle_()["text/plain"].splitlines()
        own = {line.split()[0] for line in lines if line.endswith("its own")}
        assert {"user", "mount", "pid", "uts", "ipc", "net"} <= own
        assert "time" not in own
        assert all(
            "shared" in line
            for line in r2d2.namespace.inspect()._repr_mimebundle_()["text/plain"].splitlines()
        )
    assert "Container shown: ended" in c._repr_mimebundle_()["text/html"]
    assert "new" in r2d2.Container("scratch")._repr_mimebundle_()["text/html"]
    assert (
        str(r2d2.Container("scratch").explain())
        == r2d2.Container("scratch").explain()._repr_mimebundle_()["text/plain"]
    )
    gone = Overlay(tmp_path / "low", tmp_path / "no such directory")
    assert gone._repr_mimebundle_()["text/plain"].startswith("<r2d2.Overlay")


def test_errors_are_short(shell: InteractiveShell, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.user_ns["r2d2"] = r2d2
    shell.run_cell("def mine():\n    r2d2.Container('debian')\n\nmine()")
    out = capsys.readouterr().out
    assert "r2d2.Container('debian')" in out
    assert out.count("Cell In[") == 2
    assert "ImageNotFound: image 'debian'" in out
    assert "hint: images are 'host'" in out
    assert "container.py" not in out
    monkeypatch.setenv("R2D2_DEBUG", "1")
    shell.run_cell("r2d2.Container('debian')")
    assert "container.py" in capsys.readouterr().out
    shell.user_ns.clear()


def test_long_tables_are_cut() -> None:
    changes = r2d2.overlay.Changes(r2d2.overlay.Change(f"file{i}", "added") for i in range(1000))
    data = changes._repr_mimebundle_()
    assert data["text/html"].count("<tr>") == reprs._ROWS + 1
    assert "and 800 more" in data["text/html"]
    assert len(data["text/plain"].splitlines()) == 1000


def test_rich_output_needs_nothing_of_jupyter(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['IPython'] = sys.modules['jupyter_client'] = None\n"
        "import r2d2; print(r2d2.Container('scratch')._repr_mimebundle_()['text/plain'])\n"
        "from r2d2.cli import main; sys.exit(main(['kernel', 'list']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "<r2d2.Container" in done.stdout
    assert done.returncode == 125
    assert "pip install 'r2d2-containers[jupyter]'" in done.stderr


# A real kernel


class Kernel:
    """A kernel and its client."""

    def __init__(self, name: str, **keywords: Any) -> None:
        self.manager = KernelManager(kernel_name=name)
        self.manager.start_kernel(**keywords)
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.context.destroy()

    def run(self, code: str) -> str:
        """What a cell writes; its error is an AssertionError."""
        pieces: list[str] = []

        def note(message: dict[str, Any]) -> None:
            content = message["content"]
            pieces.append(content.get("text") or content.get("data", {}).get("text/plain", ""))

        reply = {"content": {"status": "aborted"}}
        # After an error a kernel aborts what comes too soon, without having looked at it.
        for _ in range(50):
            reply = self.client.execute_interactive(code, timeout=60, output_hook=note)
            if reply["content"]["status"] != "aborted":
                break
            time.sleep(0.02)
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(pieces)

    def start(self, code: str, sign: str) -> str:
        """Starts a cell and waits until it has written a sign: the message's id."""
        number = self.client.execute(code)
        text = ""
        while sign not in text:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") == number:
                assert message["msg_type"] != "error", message["content"]
                text += message["content"].get("text", "")
        return number

    def reply(self, number: str) -> dict[str, Any]:
        """How it ended."""
        while True:
            message = self.client.get_shell_msg(timeout=60)
            if message["parent_header"].get("msg_id") == number:
                content: dict[str, Any] = message["content"]
                return content


@pytest.fixture(scope="module")
def kernel(_places: None, image: r2d2.Image) -> Iterator[Kernel]:
    """An ordinary kernel with the extension loaded and a live container."""
    kernel = Kernel("python3")
    try:
        kernel.run(
            "%load_ext r2d2\nimport r2d2\n"
            f"lab = r2d2.Container(r2d2.Image.from_dir({image.layers[0]!r}), hostname='lab').start()"
        )
        yield kernel
    finally:
        kernel.close()


#: How long a program sleeps that no other run of this suite has: ten such numbers.
LONG = 10**8 + 10 * os.getpid()


def commands() -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.append(
                Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            continue
    return found


def test_output_streams(kernel: Kernel, tmp_path: Path) -> None:
    wait = "echo one; while [ ! -e /shared/go ]; do sleep 0.01; done; echo two"
    number = kernel.start(f"%%container -v {tmp_path}:/shared\n{wait}", "one\n")
    (tmp_path / "go").touch()  # it still runs, or it would never end
    assert kernel.reply(number)["status"] == "ok"


@pytest.mark.parametrize("where", ["lab", ""])
def test_interrupting_a_cell_kills_it_and_not_the_kernel(kernel: Kernel, where: str) -> None:
    kernel.run("kept = 42")
    number = kernel.start(f"%%container {where}\nsleep {LONG} & echo started; sleep {LONG + 1}", "started\n")
    assert until(lambda: sum(f"sleep {LONG // 10}" in command for command in commands()) >= 2)
    kernel.manager.interrupt_kernel()
    content = kernel.reply(number)
    assert content["ename"] == "CommandError"
    assert "-9" in content["evalue"] or "SIGKILL" in content["evalue"]
    assert until(lambda: not any(f"sleep {LONG // 10}" in command for command in commands()))
    assert kernel.run("print(kept, lab.running)") == "42 True\n"


def completions(kernel: Kernel, code: str) -> list[str]:
    reply = kernel.client.complete(code, reply=True, timeout=60)
    found: list[str] = reply["content"]["matches"]
    return found


def test_tab_completion(kernel: Kernel) -> None:
    assert {"--memory", "--memory-swap"} <= set(completions(kernel, "%%container --mem"))
    assert "--rm" not in completions(kernel, "%%container --r")
    assert set(completions(kernel, "%%container --network ")) >= {"none", "host", "slirp"}
    assert "minimal" in completions(kernel, "%%container --image m")
    assert "lab" in completions(kernel, "%%container l")
    assert "doctor" in completions(kernel, "%r2d2 d")
    assert "lab" in completions(kernel, "%r2d2 diff l")
    assert "%%container" in completions(kernel, "%%cont")


def test_a_notebook_gets_the_drawing(kernel: Kernel) -> None:
    found: dict[str, Any] = {}

    def note(message: dict[str, Any]) -> None:
        found.update(message["content"].get("data", {}))

    kernel.client.execute_interactive("r2d2.drawings.mounts(lab)", timeout=60, output_hook=note)
    assert found["image/svg+xml"].startswith("<svg")
    assert found["text/plain"].startswith("/  overlay rw")


# Terminals


class Browser:
    """What the browser's half does: keeps the widget's state, sends and gets its messages."""

    def __init__(self, kernel: Kernel, code: str) -> None:
        self.client = kernel.client
        self.state: dict[str, Any] = {}
        self.text = b""
        self.at = self.acknowledged = self.began = 0
        self.comm = ""
        self.shown: dict[str, Any] = {}
        kernel.client.execute_interactive(code, timeout=60, output_hook=self.take)

    def take(self, message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] == "comm_open" and "_esm" in content["data"]["state"]:
            self.comm = content["comm_id"]
            self.state.update(content["data"]["state"])
        elif message["msg_type"] == "comm_msg" and content["comm_id"] == self.comm:
            data = content["data"]
            self.state.update(data.get("state", {}))
            if data["method"] == "custom":
                self.at = data["content"]["at"]
                if data["content"]["type"] == "replay":
                    self.began = self.at
                self.text += b"".join(bytes(buffer) for buffer in message["buffers"])
        self.shown.update(content.get("data", {}) if message["msg_type"] == "execute_result" else {})

    def say(self, **content: Any) -> None:
        data = {"method": "custom", "content": content}
        message = self.client.session.msg("comm_msg", {"comm_id": self.comm, "data": data})
        self.client.shell_channel.send(message)

    def until(self, done: Any, *, ack: bool = True) -> None:
        while not done():
            self.take(self.client.get_iopub_msg(timeout=60))
            if ack and self.at - self.acknowledged >= 65536:
                self.acknowledged = self.at
                self.say(type="ack", view="one", at=self.at)


@pytest.fixture
def browser(kernel: Kernel) -> Iterator[Browser]:
    kernel.run("from r2d2.jupyter.terminal import Terminal")
    browser = Browser(kernel, "t = Terminal(lab, ['sh'], rows=30, columns=90)\nt")
    yield browser
    assert kernel.run("t.close(); print(t.returncode, lab.running)").endswith("True\n")


def test_a_terminal(browser: Browser, kernel: Kernel) -> None:
    assert browser.shown["application/vnd.jupyter.widget-view+json"]
    assert browser.state["label"].startswith("terminal of container")
    browser.say(type="ready", view="one")
    browser.until(lambda: b"#" in browser.text)
    browser.say(type="input", text="stty size; tty; echo 容$((6 * 7))\r")
    browser.until(lambda: "容42".encode() in browser.text)
    assert b"30 90\r\n" in browser.text
    assert b"/dev/pts/" in browser.text
    browser.say(type="resize", rows=12, columns=34)
    browser.say(type="input", text="stty size\r")
    browser.until(lambda: b"12 34\r\n" in browser.text)
    assert (browser.state["rows"], browser.state["columns"]) == (12, 34)
    browser.say(type="input", text=f"sleep {LONG + 2}\r")
    # Before that the shell itself would take the signal, and sleep go on.
    assert until(lambda: any(command.startswith(f"sleep {LONG + 2}") for command in commands()))
    browser.say(type="input", text="\x03")
    assert until(lambda: not any(command.startswith(f"sleep {LONG + 2}") for command in commands()))
    browser.say(type="input", codes=[*b"exit 3\r"])
    browser.until(lambda: browser.state.get("returncode") is not None)
    assert browser.state["returncode"] == 3
    assert kernel.run("print(t.process.returncode)") == "3\n"


def test_a_terminal_shows_a_late_view_the_last_lines(browser: Browser) -> None:
    browser.say(type="ready", view="one")
    browser.say(type="input", text="echo mark$((6 * 7))\r")
    browser.until(lambda: b"mark42" in browser.text)
    browser.say(type="gone", view="one")
    browser.text = b""
    browser.say(type="ready", view="two")
    browser.until(lambda: b"mark42" in browser.text)


def test_a_terminal_waits_for_the_browser(browser: Browser, kernel: Kernel) -> None:
    browser.say(type="ready", view="one")
    browser.say(type="input", text="yes | head -c 1200000; echo the end\r")
    # All that may be on its way: `run` throws away what would come meanwhile.
    browser.until(lambda: browser.at - browser.began >= 1 << 20, ack=False)
    ahead = int(kernel.run("import time; time.sleep(0.5); print(t._sent)"))
    assert 1 << 20 <= ahead < 2 << 20
    browser.say(type="ack", view="one", at=browser.at)
    browser.until(lambda: browser.text.count(b"the end") == 2)
    assert browser.text.count(b"y\r\n") == 600000


def test_nothing_of_a_terminal_is_left(kernel: Kernel) -> None:
    browser = Browser(kernel, f"t = Terminal(lab, ['sh', '-c', 'sleep {LONG + 3}'])\nt")
    assert until(lambda: any(f"sleep {LONG + 3}" in command for command in commands()))
    look = (
        "import gc, os; gc.collect()\n"
        "names = [os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
        " if os.path.lexists(f'/proc/self/fd/{n}')]\n"
        "print(sum('pts' in name or 'ptmx' in name or 'pidfd' in name for name in names), lab.running)"
    )
    kernel.run("t.close()")
    before = kernel.run(look)
    assert until(lambda: not any(f"sleep {LONG + 3}" in command for command in commands()))
    for _ in range(3):
        kernel.run("t = Terminal(lab, ['sh']); t.close(); t.close()")
    assert kernel.run(look) == before
    assert "xterm" in browser.state["_css"]
    assert not re.search(r"https?://(?!www\.w3\.org|bellard\.org)", browser.state["_esm"])


# Kernels in containers


def install(*words: str) -> str:
    """``r2d2 kernel install``: the name."""
    prefix = os.environ["JUPYTER_PATH"].removesuffix("/share/jupyter")
    name = f"box{len(os.listdir(prefix + '/share/jupyter/kernels')) if os.path.exists(prefix) else 0}"
    assert main(["kernel", "install", "--prefix", prefix, "--name", name, *words]) == 0
    return name


@pytest.fixture(scope="module")
def boxed(_places: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kernel, Path]]:
    """A kernel in a container, and the directory that it shares."""
    shared = tmp_path_factory.mktemp("shared")
    name = install(
        "--hostname", "boxed", "-v", f"{shared}:/shared", "-e", "OWN=variable", "--ulimit", "nofile=512"
    )
    kernel = Kernel(name, cwd="/usr")
    yield kernel, shared
    pid, directory = kernel.manager.provisioner.container.pid, os.path.dirname(kernel.manager.ip)
    assert os.path.isdir(directory)
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel()
    kernel.manager.context.destroy()
    assert ended(pid)
    assert not os.path.exists(directory)
    assert not os.path.exists(kernel.manager.connection_file)
    assert main(["kernel", "remove", name]) == 0
    assert name not in kernelspec.installed()


def test_the_kernel_is_in_a_container(boxed: tuple[Kernel, Path]) -> None:
    kernel, shared = boxed
    assert (
        kernel.run("import os, socket; print(socket.gethostname(), os.getppid(), os.getcwd())")
        == "boxed 1 /usr\n"
    )
    assert kernel.run("print([name for _, name in socket.if_nameindex()])") == "['lo']\n"
    assert kernel.run("import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))") == "(512, 512)\n"
    assert (
        kernel.run("print(os.environ['OWN'], 'A_SECRET_OF_THE_SERVER' in os.environ)") == "variable False\n"
    )
    assert os.environ["A_SECRET_OF_THE_SERVER"]  # the control: the server has it
    kernel.run("open('/shared/out', 'w').write('shared'); open('/usr/private', 'w').write('x')")
    assert (shared / "out").read_text() == "shared"
    assert not os.path.exists("/usr/private")
    assert os.readlink("/proc/self/ns/pid") != kernel.run("print(os.readlink('/proc/self/ns/pid'))").strip()
    info = kernel.manager.get_connection_info()
    assert info["transport"] == "ipc"
    assert len(f"{info['ip']}-5") < 107


@pytest.mark.parametrize("busy", ["time.sleep(1000)", "subprocess.run(['sleep', '1000'])"])
def test_the_kernel_is_interrupted(boxed: tuple[Kernel, Path], busy: str) -> None:
    kernel, _ = boxed
    kernel.run("import subprocess, time; kept = 'kept'")
    number = kernel.start(f"print('busy', flush=True)\n{busy}", "busy")
    time.sleep(0.2)  # let it come from print() to what it waits for
    kernel.manager.interrupt_kernel()
    assert kernel.reply(number)["ename"] == "KeyboardInterrupt"
    assert kernel.run("print(kept)") == "kept\n"


def test_the_kernel_restarts() -> None:
    name = install()
    kernel = Kernel(name)
    try:
        kernel.run("mark = 1; open('/opt/mark', 'w').close()")
        before = kernel.manager.get_connection_info()
        old = kernel.manager.provisioner.container
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=60)
        assert kernel.manager.get_connection_info() == before
        assert not old.running
        found = kernel.run("import os; print('mark' in globals(), os.path.exists('/opt/mark'))")
        assert found == "False False\n"
        kernel.client.execute("os._exit(3)")
        assert until(lambda: not kernel.manager.is_alive())
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=60)
        assert kernel.run("print(1)") == "1\n"
    finally:
        kernel.close()
    assert main(["kernel", "remove", name]) == 0


def test_a_kernel_in_an_image_of_its_own() -> None:
    wanted = {"/usr", "/lib", "/lib64", "/bin", sys.prefix, sys.base_prefix, *filter(os.path.isdir, sys.path)}
    mounts = [path for path in sorted(wanted) if os.path.isdir(path)]
    shown = [f"{path}:{path}:ro" for path in mounts if not any(path.startswith(f"{up}/") for up in mounts)]
    words = [word for volume in shown for word in ("-v", volume)]
    name = install("--image", "scratch", "--python", sys.executable, *words)
    kernel = Kernel(name)
    try:
        assert kernel.run("import os; print(os.path.exists('/var'), os.environ['HOME'])") == "False /root\n"
    finally:
        kernel.close()
    assert main(["kernel", "remove", name]) == 0


def test_the_kernelspec_is_listed(boxed: tuple[Kernel, Path], capsys: Any) -> None:
    kernel, shared = boxed
    assert main(["kernel", "list", "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    options = listed[kernel.manager.kernel_name]["options"]
    assert options["hostname"] == "boxed"
    assert options["mounts"][0] == f"{shared}:/shared"
    assert main(["kernel", "list"]) == 0
    assert kernel.manager.kernel_name in capsys.readouterr().out


SERVER = """
import sys
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name=sys.argv[1], connection_file=sys.argv[2])
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
print(manager.provisioner.container.pid, manager.provisioner.pid, manager.ip, flush=True)
sys.stdin.read()
"""


def test_nothing_runs_on_when_the_server_is_killed(tmp_path: Path) -> None:
    name = install()
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER, name, f"{tmp_path}/kernel.json"],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    ) as server:
        pid, kernel, ip = server.stdout.readline().split()
        assert not ended(pid)
        server.send_signal(signal.SIGKILL)
    assert until(lambda: ended(pid) and ended(kernel))
    directory = os.path.dirname(ip)
    assert os.path.isdir(directory)  # nobody was left to remove it
    other = Kernel(name)
    other.close()
    assert not os.path.exists(directory)
    assert main(["kernel", "remove", name]) == 0


def test_a_kernel_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    name = install("-v", f"{tmp_path}/there:/there")
    (tmp_path / "there").rmdir()
    manager = KernelManager(kernel_name=name)
    with pytest.raises(r2d2.SetupNotFoundError):
        manager.start_kernel()
    directory = os.path.dirname(manager.ip)
    assert os.path.basename(directory).startswith("r2d2-kernel-")
    assert not os.path.exists(directory)
    (tmp_path / "there").mkdir()
    manager.start_kernel()  # and the next try works
    manager.shutdown_kernel(now=True)
    assert not os.path.exists(os.path.dirname(manager.ip))
    manager.context.destroy()
    assert main(["kernel", "remove", name]) == 0


def test_kernels_that_cannot_be(capsys: Any, image: r2d2.Image) -> None:
    prefix = os.environ["JUPYTER_PATH"].removesuffix("/share/jupyter")

    def fails(*words: str) -> str:
        assert main(["kernel", *words]) == 125
        return str(capsys.readouterr().err)

    assert "no python3" in fails("install", "--prefix", prefix, "--name", "bad", "--image", image.layers[0])
    assert "letters, digits" in fails("install", "--prefix", prefix, "--name", "a b")
    assert "has this name" in fails("install", "--prefix", prefix, "--name", "python3")
    assert "none of this name" in fails("remove", "python3")
    assert "takes a NAME" in fails("remove")
    assert "takes no NAME" in fails("list", "x")
    assert "--tmpfs" in fails("install", "--prefix", prefix, "--tmpfs", "/x")
    assert "bad" not in kernelspec.installed()
