"""What links of a network of containers do to frames: `Network.link`, `Network.node`, `Network.partition`.

A link has two directions, each with its own chances. What a direction does to a frame depends on the
network's seed, the names of its ends, and how many frames of that protocol went before it: two runs that
send the same lose the same, whatever the kernel's neighbour discovery does meanwhile. Where a link is
impaired, large frames are cut into those that a wire would carry, and each of them counts; elsewhere they
pass whole, which is what makes it fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from r2d2.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Impairment", "Link", "LinkStats"]

#: The node of a network that is not a member: its resolver, and the way out where there is one.
GATEWAY = "gateway"
#: The engine's chances are so many parts of this.
_CERTAIN = 1_000_000_000


class Impairment(NamedTuple):
    """What one direction of a link does.

    Attributes:
        delay: seconds that every frame takes.
        jitter: up to so many seconds less or more, evenly; frames stay in order.
        loss: share of frames that vanish, 0 to 1.
        duplicate: share of frames that arrive twice.
        reorder: share of frames that the next one overtakes (or that wait 20 ms for one).
        corrupt: share of frames in which one bit is flipped; checksums notice.
        rate: bits a second, counted from the Ethernet header on; None for no limit.
        queue: frames that may wait for the rate; what comes when they are so many is lost.
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    rate: float | None = None
    queue: int = 1000

    def checked(self) -> Impairment:
        """Itself.

        Raises:
            SpecError: a value is out of its range.
        """
        for name in ("delay", "jitter"):
            if not 0 <= getattr(self, name) <= 3600:
                raise SpecError(f"{name}: {getattr(self, name)!r} is not between 0 and 3600 seconds")
        for name in ("loss", "duplicate", "reorder", "corrupt"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError(f"{name}: {getattr(self, name)!r} is not a share between 0 and 1")
        if self.rate is not None and not 1000 <= self.rate <= 1e15:
            raise SpecError(f"rate: {self.rate!r} is not between 1000 and 10**15 bits a second")
        if not isinstance(self.queue, int) or not 1 <= self.queue <= 10**9:
            raise SpecError(f"queue: {self.queue!r} is not a number of frames, at least 1")
        return self

    def words(self) -> str:
        """As the engine reads it."""
        times = (self.delay, self.jitter)
        shares = (self.loss, self.duplicate, self.reorder, self.corrupt)
        return " ".join(
            str(value)
            for value in (
                *(round(time * 1e6) for time in times),
                *(round(share * _CERTAIN) for share in shares),
                round(self.rate or 0),
                self.queue,
            )
        )


class LinkStats(NamedTuple):
    """What passed over a link, both directions together unless the handle is of one.

    Attributes:
        packets, bytes: what arrived; of a node, what it sent and received.
        dropped: lost packets by reason: ``cut``, ``loss`` (by chance), ``queue`` (it was full).
        duplicated, corrupted, reordered: packets that this happened to.
    """

    packets: int
    bytes: int
    dropped: dict[str, int]
    duplicated: int
    corrupted: int
    reordered: int


class Link:
    """A handle of the link between two nodes, or of a node's link to the switch; any number may exist.

    A frame from ``a`` to ``b`` passes ``a``'s link, then what is between ``a`` and ``b``, then ``b``'s link.

    Attributes:
        directions: pairs of sender and receiver; "" stands for everybody.
    """

    def __init__(self, network: Linked, directions: tuple[tuple[str, str], ...]) -> None:
        self._network = network
        self.directions = directions

    def __repr__(self) -> str:
        ways = ", ".join(f"{a or '*'} to {b or '*'}" for a, b in self.directions)
        return f"<r2d2.link.Link {ways}>"

    @property
    def impairments(self) -> tuple[Impairment, ...]:
        """What each of `directions` does."""
        known = self._network._impairments
        return tuple(known.get(direction, Impairment()) for direction in self.directions)

    def set(
        self,
        *,
        delay: float | None = None,
        jitter: float | None = None,
        loss: float | None = None,
        duplicate: float | None = None,
        reorder: float | None = None,
        corrupt: float | None = None,
        rate: float | None = None,
        queue: int | None = None,
    ) -> None:
        """Changes what it does, in each of its directions, from now on; what is not named stays.

        The arguments are `Impairment`'s. A delay counts in each direction: a round trip takes two.

        Raises:
            SpecError: a value is out of its range.
        """
        given = {
            "delay": delay,
            "jitter": jitter,
            "loss": loss,
            "duplicate": duplicate,
            "reorder": reorder,
            "corrupt": corrupt,
            "rate": rate,
            "queue": queue,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        for direction, old in zip(self.directions, self.impairments, strict=True):
            self._network._impair(direction, old._replace(**changes).checked())  # type: ignore[arg-type]

    def clear(self) -> None:
        """Makes it a good link again. What is under way arrives as it would have."""
        for direction in self.directions:
            self._network._impair(direction, Impairment())

    @property
    def stats(self) -> LinkStats:
        """Its counters."""
        total = [0] * 8
        for direction in self.directions:
            found = self._network._ask(f"passed {_hop(direction)}").split()
            total = [a + int(b) for a, b in zip(total, found, strict=True)]
        packets, size, cut, lost, full, duplicated, corrupted, reordered = total
        dropped = {"cut": cut, "loss": lost, "queue": full}
        return LinkStats(packets, size, dropped, duplicated, corrupted, reordered)


class Linked:
    """What a network of containers can do to the links between its nodes."""

    def __init__(self, name: str) -> None:
        self.name = name
        #: Whoever was a member once.
        self._known = {GATEWAY}
        self._impairments: dict[tuple[str, str], Impairment] = {}
        self._cuts: set[tuple[str, str]] = set()

    def _ask(self, text: str, fds: Iterable[int] = ()) -> str:
        raise NotImplementedError

    def _impair(self, direction: tuple[str, str], how: Impairment) -> None:
        self._ask(f"link {_hop(direction)} {how.words()}")
        self._impairments[direction] = how

    def _node(self, name: str) -> str:
        if name not in self._known:
            raise SpecError(f"network {self.name} has never had a member {name!r}").with_hint(
                "there are " + ", ".join(sorted(self._known))
            )
        return name

    def link(self, a: str, b: str, *, both: bool = True) -> Link:
        """What lies between two nodes; only the way from ``a`` to ``b`` with ``both=False``.

        Members keep their links when they end and come again under their names. "gateway" is the network's
        resolver and, where there is one, the way out.

        Raises:
            SpecError: no member was ever called so, or they are one.
        """
        if self._node(a) == self._node(b):
            raise SpecError(f"link: {a!r} has none to itself")
        return Link(self, ((a, b), (b, a)) if both else ((a, b),))

    def node(self, name: str) -> Link:
        """A member's own link to the switch: what it does, it does to all that the member sends and receives.

        Raises:
            SpecError: no member was ever called so.
        """
        return Link(self, ((self._node(name), ""), ("", name)))

    def cut(self, a: str, b: str, *, both: bool = True) -> None:
        """Lets nothing pass between two nodes, or from ``a`` to ``b`` only. What is under way is lost.

        Raises:
            SpecError: no member was ever called so.
        """
        self._cut("on", [*self.link(a, b, both=both).directions])

    def partition(self, *groups: Iterable[str]) -> None:
        """Cuts every link between nodes of different groups. Nodes in none of them keep theirs.

        A group is of names, as they are given now: who joins later is in none and reaches every group; a
        member that ends and comes again under its name, at any address, is where it was. Cuts add up until
        `heal`, so a newcomer is taken in by another ``partition``.

        Raises:
            SpecError: no member was ever called so, or one is in two groups.
        """
        sides = [{self._node(name) for name in ([g] if isinstance(g, str) else g)} for g in groups]
        if len(sides) < 2:
            raise SpecError("partition: two groups at least")
        if len(set().union(*sides)) != sum(map(len, sides)):
            raise SpecError("partition: a node is in two groups")
        ways = [
            (a, b)
            for one in sides
            for two in sides
            if one is not two
            for a in sorted(one)
            for b in sorted(two)
        ]
        self._cut("on", ways)

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """Ends every cut, or those between two nodes. What links do besides stays.

        A member that was looking for another's hardware address meanwhile asks again when its kernel does,
        once a second (arp(7), ``retrans_time_ms``), and TCP when its own timer says so: wait for either.
        """
        if a is None or b is None:
            if a is not b:
                raise SpecError("heal: two nodes, or none for all")
            self._ask("heal")
            self._cuts.clear()
        else:
            self._cut("off", [*self.link(a, b).directions])

    def _cut(self, how: str, ways: list[tuple[str, str]]) -> None:
        for start in range(0, len(ways), 400):  # a request has 64 KiB
            self._ask("\n".join([f"cut {how}", *(f"{a} {b}" for a, b in ways[start : start + 400])]))
        if how == "on":
            self._cuts.update(ways)
        else:
            self._cuts.difference_update(ways)


def _hop(direction: tuple[str, str]) -> str:
    sender, receiver = direction
    if not receiver:
        return f"out {sender}"
    return f"into {receiver}" if not sender else f"between {sender} {receiver}"
