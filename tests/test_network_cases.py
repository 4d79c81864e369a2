"""The cases by which user-mode networks are judged elsewhere, and which test here stands for each of them.

The lists are those of the peers' own suites, by their names. What this engine does not have is in a list
too, with the reason, so that a case is never simply missing. The 30 cases of the RFCs have their list beside
them (src/slirp/tests/mod.rs).
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: slirp4netns: tests/test-slirp4netns-NAME.sh, and its benchmarks.
SLIRP4NETNS = {
    "api-socket": "test_slirp4netns.test_api_replies test_slirp4netns.test_api_socket_that_cannot_be",
    "cidr": "test_slirp4netns.test_what_cannot_work_is_refused test_slirp4netns.test_configured_interface",
    "configure": "test_slirp4netns.test_configured_interface",
    "dhcp": "test_slirp_peers.test_dhcp_client_gets_the_first_lease",
    "disable-dns": "test_slirp_peers.test_without_a_resolver_nobody_answers "
    "test_slirp4netns.test_no_resolver_if_disabled",
    "disable-host-loopback": "test_slirp4netns.test_host_loopback_unless_disabled",
    "exit-fd": "test_slirp4netns.test_configured_interface",
    "hostfwd": "test_slirp4netns.test_forwarded_port_leads_inside_until_removed",
    "ipv6": "test_slirp4netns.test_configured_interface test_slirp_tcp.test_tcp_both_ways_compared_by_hash",
    "macaddress": "test_slirp4netns.test_macaddress",
    "nspath": "test_slirp4netns.test_namespace_by_path",
    "outbound-addr": "test_slirp4netns.test_outbound_address test_slirp4netns.test_outbound_ipv6_address",
    "ready-fd": "test_slirp_peers.test_without_a_resolver_nobody_answers",
    "sandbox": "test_slirp4netns.test_sandbox_and_seccomp_are_asked_for test_slirp.test_engine_is_sandboxed",
    "sandbox-no-unmount": "test_slirp_peers.test_mounts_of_the_host_survive_the_sandbox",
    "seccomp": "test_slirp4netns.test_sandbox_and_seccomp_are_asked_for",
    "benchmark iperf3": "test_slirp_tcp.test_tcp_both_ways_compared_by_hash tests/bench/slirp.py",
    "benchmark iperf3-reverse": "test_slirp_tcp.test_tcp_both_ways_compared_by_hash tests/bench/slirp.py",
    "long-running TCP": "src/slirp/tests/tcp_data.rs:case_21_ "
    "test_slirp_load.test_ten_thousand_idle_connections",
}

#: passt: test/GROUP/NAME, and doc/platform-requirements/NAME.c.
PASST = {
    "pasta/tcp": "test_slirp_peers.test_transfer_to_the_host test_slirp_peers.test_transfer_to_the_guest",
    "pasta/udp": "test_slirp_peers.test_datagrams",
    "pasta/dhcp": "test_slirp_peers.test_dhcp_client_gets_the_first_lease",
    "pasta/ndp": "test_slirp_peers.test_router_advertisement_configures_an_interface",
    "passt_in_ns/icmp": "test_slirp_peers.test_echo_of_somebody_beyond_the_gateway "
    "test_slirp.test_gateway_answers_ping",
    "passt_in_ns/tcp": "test_slirp_peers.test_transfer_to_the_host "
    "test_slirp_peers.test_transfer_to_the_guest",
    "passt_in_ns/udp": "test_slirp_peers.test_datagrams",
    "passt/shutdown": "test_events.test_end_of_the_guest_and_of_the_network",
    "two_guests/basic": "test_slirp_peers.test_two_guests_meet_at_a_port_of_the_host",
    "memory/passt": "test_slirp_peers.test_what_a_published_port_costs",
    "pasta_options/netns_only": "test_slirp.test_namespace_by_path test_slirp4netns.test_namespace_by_path",
    "perf/pasta_tcp": "tests/bench/slirp.py",
    "perf/pasta_udp": "tests/bench/slirp.py",
    "smoke/smoke": "test_slirp.test_interface_has_addresses_routes_and_mtu "
    "test_slirp.test_gateway_answers_ping",
    "build/static_checkers": ".ci/run:clippy",
    "pasta_podman/bats: addresses": "test_slirp.test_interface_has_addresses_routes_and_mtu",
    "pasta_podman/bats: large transfer": "test_slirp_tcp.test_tcp_both_ways_compared_by_hash",
    "pasta_podman/bats: port ranges": "test_ports.test_a_range_leads_inside_all_or_none",
    "pasta_podman/bats: ports of a container": "test_network.test_ports_lead_inside",
    "platform-requirements/recv-zero": "kernel_assumptions.test_socket_assumptions."
    "test_an_empty_datagram_is_one",
    "platform-requirements/reuseaddr-priority": "kernel_assumptions.test_socket_assumptions."
    "test_a_connected_socket_has_its_datagrams_before_a_bound_one",
    "platform-requirements/tcp-close-rst": "kernel_assumptions.test_socket_assumptions."
    "test_what_is_closed_without_lingering_resets",
    "platform-requirements/udp-close-dup": "kernel_assumptions.test_socket_assumptions."
    "test_a_listening_descriptor_that_was_handed_over_is_the_same_socket",
}

#: rootlesskit: pkg/port/testsuite.
ROOTLESSKIT = {
    "TestTCP": "test_slirp.test_port_of_the_host_leads_inside test_slirp_peers.test_transfer_to_the_guest",
    "TestTCP4": "test_slirp.test_port_of_the_host_leads_inside",
    "TestUDP": "test_slirp.test_port_of_the_host_leads_inside test_slirp_peers.test_datagrams",
    "TestUDP4": "test_slirp.test_port_of_the_host_leads_inside",
    "TestUDPTransparent": "test_slirp_peers.test_a_datagrams_sender_is_seen_and_answered",
}

#: gvisor-tap-vsock: test/basic_tests.go, test-qemu/port_forwarding_test.go.
GVISOR_TAP_VSOCK = {
    "interface, routes": "test_slirp.test_interface_has_addresses_routes_and_mtu",
    "dns settings": "test_network.test_interface_stands_before_the_first_program test_network.test_options",
    "ping the gateway": "test_slirp.test_gateway_answers_ping",
    "leases": "test_slirp_peers.test_dhcp_client_gets_the_first_lease",
    "CNAME, MX, NS, SRV, TXT": "test_slirp_peers.test_records_of_every_type_are_relayed_as_they_are",
    "static zone": "test_slirp.test_dns_is_relayed_with_failover_and_static_names",
    "forwarded http": "test_network.test_ports_lead_inside",
    "forwarded Unix socket": "test_ports.test_a_unix_socket_leads_inside_both_ways",
}

#: What an engine has to bear.
LOAD = {
    "10 k idle flows": "test_slirp_load.test_ten_thousand_idle_connections",
    "1 k concurrent connections": "test_slirp_life.test_a_thousand_connections_at_once",
    "SYN flood": "src/slirp/tests/tcp_open.rs:syn_flood_holds_no_more_than_the_limit_and_the_oldest_give_way",
    "UDP spray": "test_slirp_load.test_datagrams_to_sixty_thousand_ports "
    "src/slirp/tests/services.rs:udp_spray_over_all_ports_never_runs_out_of_descriptors",
    "descriptors": "test_slirp_load.test_more_connections_than_descriptors",
    "slow readers": "test_slirp_load.test_slow_readers",
    "kill -9 engine": "test_slirp_kill.test_interface_goes_with_the_engine",
    "kill -9 owner, guest": "test_slirp_kill.test_sigkill_at_any_moment_leaves_nothing",
    "soak": "test_slirp_life.test_soak .github/CONTRIBUTING.md:R2D2_SOAK_SECONDS=86400",
    "suspend": "test_slirp_life.test_connections_outlast_a_suspended_host",
    "fork() while it runs": "test_slirp_life.test_a_fork_has_no_part_in_the_network "
    "test_slirp.test_engine_ends_with_its_owner_even_if_a_fork_lives_on",
    "collected": "test_slirp_life.test_a_network_that_nobody_has_any_more_ends",
    "two engines in one process": "test_slirp_peers.test_two_guests_meet_at_a_port_of_the_host "
    "test_slirp_peers.test_two_interfaces_in_one_namespace",
    "1 % loss": "test_slirp_tcp.test_everything_arrives_under_loss "
    ".github/CONTRIBUTING.md:R2D2_LOSS_BYTES=1000000000",
}

#: Fuzz targets, as libslirp's.
FUZZ = {
    target: f"src/slirp/tests/fuzz/{file or target}.rs:{file or target}"
    for target, file in {
        "frame": "",
        "vnet_hdr": "frame",
        "ndp": "frame",
        "tcp_stateful": "tcp",
        "reassembly": "",
        "dns": "",
        "dhcp": "",
        "control": "",
    }.items()
}

#: Cases of features that this engine does not have.
NOT_OURS = {
    "rootlesskit TestTCPTransparent": "the client's address on a spliced connection: comes with the splice",
    "passt pasta/tcp: spliced, from the namespace": "nothing inside listens for the host's loopback",
    "passt pasta/dhcp: DHCPv6": "fd00::100 is set by netlink, or by router advertisement",
    "passt migrate/*": "a connection stays with its engine",
    "passt pasta_options/log_to_file": "the engine opens no files; events and captures say what happens",
    "passt platform-requirements/listen-vs-repair": "TCP_REPAIR is not used",
    "gvisor-tap-vsock tunnel": "a tunnel over HTTP is for hosts without namespaces",
    "bypass4netns test_connect, test_sendto, test_sendmsg": "no call of the guest is answered by another",
}

LISTS = {
    "slirp4netns": (SLIRP4NETNS, 19),
    "passt": (PASST, 23),
    "rootlesskit": (ROOTLESSKIT, 5),
    "gvisor-tap-vsock": (GVISOR_TAP_VSOCK, 8),
    "load": (LOAD, 14),
    "fuzz": (FUZZ, 8),
    "not ours": (NOT_OURS, 8),
}


def stands(test: str) -> bool:
    """Whether there is such a test: ``module.function``, ``FILE.rs:function``, ``FILE:words`` or ``FILE``."""
    if test.startswith(("src/", ".", "tests/")):
        file, _, words = test.partition(":")
        text = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
        if file.endswith(".rs"):
            return re.search(rf"#\[test\]\nfn {words}", text) is not None
        return bool(text) and words in text
    module, _, name = test.rpartition(".")
    if module.startswith("kernel_assumptions."):
        found = (ROOT / "tests" / f"{module.replace('.', '/')}.py").read_text()
        return f"\ndef {name}(" in found
    return name.startswith("test_") and callable(getattr(importlib.import_module(module), name, None))


@pytest.mark.parametrize("name", [name for name in LISTS if name != "not ours"])
def test_every_case_has_its_tests(name: str) -> None:
    cases = LISTS[name][0]
    missing = {case: [test for test in tests.split() if not stands(test)] for case, tests in cases.items()}
    assert {case: tests for case, tests in missing.items() if tests} == {}


@pytest.mark.parametrize("name", LISTS)
def test_no_case_has_gone(name: str) -> None:
    cases, many = LISTS[name]
    assert len(cases) == many
    assert all(cases.values())


def test_what_stands_for_a_case_is_looked_for() -> None:
    assert not stands("test_slirp_peers.test_nothing")
    assert not stands("src/slirp/tests/tcp_data.rs:case_99_")
    assert not stands("tests/bench/nothing.py")
    assert not stands(".ci/run:no-such-section")


def test_every_test_of_the_peers_cases_is_in_a_list() -> None:
    """What was written for a list is named in one."""
    named = " ".join(" ".join(cases.values()) for cases, _ in LISTS.values())
    for module in ("test_slirp_peers", "test_slirp_life"):
        for name in vars(importlib.import_module(module)):
            assert not name.startswith("test_") or f"{module}.{name}" in named, name
