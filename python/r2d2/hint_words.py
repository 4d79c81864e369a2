"""What is said to those whose container could not be made: the words of each hint, by id.

Advice is worded here and nowhere else; ``hints`` has when each applies, and fills the ``{names}`` in. A hint
names what to do, by whom, and with which command.
"""

from __future__ import annotations

#: By id.
HINTS: dict[str, str] = {
    # The machine
    "platform.wsl1": (
        "this is WSL 1, which imitates Linux and has no namespaces: `wsl --set-version DISTRO 2` makes it "
        "WSL 2, where r2d2 works"
    ),
    "platform.gvisor": (
        "this machine is a gVisor sandbox, which imitates Linux and lacks part of what containers are made "
        "of; nothing inside it changes that: use a machine with a Linux kernel"
    ),
    "kernel.old": (
        "this kernel is {release}; r2d2 needs Linux 5.12 or later (mount_setattr(2) came with it): boot a "
        "newer kernel; distributions of 2021 and later have one"
    ),
    "kernel.missing": "this kernel was built without {what}: use another kernel, or do without it",
    # User namespaces
    "userns.chroot": (
        "this process is in a chroot, where the kernel refuses user namespaces (user_namespaces(7)): start "
        "it outside of the chroot, or enter that tree with pivot_root(2) instead (r2d2 itself does)"
    ),
    "userns.unmapped": (
        "this process runs as an id that its own user namespace does not map, and the kernel refuses it "
        "another one: map the id first (`unshare --map-root-user` instead of `unshare --user`)"
    ),
    "userns.debian": (
        "kernel.unprivileged_userns_clone is 0: this system lets only root make user namespaces; an "
        "administrator can change that: `sysctl kernel.unprivileged_userns_clone=1`"
    ),
    "userns.apparmor": (
        "AppArmor takes every capability from user namespaces made here "
        "(kernel.apparmor_restrict_unprivileged_userns=1; Ubuntu 23.10 and later): an administrator can "
        "allow one program, by a profile for {interpreter} with the rule `userns,`. It covers every script "
        "that this interpreter runs, so give it one of its own: `python3 -m venv --copies DIR`"
    ),
    "userns.selinux": (
        "SELinux is enforcing and may be what refuses this: `ausearch -m avc -ts recent` shows the rule "
        "that is missing"
    ),
    "userns.limit.zero": (
        "user.{sysctl} is 0 here, so no such namespace can be made: an administrator can raise it (`sysctl "
        "user.{sysctl}=10000`); in a namespace of your own you can do it yourself"
    ),
    "userns.limit": (
        "one of the limits user.max_*_namespaces of this user namespace, or of one around it, is used up, "
        "or namespaces are nested more than 32 deep: close containers that are no longer needed (`lsns` "
        "lists them)"
    ),
    "userns.old": "more than 32 user namespaces are nested here: start from a shallower one",
    "userns.root": (
        'userns="host" works only with the capabilities of real root, which this process lacks: leave '
        'userns at "auto"'
    ),
    "userns.restricted": (
        "this process may not make namespaces, and neither a sysctl nor a seccomp filter says why: a "
        "security module of the kernel (`cat /sys/kernel/security/lsm`) may be the reason"
    ),
    # Policies around this process
    "seccomp.docker": (
        "a seccomp filter refuses it; in a Docker container that is the container's own policy, and no "
        "setting of the host changes it: start the outer container with `--security-opt "
        "seccomp=unconfined`, or with a profile that also allows clone, unshare, mount and their kin"
    ),
    "seccomp.podman": (
        "a seccomp filter refuses it; in a Podman container that is the container's own policy: start the "
        "outer container with `--security-opt seccomp=unconfined`"
    ),
    "seccomp.kubernetes": (
        "a seccomp filter refuses it; in a pod that is the pod's own policy: give its securityContext "
        "`seccompProfile: {{type: Unconfined}}`, or a Localhost profile that also allows clone, unshare, "
        "mount and their kin"
    ),
    "seccomp.lxc": (
        "a seccomp filter refuses it; in an LXC container nesting has to be allowed from outside: `lxc "
        "config set NAME security.nesting true`, or `features: nesting=1` in Proxmox"
    ),
    "seccomp.other": (
        "a seccomp filter on this process refuses it. It came with what started this process: a systemd "
        "unit (RestrictNamespaces=, SystemCallFilter=), a sandbox, an editor or a notebook server; start "
        "from elsewhere, or allow it there"
    ),
    "apparmor.profile": (
        "this process runs under the AppArmor profile {profile}, which may refuse it; in a Docker container "
        "`--security-opt apparmor=unconfined` lifts it"
    ),
    # Processes
    "clone.nproc": (
        "the limit of processes of this user is {limit} (RLIMIT_NPROC), and it is used up: end some, or "
        "raise it (`ulimit -u`)"
    ),
    "clone.pids": (
        "the control group of this process may hold {limit} processes and is full ({file}): end some, or "
        "raise the limit where it was set (`--pids-limit` of Docker and Podman, TasksMax= of systemd)"
    ),
    "clone.threads": (
        "no more processes can be made: kernel.threads-max, kernel.pid_max or a limit around this process "
        "is used up"
    ),
    "clone.memory": (
        "the kernel has no memory for it: end something, or raise the memory limit around this process"
    ),
    "clone.dead": (
        "PID 1 of the PID namespace that new processes would be born in has ended (pid_namespaces(7)): run "
        "this in a process that did not call unshare --pid without --fork"
    ),
    "descriptors": (
        "this process may have {soft} open descriptors (RLIMIT_NOFILE) and a container needs some 50 in the "
        "moment of its start: close some, or raise the limit up to {hard}: "
        "`resource.setrlimit(resource.RLIMIT_NOFILE, (1024, {hard}))`"
    ),
    "descriptors.machine": "the machine has no descriptors left (fs.file-max): end what holds them",
    # Id maps
    "idmap.proc": (
        "the id maps are written through /proc, which is missing or read-only here, or belongs to another "
        "PID namespace: mount one of this namespace on /proc"
    ),
    "idmap.root": (
        'this process is root but may not map all ids (it lacks CAP_SETUID or CAP_SETGID): userns="single" '
        "needs neither"
    ),
    "idmap.single": (
        'the kernel lets a process map its own id and nothing else; leave userns at "auto" or "single"'
    ),
    "idmap.nosuid": (
        "newuidmap cannot do its work as a setuid program here: it lost the bit, lies on a file system "
        'mounted nosuid, or this process set no_new_privs. userns="single" does without it'
    ),
    "idmap.range": (
        "newuidmap refuses ranges that /etc/subuid and /etc/subgid do not give to this user: correct the "
        'lines there, or use userns="single", which needs none'
    ),
    "subuid.program": (
        'userns="single" does without it and is enough for images with one user; for many, install '
        "newuidmap (package uidmap of Debian and Ubuntu, shadow-utils of Fedora)"
    ),
    "subuid.range": (
        'userns="single" does without them and is enough for images with one user; for many, an '
        "administrator delegates ids: `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "
        "{user}`"
    ),
    # Mounts
    "proc.obstructed": (
        "parts of this /proc are covered ({list}), and the kernel allows no new one that would show them "
        '(mount_namespaces(7)): proc="auto" or "bind" uses this one, read-only{outer}'
    ),
    "proc.hidden": (
        "no whole /proc can be seen in this mount namespace, and the kernel allows no new one that would "
        'show more: proc="bind" uses what is there, proc="none" does without'
    ),
    "proc.outer.docker": "; `--security-opt systempaths=unconfined` on the outer container uncovers it",
    "proc.outer.podman": "; `--security-opt unmask=ALL` on the outer container uncovers it",
    "proc.outer.kubernetes": "; `procMount: Unmasked` in the pod's securityContext uncovers it",
    "sysfs.obstructed": (
        "parts of /sys are covered here, and the kernel allows no new one that would show them; "
        'network="host" binds this one instead'
    ),
    "tun.missing": (
        "this machine has no /dev/net/tun: an administrator can make it (`modprobe tun`); "
        'device="packet" or "any" does without'
    ),
    "tun.denied": (
        "this user may not open /dev/net/tun: an administrator can allow it (`chmod 666 /dev/net/tun`, as "
        'most distributions have it); device="packet" or "any" does without'
    ),
    "tun.taken": "an interface of this name is there already: take another ifname, or end what made it",
    "bridge.slirp": 'network="slirp" can, as any user',
    "bridge.right": (
        'network="slirp" needs no privilege and reaches the same; for "bridge" start this as '
        "real root, or as root of a network namespace of your own (`unshare -Urn`)"
    ),
    "bridge.nft": (
        "an administrator can load it (`modprobe nf_tables nft_chain_nat`; CONFIG_NF_TABLES_INET, "
        'CONFIG_NFT_NAT and CONFIG_NFT_MASQ); network="slirp" needs none of it'
    ),
    "bridge.veth": (
        "an administrator can load what it is made of (`modprobe veth`); "
        'network="slirp" does without where there is a /dev/net/tun'
    ),
    "bridge.sysctl": (
        "in a container, start that with --privileged, or mount a /proc of its own that can be written; "
        'network="slirp" needs none of it'
    ),
    "bridge.forward": (
        "turn it on (`sysctl -w net.ipv4.ip_forward=1`), or say r2d2.Bridge(forward=True), which does that "
        'and leaves it on, as Docker does; network="slirp" needs none'
    ),
    "bridge.subnet": (
        "give it another network, as in r2d2.Bridge(cidr='10.99.0.0/24'); `ip route` shows what is taken"
    ),
    "bridge.addresses": "end some of the containers, or give it a larger network (r2d2.Bridge(cidr=...))",
    "bridge.closed": (
        "the host's firewall drops forwarded packets by default ({chains}), and none of its rules there is "
        "about r2d2's interfaces. No rule of r2d2's can change that; rules there can: `nft insert rule TABLE "
        "CHAIN iifname 'r2d2-*' accept`, and the same with oifname"
    ),
    "overlay.missing": (
        "this kernel has no overlay file system loaded: an administrator can load it (`modprobe overlay`); "
        "a directory used directly needs none (r2d2.Image.directory)"
    ),
    "overlay.old": "overlays in a user namespace came with Linux 5.11",
    "overlay.upper": (
        "{upper} lies on {fstype}, which cannot hold an upper layer: leave out upper and work (writes go to "
        "memory), or take directories on ext4, xfs, btrfs or a tmpfs"
    ),
    "overlay.readonly": (
        "the upper layer lies on a file system mounted read-only: take another directory, or leave out "
        "upper and work (writes go to memory)"
    ),
    "overlay.volatile": (
        "{work} was left behind by an overlay mounted volatile, so the kernel cannot tell whether its upper "
        "layer is whole: start with an empty upper and work directory, or, if a loss does not matter, "
        "remove {marker}"
    ),
    "overlay.busy": (
        "another overlay uses this upper layer or its work directory: give each container its own"
    ),
    "overlay.stale": (
        "this upper layer was made over other lower layers (or they were copied since): use the same ones, "
        "or start with an empty upper and work directory"
    ),
    "overlay.loop": (
        "two of the layers overlap, one lying in another: every layer, upper and work needs a place of its "
        "own, and upper and work share one file system"
    ),
    "overlay.apart": "upper and work must be two directories of one mount, neither inside the other",
    "overlay.clone": (
        "mounts lie below this layer that the kernel does not take apart in a user namespace: use a "
        "directory without mounts in it, or a copy"
    ),
    "overlay.access": (
        "an overlay opens its layers as you: this user must be able to read them and to enter every "
        "directory above"
    ),
    "overlay.features": (
        "the file system of the upper layer lacks what overlayfs needs (d_type, user.* attributes, "
        "RENAME_WHITEOUT): leave out upper and work (writes go to memory), or take ext4, xfs or btrfs"
    ),
    "mount.bind.missing": "the source of a bind mount must exist on the host",
    "mount.bind.kind": (
        "a file can be mounted on a file only, and a directory on a directory: make the target the same "
        "kind as the source"
    ),
    "mount.bind.locked": (
        "mounts below the source may not be taken apart here: recursive=True takes them along"
    ),
    "mount.flags": (
        "a mount from outside keeps its nosuid, nodev, noexec and read-only flags in a user namespace"
    ),
    "mount.many": "fs.mount-max mounts exist in this mount namespace already",
    "target.missing": "the image has no such path, and it could not be made: choose another target",
    "target.kind": "the image has a file where a directory is needed: choose another target",
    "target.readonly": (
        "the file system there is read-only: choose a target that the image has, or do not mount it read-only"
    ),
    "space": (
        "the memory file system that takes the container's writes is full: raise tmpfs_size, or use upper "
        "and work directories on disk"
    ),
    "space.host": "the file system is full: remove something, or raise the quota",
    "pivot_root": (
        "pivot_root(2) refuses a root that is no mount point, or to leave an initramfs (rootfs), as on some "
        "live systems: switch to a real root file system first"
    ),
    "mount.type": "this kernel has no file system of that type, or its module is not loaded",
    # Control groups
    "cgroup.delegate": (
        "no control group may be written here: `systemd-run --user --scope -p Delegate=yes COMMAND` runs a "
        "program in one that may; Limits(best_effort=True) accepts what binds without"
    ),
    "cgroup.container": (
        "the container around this process gives it no control group to write to: limit the outer "
        "container, or Limits(best_effort=True) accepts what binds without"
    ),
    "cgroup.busy": (
        "cgroup v2 allows no processes in a group that has controllers for others, and one is in the way"
    ),
    # PID 1
    "memfd": (
        "executing files from memory is forbidden (vm.memfd_noexec, or a seccomp filter) and no directory "
        "stood in for it: let one of $XDG_RUNTIME_DIR, /tmp, /var/tmp and /dev/shm be writable and mounted "
        "without noexec"
    ),
    "ping": (
        "net.ipv4.ping_group_range does not hold the group of this process ({group}); an administrator can "
        "change that: `sysctl net.ipv4.ping_group_range='0 2147483647'`. Everything but ping works without"
    ),
    "directory": "set {variable} to a directory that this user may write to",
    "keyring": "the kernel's keyrings of this user are full or not to be had",
    # Programs
    "program.missing": (
        "{program} is not there: the first word must be a program in the container's PATH, or a path in the "
        "container"
    ),
    "program.loader": "{program} may be there while the loader or interpreter that it names (#!, ELF) is not",
    "program.denied": (
        "{program} may not be executed: it lacks the x permission for this user, is a directory, or lies on "
        "a mount with noexec"
    ),
    "program.denied.path": (
        "a directory of PATH may not be entered by this user, or what lies there as {program} may not be "
        "executed: name the program by its path"
    ),
    "program.format": (
        "{program} is neither a program for this machine's architecture nor a script with a #! line: run it "
        "with its interpreter, as in ['sh', '{program}']"
    ),
    "program.long": (
        "arguments and environment exceed what execve(2) takes (a quarter of RLIMIT_STACK, 128 KiB a "
        "string): pass the data as input or in a file"
    ),
    "program.busy": "{program} is open for writing: close it first",
    "program.loop": "{program} leads through too many symbolic links, or to itself",
    "program.memory": "there is not enough memory for it: raise the container's memory limit",
    "program.pid1": "no more processes can be made here: PID 1 of this PID namespace has ended",
    "program.fork": "the container may not have more processes: raise limits pids, or RLIMIT_NPROC",
    "program.cwd.missing": (
        "the working directory is not there: choose another cwd or workdir, or make it first"
    ),
    "program.cwd.denied": (
        "the program's user may not enter the working directory: choose another cwd or workdir"
    ),
    "program.user": (
        'the container has no such id. With userns="single" it has one, 0: run as root inside, or use '
        'userns="subuid" for more'
    ),
    "program.groups": (
        'with one mapped id the kernel denies setgroups(2): leave out the groups, or use userns="subuid"'
    ),
    "program.tty": (
        "the terminal belongs to another session already: give it a terminal of its own (tty=True)"
    ),
    "program.setns": (
        "the process that was entered has ended, or its namespaces belong to a more privileged user"
    ),
}
