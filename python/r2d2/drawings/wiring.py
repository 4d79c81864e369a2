"""Networks of containers: who is in them under which address, what links do to frames, what is cut.

A member is a row, its wire leads to the switch. What is between two members, and not on one's own wire, has a
number and a bracket at the left, and its line below. Members that no way leads between are apart: a red line
is between their groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from r2d2.errors import ContainerClosed, SpecError

from .canvas import BLUE, GREEN, ORANGE, PURPLE, RED, Canvas, Drawing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from r2d2.switch import Network
    from r2d2.switch.link import Impairment, LinkStats
    from r2d2.switch.member import Seat

    Way = tuple[str, str]

_WIDE, _BOX, _SWITCH, _OUT = 900, 262, 616, 696
#: Brackets that are drawn, and lines below; the text has all.
_LANES, _LINES = 8, 24
_GATEWAY = "gateway"


class _Effect(NamedTuple):
    """What happens between some members; ``receivers`` is ``senders`` if it is among them."""

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    both: bool
    what: str
    color: str
    ways: tuple[Way, ...]

    def __str__(self) -> str:
        if self.senders == self.receivers:
            return f"among {', '.join(self.senders)}: {self.what}"
        arrow = "↔" if self.both else "→"
        return f"{', '.join(self.senders)} {arrow} {', '.join(self.receivers)}: {self.what}"


class _Facts(NamedTuple):
    """A network at one moment; its members in groups that reach nobody outside them."""

    network: Network
    seats: dict[str, Seat]
    groups: list[list[str]]
    own: dict[Way, Impairment]
    effects: list[_Effect]
    counted: dict[Way, LinkStats]
    pairs: dict[Way, LinkStats]


def network(networks: tuple[Any, ...], counters: bool) -> Drawing:
    """See `r2d2.drawings.network`."""
    from r2d2.switch import Network

    if not networks:
        raise SpecError("no network was given")
    for each in networks:
        if not isinstance(each, Network):
            raise SpecError(f"{each!r}: an r2d2.Network")
        if not each.alive:
            raise ContainerClosed(f"network {each.name} does not run")
    if len(set(networks)) != len(networks):
        raise SpecError("a network is given twice")
    found = [_facts(each, counters) for each in networks]
    title = " and ".join(f"{each.name} {each.subnet}" for each in networks)
    canvas = Canvas(_WIDE, f"Network {title}" if len(networks) == 1 else f"Networks {title}")
    routers = _routers(found)
    gutter = 14.0 * len(routers)
    places: dict[tuple[str, str], float] = {}
    y = 0.0
    for facts in found:
        y = _draw(canvas, facts, y, gutter, places) + 30
    for lane, (node, names) in enumerate(routers.items()):
        ends = [places[name, node] for name in names]
        x = 5 + 14.0 * lane
        canvas.line(x, min(ends), x, max(ends), color=PURPLE, line=2)
        for end in ends:
            canvas.line(x, end, gutter, end, color=PURPLE, line=2)
    return canvas.drawing("\n".join(line for facts in found for line in _lines(facts)))


# What there is


def _facts(network: Network, counters: bool) -> _Facts:
    from r2d2.switch.link import Impairment, Link

    names = list(network.members)
    with network._lock:
        seats = {name: network._seats[name] for name in names if name in network._seats}
        known = {way: how for way, how in network._impairments.items() if how != Impairment()}
        cuts = set(network._cuts)
    present = {*seats, _GATEWAY}
    groups = _apart(list(seats), cuts)
    group = {name: number for number, each in enumerate(groups) for name in each}
    inside = {(a, b) for a, b in cuts if {a, b} <= present and (_GATEWAY in (a, b) or group[a] == group[b])}
    effects = _grouped(inside, "cut, nothing passes", RED)
    between = {way: how for way, how in known.items() if all(way) and {*way} <= present}
    for kind in sorted(set(between.values())):
        effects += _grouped({way for way, how in between.items() if how == kind}, words(kind), ORANGE)
    own = {way: how for way, how in known.items() if not all(way) and {*way} & present}
    counted: dict[Way, LinkStats] = {}
    pairs: dict[Way, LinkStats] = {}
    if counters:
        for name in present:
            for way in ((name, ""), ("", name)):
                counted[way] = Link(network, (way,)).stats
        pairs = {(a, b): Link(network, ((a, b),)).stats for a in present for b in present if a != b}
    return _Facts(network, seats, groups, own, effects, counted, pairs)


def _apart(names: list[str], cuts: set[Way]) -> list[list[str]]:
    """Groups between which every way is cut, in both directions."""
    groups: list[list[str]] = []
    for name in names:
        near = [g for g in groups if any((name, o) not in cuts or (o, name) not in cuts for o in g)]
        merged = sorted({name}.union(*near), key=names.index)
        groups = sorted([*(g for g in groups if g not in near), merged], key=lambda g: names.index(g[0]))
    return groups


def _grouped(ways: set[Way], what: str, color: str) -> list[_Effect]:
    """The same between many pairs, in few words: nodes with the same peers stand together."""
    both = {(a, b) for a, b in ways if (b, a) in ways}
    found: list[tuple[list[str], list[str], bool]] = []
    peers: dict[str, set[str]] = {}
    for a, b in sorted(both):
        peers.setdefault(a, set()).add(b)
    twins: dict[frozenset[str], list[str]] = {}
    for node, others in peers.items():  # all of these, to each other
        twins.setdefault(frozenset(others | {node}), []).append(node)
    sets = [each for each in twins.values() if len(each) > 2]
    alike: dict[frozenset[str], list[str]] = {}
    for node, others in peers.items():  # none of these to each other, all to the same
        if not any(node in each for each in sets):
            alike.setdefault(frozenset(others), []).append(node)
    found += [(each, each, True) for each in sets]
    sets += alike.values()
    for number, one in enumerate(sets):
        found += [(one, two, True) for two in sets[number + 1 :] if two[0] in peers[one[0]]]
    out: dict[str, set[str]] = {}
    for a, b in sorted(ways - both):
        out.setdefault(a, set()).add(b)
    senders: dict[tuple[str, ...], list[str]] = {}
    for a, others in out.items():
        senders.setdefault(tuple(sorted(others)), []).append(a)
    found += [(names, list(others), False) for others, names in senders.items()]
    return [
        _Effect(
            tuple(one),
            tuple(two),
            mutual,
            what,
            color,
            tuple(
                sorted(
                    {(a, b) for a in one for b in two if a != b}
                    | ({(b, a) for a in one for b in two if a != b} if mutual else set())
                )
            ),
        )
        for one, two, mutual in found
    ]


def _routers(found: list[_Facts]) -> dict[str, list[str]]:
    """Members of several of the networks drawn, and of which."""
    drawn = {facts.network for facts in found}
    several: dict[str, list[str]] = {}
    for facts in found:
        for name, seat in facts.seats.items():
            if any(other in drawn and name in other._seats for other in seat.others):
                several.setdefault(name, []).append(facts.network.name)
    return {name: names for name, names in several.items() if len(names) > 1}


def words(how: Impairment) -> str:
    """What a direction of a link does, in the units of people."""
    found = []
    if how.delay or how.jitter:
        found.append(_time(how.delay) + (f" ±{_time(how.jitter)}" if how.jitter else ""))
    for share, word in (
        (how.loss, "lost"),
        (how.duplicate, "twice"),
        (how.reorder, "overtaken"),
        (how.corrupt, "damaged"),
    ):
        if share:
            found.append(f"{share * 100:.4g} % {word}")
    if how.rate is not None:
        size, unit = next((s, u) for s, u in _RATES if how.rate >= s)
        found.append(f"{how.rate / size:.4g} {unit}")
    if how.queue != 1000:
        found.append(f"queue of {how.queue}")
    return ", ".join(found)


_RATES = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"), (0, "bit/s"))


def _time(seconds: float) -> str:
    return f"{seconds:.4g} s" if seconds >= 1 else f"{seconds * 1e3:.4g} ms"


def _count(stats: LinkStats) -> str:
    """Counters of one direction, or of several."""
    found = [f"{stats.packets} packet{'' if stats.packets == 1 else 's'}"]
    found += [f"{number} {_DROPS[why]}" for why, number in stats.dropped.items() if number]
    for number, word in (
        (stats.duplicated, "twice"),
        (stats.reordered, "overtaken"),
        (stats.corrupted, "damaged"),
    ):
        found += [f"{number} {word}"] if number else []
    return ", ".join(found)


_DROPS = {"cut": "cut off", "loss": "lost", "queue": "not queued"}


def _total(effect: _Effect, pairs: dict[Way, LinkStats]) -> str:
    """What it did, if that was counted."""
    if not pairs:
        return ""
    counted = [pairs[way] for way in effect.ways]
    dropped = {why: sum(each.dropped[why] for each in counted) for why in _DROPS}
    sums = [sum(values) for values in zip(*((e[0], e[1], *e[3:]) for e in counted), strict=True)]
    return " (" + _count(type(counted[0])(sums[0], sums[1], dropped, *sums[2:])) + ")"


def _more(facts: _Facts, name: str) -> str:
    """What a member is besides."""
    seat = facts.seats[name]
    found = ["router"] if seat.member.forward else []
    for other in seat.others:
        known = other._seats.get(name)
        found.append(f"also {known.interface.address} in {other.name}" if known else f"also in {other.name}")
    found += [f"{to} via {by}" for to, by in seat.member.routes]
    return ", ".join(found)


# The picture


def _draw(
    canvas: Canvas, facts: _Facts, top: float, gutter: float, places: dict[tuple[str, str], float]
) -> float:
    """Draws one network below ``top``; returns where it ends."""
    network = facts.network
    canvas.text(gutter + 2, top + 20, network.name, bold=True, size=14, room=300 - gutter)
    canvas.text(_WIDE, top + 20, _head(network), size=12, faint=True, anchor="end", room=580)
    drawn = facts.effects[:_LANES]
    left = gutter + 16.0 * len(drawn) + (6 if drawn else 0)
    y = top + 58
    rows: dict[str, float] = {}
    spans = []
    for number, group in enumerate(facts.groups):
        if number:
            canvas.line(gutter, y + 12, _SWITCH + 36, y + 12, color=RED, dashed=True, line=1.75)
            note = "✕ partition: nothing passes"
            canvas.text(_SWITCH - 8, y + 6, note, size=12, color=RED, bold=True, anchor="end", room=200)
            y += 26
        start = y
        for name in group:
            high = _member(canvas, facts, name, left, y, number)
            rows[name] = y + 23
            y += high + 10
        spans.append((start, y - 10))
    if not facts.groups:
        canvas.text(left + 4, y + 28, "no members", faint=True)
        spans, y = [(y, y + 46)], y + 56
    for start, end in spans:
        canvas.rect(_SWITCH, start, 22, end - start, color=GREEN, fill=0.18)
    canvas.text(_SWITCH + 11, top + 50, "switch", size=11.5, anchor="middle", faint=True)
    y = max(y, _gateway(canvas, facts, spans, drawn))
    _brackets(canvas, drawn, rows, gutter, left)
    places.update({(network.name, name): at for name, at in rows.items()})
    y += 8
    for number, effect in enumerate(facts.effects[:_LINES]):
        y += 20
        _badge(canvas, gutter + 9, y - 4, number + 1, effect.color)
        canvas.text(gutter + 24, y, f"{effect}{_total(effect, facts.pairs)}", size=12)
    if len(facts.effects) > _LINES:
        y += 20
        rest = f"… and {len(facts.effects) - _LINES} more, in the text"
        canvas.text(gutter + 24, y, rest, size=12, faint=True)
    canvas.grow(y)
    return y


def _head(network: Network) -> str:
    six = f", {network.subnet6}" if network.subnet6 is not None else ""
    return f"{network.subnet}{six}, MTU {network.mtu}, seed {network.seed}"


def _member(canvas: Canvas, facts: _Facts, name: str, left: float, y: float, group: int) -> float:
    """A row; returns its height."""
    seat = facts.seats[name]
    more = _more(facts, name)
    ways = ((name, ""), ("", name))
    does = [words(facts.own[way]) if way in facts.own else "" for way in ways]
    counted = [_count(facts.counted[way]) for way in ways if way in facts.counted]
    lines = [f"→ {does[0]}" if does[0] else "", f"← {does[1]}" if does[1] else ""]
    if does[0] and does[0] == does[1]:
        lines = [f"↔ {does[0]}", ""]
    aliases = ", ".join(alias for alias in seat.names if alias != name)
    second = ", ".join(filter(None, (f"as {aliases}" if aliases else "", more)))
    high = 80.0 if counted and lines[1] else 64.0 if second or counted else 46.0
    color = (BLUE, PURPLE, GREEN, ORANGE)[group % 4] if len(facts.groups) > 1 else BLUE
    wide = _BOX
    canvas.rect(left, y, wide, high, color=color, fill=0.12)
    canvas.text(left + 10, y + 19, name, bold=True, room=wide / 2 + 20)
    side = f"{seat.interface.name} ({seat.interface.device})"
    canvas.text(left + wide - 10, y + 19, side, size=11.5, anchor="end", faint=True, room=wide / 2 - 40)
    address = f"{seat.interface.address} {seat.interface.address6 or ''}".rstrip()
    canvas.text(left + 10, y + 37, address, size=11, mono=True, room=wide - 20)
    if second:
        canvas.text(left + 10, y + 55, second, size=11.5, faint=True, room=wide - 20)
    middle, start = y + 23, left + wide
    impaired = any(lines)
    canvas.line(start, middle, _SWITCH, middle, color=ORANGE if impaired else "currentColor", line=1.75)
    room = _SWITCH - start - 16
    for at, line in zip((-6, 15), lines, strict=True):
        if line:
            canvas.text(start + 8, middle + at, line, size=11.5, room=room)
    for number, each in enumerate(counted):
        below = middle + (30 if lines[1] else 15) + 15 * number
        canvas.text(start + 8, below, f"{'→←'[number]} {each}", size=11, faint=True, room=room)
    return high


def _gateway(canvas: Canvas, facts: _Facts, spans: list[tuple[float, float]], drawn: list[_Effect]) -> float:
    """The node that is no member, at the right; returns where it ends."""
    network = facts.network
    top = spans[0][0]
    color = GREEN if network.has_gateway else "currentColor"
    open_ = network.has_gateway
    titles = ("gateway", f"{network._at(1)}: the way out") if open_ else ("gateway", "no way out")
    canvas.rect(_OUT, top, _WIDE - 1 - _OUT, 64, color=color, fill=0.1 if open_ else 0, dashed=not open_)
    canvas.text(_OUT + 10, top + 19, titles[0], bold=True)
    canvas.text(_OUT + 10, top + 37, titles[1], size=12, room=_WIDE - _OUT - 20)
    canvas.text(_OUT + 10, top + 55, f"{network.resolver}: names", size=12, faint=True, room=190)
    badges = [
        (number, effect)
        for number, effect in enumerate(drawn)
        if _GATEWAY in effect.senders + effect.receivers
    ]
    for place, (number, effect) in enumerate(badges):
        _badge(canvas, _WIDE - 16 - 18 * place, top + 15, number + 1, effect.color)
    way = words(facts.own[_GATEWAY, ""]) if (_GATEWAY, "") in facts.own else ""
    back = words(facts.own["", _GATEWAY]) if ("", _GATEWAY) in facts.own else ""
    wire = ORANGE if way or back else "currentColor"
    y = top + 64
    for each in dict.fromkeys(filter(None, (f"in: {way}" if way else "", f"out: {back}" if back else ""))):
        y += 18
        canvas.text(_OUT, y, each, size=11.5)
    x = (_SWITCH + 22 + _OUT) / 2
    for start, _ in spans:
        canvas.line(_SWITCH + 22, start + 23, x, start + 23, color=wire, line=1.75)
    canvas.line(x, top + 23, _OUT, top + 23, color=wire, line=1.75)
    if len(spans) > 1:
        canvas.line(x, top + 23, x, spans[-1][0] + 23, color=wire, line=1.75)
    return y + 8


def _brackets(
    canvas: Canvas, drawn: list[_Effect], rows: dict[str, float], gutter: float, left: float
) -> None:
    """What is between members, each in a lane of its own."""
    for lane, effect in enumerate(drawn):
        x = gutter + 9 + 16.0 * lane
        shift = (lane - (len(drawn) - 1) / 2) * 5
        ends = [name for name in dict.fromkeys(effect.senders + effect.receivers) if name in rows]
        ys = [rows[name] + shift for name in ends]
        dashed = effect.color == RED
        canvas.line(x, min(ys), x, max(ys), color=effect.color, dashed=dashed, line=1.75)
        for name, y in zip(ends, ys, strict=True):
            if not effect.both and name in effect.receivers:
                canvas.arrow(x, y, left - 1, y, color=effect.color, dashed=dashed)
            else:
                canvas.line(x, y, left, y, color=effect.color, dashed=dashed, line=1.75)
        _badge(canvas, x, (min(ys) + max(ys)) / 2, lane + 1, effect.color)


def _badge(canvas: Canvas, x: float, y: float, number: int, color: str) -> None:
    canvas.rect(x - 8, y - 8, 16, 16, color=color, fill=1, line=0, radius=8)
    canvas.text(x, y + 3.5, number, size=10, anchor="middle", color="#fff", bold=True, room=16)


# The words


def _lines(facts: _Facts) -> Iterable[str]:
    """The same as text, with nothing left out."""
    network = facts.network
    yield f"network {network.name}: {_head(network)}"
    way = f"the way out is {network._at(1)}" if network.has_gateway else "no way out"
    yield f"  gateway: {way}, names from {network.resolver}"
    for name, seat in facts.seats.items():
        own = seat.interface
        aliases = [alias for alias in seat.names if alias != name]
        parts = [f"{own.address} {own.address6 or ''}".rstrip(), f"{own.name} ({own.device}) {own.mac}"]
        parts += [f"as {', '.join(aliases)}"] if aliases else []
        parts += [_more(facts, name)] if _more(facts, name) else []
        yield f"  {name}: {'; '.join(parts)}"
    for (sender, receiver), how in facts.own.items():
        yield f"  {sender or 'all'} → {receiver or 'all'}: {words(how)}"
    if len(facts.groups) > 1:
        yield "  partition: " + " | ".join(", ".join(group) for group in facts.groups)
    for effect in facts.effects:
        yield f"  {effect}{_total(effect, facts.pairs)}"
    for sender in sorted(a for a, b in facts.counted if not b):
        sent, received = facts.counted[sender, ""], facts.counted["", sender]
        yield f"  {sender} sent {_count(sent)}, received {_count(received)}"
    for (sender, receiver), stats in sorted(facts.pairs.items()):
        if stats.packets or any(stats.dropped.values()):
            yield f"  {sender} → {receiver}: {_count(stats)}"
