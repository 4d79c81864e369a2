"""What is remembered of a detached container: see ``statedir``, which reads and writes it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from .image import Image
from .netspec import Slirp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .spec import ContainerSpec


def boot() -> str:
    """Tells one boot of the machine from the next (random(4))."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


class State(NamedTuple):
    """What is remembered of a container."""

    name: str
    created: float
    boot: str
    pid: int
    start_time: int
    pid_namespace: int
    args: list[str] | None
    remove: bool
    kept: dict[str, Any]

    @classmethod
    def of(
        cls,
        spec: ContainerSpec,
        args: list[str] | None,
        identity: tuple[int, int, int],
        parts: Sequence[Any],
        *,
        remove: bool,
    ) -> State:
        """Of a container that has just started."""
        image = spec.image
        kept = {**spec._asdict(), "image": [image.kind, image.layers, image.name, image.env]}
        kept["limits"] = {key: value for key, value in spec.limits._asdict().items() if value}
        kept["parts"] = [[*part[:-1], part[-1].decode("latin-1")] for part in parts]
        kept["mounts"] = [[_text(value) for value in mount] for mount in spec.mounts]
        return cls(spec.name, time.time(), boot(), *identity, args, remove, kept)

    @classmethod
    def parse(cls, name: str, text: bytes) -> State:
        """From the file; raises ValueError for anything that :meth:`of` cannot have made."""
        import json

        data = json.loads(text)
        if not isinstance(data, dict) or data.pop("version", None) != 1 or data.get("name") != name:
            raise ValueError("not a state of version 1, or of another name")
        fields: dict[str, Any] = {field: data.get(field) for field in cls._fields}
        for field, kinds in _TYPES.items():
            if not isinstance(fields[field], kinds) or (
                isinstance(fields[field], bool) and field != "remove"
            ):
                raise ValueError(f"{field}={fields[field]!r}")
        if fields["args"] is not None and not all(isinstance(arg, str) for arg in fields["args"]):
            raise ValueError("args")
        if not 0 < fields["pid"] < 1 << 31 or not 0 <= fields["start_time"] < 1 << 64:
            raise ValueError("pid")
        if not 0 <= fields["pid_namespace"] < 1 << 64:
            raise ValueError("pid_namespace")
        state = cls(**fields)
        state.image, state.parts()
        return state

    @property
    def image(self) -> Image:
        """Its image."""
        kind, layers, name, env = self.kept["image"]
        pairs = [(key, value) for key, value in env]
        for text in (kind, name, *layers, *(word for pair in pairs for word in pair)):
            if not isinstance(text, str):
                raise ValueError(f"image {text!r}")  # noqa: TRY004 - a file's fault, not a caller's
        return Image(kind, layers, name, pairs)

    def parts(self) -> list[tuple[Any, ...]]:
        """What its root directory was made of, for ``diff``."""
        found = []
        for kind, path, below, lowers, precreated, content in self.kept["parts"]:
            if not all(isinstance(word, str) for word in (kind, path, below, content, *lowers, *precreated)):
                raise ValueError("parts")
            found.append((kind, path, below, list(lowers), list(precreated), content.encode("latin-1")))
        return found

    def spec(self, default: ContainerSpec) -> ContainerSpec:
        """As the container was started, as far as the fields have the type that they must have."""
        from .spec import mounts_of

        known: dict[str, Any] = {}
        for field in ("hostname", "workdir", "network", "userns", "proc", "storage", "upper", "work"):
            if isinstance(self.kept.get(field), str):
                known[field] = self.kept[field]
        for field in ("readonly", "no_new_privs"):
            if isinstance(self.kept.get(field), bool):
                known[field] = self.kept[field]
        if isinstance(self.kept.get("user"), str | int):
            known["user"] = self.kept["user"]
        for field in ("env", "extra_hosts"):
            known[field] = tuple((str(key), str(value)) for key, value in self.kept.get(field) or ())
        known["mounts"] = mounts_of(tuple(mount) for mount in self.kept.get("mounts") or ())
        return default._replace(
            **{field: value for field, value in known.items() if field in default._fields}
        )

    def public(self) -> dict[str, Any]:
        """For people."""
        kept = dict(self.kept)
        kept.pop("name", None)
        kept.pop("parts", None)
        if isinstance(kept.get("slirp"), list | tuple):
            from .bridge import Bridge

            fields = Bridge._fields if kept.get("network") == "bridge" else Slirp._fields
            kept["slirp"] = dict(zip(fields, kept["slirp"], strict=False))
        kind, layers, name, _ = kept.pop("image")
        return {
            "name": self.name,
            "created": self.created,
            "args": self.args,
            "image": {"name": name, "kind": kind, "layers": layers},
            "remove": self.remove,
            **kept,
        }


_TYPES: dict[str, Any] = {
    "name": str,
    "created": (int, float),
    "boot": str,
    "pid": int,
    "start_time": int,
    "pid_namespace": int,
    "args": (list, type(None)),
    "remove": bool,
    "kept": dict,
}


def _text(value: Any) -> Any:
    """JSON has no paths."""
    if isinstance(value, tuple):
        return [_text(each) for each in value]
    return os.fsdecode(value) if isinstance(value, os.PathLike | bytes) else value
