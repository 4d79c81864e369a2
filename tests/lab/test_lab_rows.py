"""The lab sheet's steps, and which test stands for each of them."""

from __future__ import annotations

import importlib

import pytest

#: Row of the lab -> what the student does, and the test that holds what must be seen.
ROWS = {
    "1": ("core technologies", "test_lab_namespaces.test_row_01_core_technologies"),
    "2": ("view the namespaces", "test_lab_namespaces.test_row_02_view_the_namespaces"),
    "3": ("isolate the hostname", "test_lab_namespaces.test_row_03_hostname"),
    "4a": ("isolate PIDs without --fork", "test_lab_namespaces.test_row_04a_without_fork"),
    "4b": ("with --fork", "test_lab_namespaces.test_row_04b_with_fork"),
    "4c": ("with --mount-proc", "test_lab_namespaces.test_row_04c_with_mount_proc"),
    "4d": ("root is no longer almighty", "test_lab_namespaces.test_row_04d_kill_9_1"),
    "4e": ("leaving cleans up", "test_lab_namespaces.test_row_04e_leaving_cleans_up"),
    "5a": ("no network", "test_lab_network.test_row_05a_no_network_at_all"),
    "5b": ("the tun device", "test_lab_network.test_row_05b_the_tun_device"),
    "5c": ("a user-mode network", "test_lab_network.test_row_05c_the_interface_and_the_two_pids"),
    "5d": ("ping, and real traffic", "test_lab_network.test_row_05d_ping_and_traffic"),
    "5e": ("Ctrl-C", "test_lab_network.test_row_05e_ctrl_c"),
    "6": ("prepare the chroot directory", "test_lab_chroot.test_row_06_prepare_the_directory"),
    "7": ("prepare system files", "test_lab_chroot.test_row_07_system_files"),
    "8": ("PIDs and chroot together", "test_lab_chroot.test_row_08_pids_and_chroot"),
    "9": ("add the system commands", "test_lab_chroot.test_row_09_busybox"),
    "10": ("prepare overlay2 directories", "test_lab_overlay.test_row_10_prepare_directories"),
    "11": ("build and use overlay2", "test_lab_overlay.test_row_11_merged_like_two_slides"),
    "12": ("use overlay2", "test_lab_overlay.test_row_12_write_append_delete"),
    "13": ("all together", "test_lab_overlay.test_row_13_all_together"),
    "13b": ("all together, and a network", "test_lab_network.test_row_13b_all_together_with_a_network"),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_its_test(row: str) -> None:
    module, name = ROWS[row][1].split(".")
    assert name.startswith(f"test_row_{int(row.rstrip('abcde')):02}{row.lstrip('0123456789')}_")
    assert callable(getattr(importlib.import_module(module), name))


def test_every_test_of_a_row_is_in_the_table() -> None:
    modules = {test.split(".")[0] for _, test in ROWS.values()}
    found = {
        f"{module}.{name}"
        for module in modules
        for name in vars(importlib.import_module(module))
        if name.startswith("test_row_")
    }
    assert found == {test for _, test in ROWS.values()}
