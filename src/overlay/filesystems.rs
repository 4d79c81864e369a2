//! Which file systems cannot be a lower layer of the host image, and why. Pure.

use super::mountinfo::Mount;

/// File systems that hold no files of the machine.
const PSEUDO: &[&str] = &[
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "mqueue",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "bpf",
    "configfs",
    "fusectl",
    "hugetlbfs",
    "binfmt_misc",
    "efivarfs",
    "nsfs",
    "rpc_pipefs",
    "selinuxfs",
    "autofs",
    "binder",
    "nfsd",
    "resctrl",
];

/// File systems whose names compare in their own way: overlayfs refuses them ("filesystem not supported").
const FOLDING: &[&str] =
    &["vfat", "msdos", "exfat", "ntfs", "ntfs3", "hfs", "hfsplus", "cifs", "smb3", "affs"];

/// Why the root of this mount is no lower layer, if it is none.
pub(super) fn unfit(mount: &Mount) -> Option<String> {
    let kind = mount.fstype.as_str();
    if PSEUDO.contains(&kind) {
        Some(format!("left empty: {kind} holds no files of the machine"))
    } else if FOLDING.contains(&kind) {
        Some(format!("left empty: overlayfs refuses {kind} as a layer"))
    } else if kind == "fuse" || kind == "fuseblk" || kind.starts_with("fuse.") {
        Some(format!("left empty: {kind} answers only while its server does, and mostly to its owner alone"))
    } else {
        None
    }
}
