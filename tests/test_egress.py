"""Who may be reached, by name: what is allowed, what is denied, and how a refusal looks to a program."""

from __future__ import annotations

import pytest

import r2d2
from _guest import elsewhere
from _needs import needs
from r2d2.netspec import Slirp, checked_rule, describe

#: A resolver that knows a few names, servers at all addresses, and a guest that asks and connects.
WORLD = r"""
NAMES = {
    "shop.example": ["192.0.2.2"], "xn--bcher-kva.example": ["192.0.2.3"], "a.cdn.example": ["192.0.2.4"],
    "bad.example": ["192.0.2.6"], "fine.example": "bad.example", "twin.example": ["192.0.2.2"],
}
def label(name):
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
def record(owner, kind, data):
    return label(owner) + kind.to_bytes(2) + b"\0\1\0\0\1\0" + len(data).to_bytes(2) + data
def answer(query):
    name, at = [], 12
    while query[at]:
        name.append(query[at + 1:at + 1 + query[at]].decode()); at += 1 + query[at]
    asked, records = ".".join(name).lower(), []
    found = NAMES.get(asked, [])
    while isinstance(found, str):
        records.append(record(asked, 5, label(found))); asked, found = found, NAMES[found]
    records += [record(asked, 1, socket.inet_aton(address)) for address in found]
    return query[:2] + b"\x81\x80\0\1" + len(records).to_bytes(2) + bytes(4) + query[12:] + b"".join(records)
resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); resolver.bind(("192.0.2.1", 5353))
def resolve():
    while True:
        query, sender = resolver.recvfrom(4096)
        resolver.sendto(answer(query), sender)
threading.Thread(target=resolve, daemon=True).start()
listeners = [socket.create_server((f"192.0.2.{n}", port)) for n in range(2, 7) for port in (8080, 8443)]
GUEST = r'''
import errno
def ask(name):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(9)
    q = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    s.sendto(b"ab\1\0\0\1\0\0\0\0\0\0" + q + b"\0\1\0\1", ("10.0.2.3", 53))
    return s.recv(4096)[3] & 15
def tell(address, port=8080, kind=socket.SOCK_STREAM):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind); s.settimeout(9)
    began = time.monotonic()
    try:
        s.connect((address, port))
        if kind == socket.SOCK_DGRAM: s.send(b"x"); s.recv(9)
        said = "yes"
    except TimeoutError: said = "silence"
    except OSError as error: said = errno.errorcode[error.errno]
    assert time.monotonic() - began < 5, "at once"
    print(said)
'''
def see(code, **options):
    with namespace() as guest, slirp.attach(guest, resolvers=["192.0.2.1:5353"], **options):
        print(*python(guest, GUEST + code).split())
"""


@needs("unshare")
def test_allowed_names() -> None:
    """Exactly the addresses that were asked for; names in any case, in other alphabets, below others."""
    seen = elsewhere(
        WORLD
        + """
see('''
tell("192.0.2.2", 8443); ask("SHOP.Example"); tell("192.0.2.2", 8443); tell("192.0.2.2")
ask("xn--BCHER-kva.example"); tell("192.0.2.3")
ask("a.cdn.example"); tell("192.0.2.4")
ask("fine.example"); tell("192.0.2.6"); tell("192.0.2.5")
tell("192.0.2.5", 9, socket.SOCK_DGRAM); tell("2001:db8::9", 9, socket.SOCK_DGRAM); tell("2001:db8::9")
''', allow=["shop.example.:8443", "b\u00fccher.example", "*.CDN.example"], deny=["*"])
"""
    )
    no = "ENETUNREACH"
    assert seen.split() == [no, "yes", no, "yes", "yes", no, no, no, "EACCES", no]


@needs("unshare")
def test_denied_names() -> None:
    """Not resolved, or resolved and not reached; by an alias neither; what is allowed first stays so."""
    seen = elsewhere(
        WORLD
        + """
see('''
print(ask("bad.example")); tell("192.0.2.6"); print(ask("fine.example")); tell("192.0.2.6"); tell("192.0.2.5")
''', deny_names=["Bad.example."])
see('''
print(ask("fine.example")); tell("192.0.2.6"); tell("192.0.2.6", 8443)
''', deny=["bad.example:8080"])
see('''
ask("shop.example"); ask("twin.example"); tell("192.0.2.2"); tell("192.0.2.2", 8443)
''', allow=["shop.example:8443"], deny=["twin.example"])
see('''
print(ask("shop.example"), ask("a.cdn.example"), ask("db")); tell("192.0.2.2"); tell("10.0.2.3", 53)
''', allow=["shop.example"], deny=["*"], deny_names=["*"], names={"db": "10.0.2.9"})
"""
    )
    assert seen.splitlines() == [
        "5 yes 5 EHOSTUNREACH yes",
        "0 EHOSTUNREACH yes",
        "EHOSTUNREACH yes",
        "0 5 0 yes ECONNREFUSED",
    ]


@pytest.mark.parametrize(
    ("rule", "read"),
    [
        ("example.org", "allow example.org 0-65535"),
        ("Example.ORG.:443", "allow Example.ORG 443-443"),
        ("*.example.org:80-90", "allow *.example.org 80-90"),
        ("b\u00fccher.example", "allow xn--bcher-kva.example 0-65535"),
        ("\u4f8b\u5b50.\u53f0\u7063:443", "allow xn--fsqu00a.xn--kpry57d 443-443"),
        ("db.", "allow db 0-65535"),
        ("*", "allow * 0-65535"),
        ("*:53", "allow * 53-53"),
        ("192.0.2.0/24", "allow 192.0.2.0/24 0-65535"),
        ("[2001:db8::1]:443", "allow 2001:db8::1/128 443-443"),
    ],
)
def test_rules_as_the_engine_reads_them(rule: str, read: str) -> None:
    assert checked_rule("allow", rule) == read


@pytest.mark.parametrize(
    "rule",
    [
        *("nonsense", "10.0.0", "300.1.1.1", "10.0.0.1/8", "2001:db8::1", "*.", "*.*.org", "a.*.org", "a..b"),
        *(
            "-a.b",
            "example.org:0-70000",
            "example.org:90-80",
            "example.org:http",
            "example.org/24",
            "a b.c",
            "",
        ),
        *("example.org\nallow *", "x" * 64 + ".org", "*.1", ".".join(["x" * 60] * 5)),
    ],
)
def test_what_is_no_rule(rule: str) -> None:
    for options in (Slirp(allow=[rule]), Slirp(deny=[rule])):
        with pytest.raises(r2d2.SpecError, match=r"allow|deny"):
            describe(options)


def test_names_that_are_not_resolved() -> None:
    denied = ["example.org", "*.example.org", "*", "b\u00fccher.example.", "local"]
    lines = describe(Slirp(deny_names=denied)).splitlines()
    assert [line for line in lines if line.startswith("deny-name")] == [
        "deny-name example.org",
        "deny-name *.example.org",
        "deny-name *",
        "deny-name xn--bcher-kva.example",
        "deny-name local",
    ]
    with pytest.raises(r2d2.SpecError, match="deny_names"):
        describe(Slirp(deny_names=["a..b"]))
