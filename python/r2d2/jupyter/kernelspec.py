"""Kernelspecs of kernels in containers: ``r2d2 kernel install | list | remove``.

A kernelspec is a directory with a ``kernel.json`` where Jupyter looks for it (``jupyter kernelspec list``).
Ours are known by their provisioner. Source:
https://jupyter-client.readthedocs.io/en/stable/kernels.html#kernel-specs.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from r2d2.errors import ImageError, ImageNotFound, SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PROVISIONER", "install", "installed", "remove"]

#: The name of the entry point.
PROVISIONER = "r2d2-provisioner"
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def _manager() -> Any:
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except ImportError:
        raise SpecError("kernels need jupyter_client, which is not installed").with_hint(
            "pip install 'r2d2-containers[jupyter]'"
        ) from None
    return KernelSpecManager()


def check(options: Mapping[str, Any], python: str) -> None:
    """Tries the container, and whether there is a kernel in it.

    Raises:
        ImageError: the image has no Python with ipykernel.
        And what ``Container`` raises.
    """
    from .provisioner import container_of

    with container_of(dict(options)) as container:
        try:
            done = container.run([python, "-c", "import ipykernel"], capture_output=True, text=True)
        except FileNotFoundError:
            raise ImageError(f"image {options.get('image', 'host')}: it has no {python}").with_hint(
                "the kernel runs in the container: its image must have Python and ipykernel"
            ) from None
    if done.returncode:
        last = (done.stderr.splitlines() or ["?"])[-1]
        raise ImageError(
            f"image {options.get('image', 'host')}: {python} has no ipykernel: {last}"
        ).with_hint("pip install ipykernel, into that image")


def install(
    options: Mapping[str, Any],
    *,
    name: str = "r2d2",
    python: str | None = None,
    display_name: str | None = None,
    user: bool = False,
    prefix: str | None = None,
) -> str:
    """Writes a kernelspec: its directory.

    Args:
        options: keywords of ``r2d2.Container``, as JSON has them.
        name: of the kernelspec; an older one of this name is replaced if it is r2d2's.
        python: the kernel's Python inside, with ipykernel; by default this one in the host image (if need be,
            its directories are mounted), else ``python3``.
        display_name: what notebooks call it.
        user: for this user; else below ``prefix``, else for all users.
        prefix: such as ``sys.prefix``, a virtual environment.

    Raises:
        SpecError: jupyter_client is not installed; no such name can be, or another's kernel has it.
        ImageError: there is no kernel in the image.
        OSError: nothing can be written there.
        And what ``Container`` raises.
    """
    manager = _manager()
    if _NAME.fullmatch(name) is None:
        raise SpecError(f"kernel name {name!r}: letters, digits, '.', '_' and '-'")
    others = manager.find_kernel_specs()
    if name.lower() in others and name.lower() not in installed():
        raise SpecError(f"kernel {name!r}: {others[name.lower()]} has this name").with_hint(
            "choose another name"
        )
    image = options.get("image", "host")
    if python is None and image == "host":
        from .provisioner import hidden_python

        python = sys.executable
        hidden = [f"{path}:{path}:ro" for path in hidden_python()]
        options = {**options, "mounts": [*options.get("mounts", ()), *hidden]}
    python = python or "python3"
    check(options, python)
    content = {
        "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": display_name or f"Python in a container ({os.path.basename(str(image))})",
        "language": "python",
        "interrupt_mode": "signal",
        "metadata": {
            "debugger": False,
            "kernel_provisioner": {"provisioner_name": PROVISIONER, "config": {"options": dict(options)}},
        },
    }
    with tempfile.TemporaryDirectory(prefix="r2d2-kernel-") as directory:
        with open(os.path.join(directory, "kernel.json"), "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")
        os.chmod(directory, 0o755)  # noqa: S103 - it is copied as it is, and every user may read it
        return str(manager.install_kernel_spec(directory, name, user=user, prefix=prefix))


def installed() -> dict[str, dict[str, Any]]:
    """Our kernelspecs by name: ``directory``, ``display_name`` and ``options``."""
    found: dict[str, dict[str, Any]] = {}
    for name, directory in sorted(_manager().find_kernel_specs().items()):
        try:
            with open(os.path.join(directory, "kernel.json"), encoding="utf-8") as file:
                content = json.load(file)
            provisioner = content["metadata"]["kernel_provisioner"]
            if provisioner["provisioner_name"] == PROVISIONER:
                options = provisioner.get("config", {}).get("options", {})
                found[name] = {
                    "directory": directory,
                    "display_name": content["display_name"],
                    "options": options,
                }
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another's, or nothing that could be started
    return found


def remove(name: str) -> str:
    """Removes a kernelspec of ours: where it was.

    Raises:
        ImageNotFound: (a LookupError) there is none of this name.
        OSError: it cannot be removed.
    """
    if name not in installed():
        raise ImageNotFound(f"kernel {name!r}: r2d2 has installed none of this name").with_hint(
            "r2d2 kernel list"
        )
    return str(_manager().remove_kernel_spec(name))
