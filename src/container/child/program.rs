//! The child's last step: it becomes PID 1, or the program itself. **Process:** the child.

use std::ffi::CStr;

use super::{AT_EMPTY_PATH, Child, text};
use crate::container::protocol as p;
use crate::container::step::Op;
use crate::sys::raw::nr;

/// Bits of a set of capabilities.
const CAP_SETPCAP: u64 = 1 << 8;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// What PID 1 needs beyond these to let go of the host's tree, and of what it needed for that.
pub(super) const fn for_leaving(keep: u64) -> u64 {
    if keep & CAP_SYS_ADMIN != 0 { 0 } else { (CAP_SYS_ADMIN | CAP_SETPCAP) & !keep }
}

impl Child<'_> {
    /// Whether PID 1 is the one who lets go of the host's tree, after `pivot_root` (`helper::letgo`): beside its first
    /// program. Without one, a container that was started must not show that tree to anybody any more.
    pub(super) fn leaves(&self) -> bool {
        if !self.job.hand.first {
            return false;
        }
        let last = self.job.steps.last().is_some_and(|step| step.op == Op::Embedded(c"r2d2-init"));
        last && self.job.steps.iter().any(|step| step.op == Op::PivotRoot)
    }

    /// Dropping capabilities leaves the caller's dumpable flag alone: only gaining some, or other ids, clears it.
    pub(super) fn bound(&mut self, keep: u64) -> Result<(), i32> {
        const PR_CAPBSET_DROP: usize = 24;
        for capability in (0..64usize).filter(|capability| keep >> capability & 1 == 0) {
            match self.call(nr::PRCTL, [PR_CAPBSET_DROP, capability]) {
                Err(libc::EINVAL) => break, // past the last one that this kernel knows
                other => other?,
            };
        }
        Ok(())
    }

    /// Puts the descriptors where the embedded program expects them, closes all others, and becomes it.
    pub(super) fn embedded(&mut self, name: &CStr) -> Result<(), i32> {
        const PR_SET_PDEATHSIG: usize = 1;
        let hand = self.job.hand;
        let wanted = [hand.control, hand.owner, self.proc, self.upper, hand.listen, hand.exit];
        // First all of them above every number in use here, so that no move overwrites another's source.
        let mut high = [-1i32; 6];
        for (to, from) in high.iter_mut().zip(wanted) {
            if from >= 0 {
                *to = self.duplicate_high(from)?;
            }
        }
        let program = self.duplicate_high(hand.program)?;
        let null = self.duplicate_high(hand.null)?;
        for standard in 0..3 {
            self.call(nr::DUP3, [null as usize, standard, 0])?;
        }
        let mut present = [0u8; 10];
        let mut count = 0;
        for (i, from) in high.iter().enumerate() {
            let number = p::FD_CONTROL as usize + i;
            if *from >= 0 {
                self.call(nr::DUP3, [*from as usize, number, 0])?;
                if let Some(slot) = present.get_mut(count) {
                    *slot = b'0' + number as u8;
                }
                count += 1;
            } else {
                self.close(number);
            }
        }
        self.call(nr::CLOSE_RANGE, [p::FD_FREE as usize, program as usize - 1, 0])?;
        self.call(nr::CLOSE_RANGE, [program as usize + 1, u32::MAX as usize, 0])?;
        let _ = self.call(nr::SETSID, []);
        // PID 1 watches its owner by pidfd, and looks before anything else, so an end that falls between here and
        // there is seen. Armed any longer, it would fire when the calling thread ends, which from execve on it may.
        let _ = self.call(nr::PRCTL, [PR_SET_PDEATHSIG, 0]);
        let keep = self.job.steps.iter().find_map(|step| match step.op {
            Op::Capabilities { keep } => Some(keep),
            _ => None,
        });
        let words = match (self.leaves(), keep.map_or(0, for_leaving)) {
            (false, _) => &[][..],
            (true, 0) => &[p::LET_GO],
            (true, CAP_SYS_ADMIN) => &[p::LET_GO, p::FOR_THAT_ALONE],
            (true, _) => &[p::LET_GO, p::FOR_THAT_ALONE, p::TO_GIVE_UP],
        };
        for (slot, word) in present.iter_mut().skip(count).zip(words) {
            *slot = *word;
        }
        let argv = [text(name), present.as_ptr() as usize, 0];
        let envp = [0usize];
        let (argv, envp) = (argv.as_ptr() as usize, envp.as_ptr() as usize);
        self.call(nr::EXECVEAT, [program as usize, text(c""), argv, envp, AT_EMPTY_PATH]).map(drop)
    }

    /// A duplicate at 32 or above, closed at execve. Numbers stay well below any sensible RLIMIT_NOFILE.
    pub(super) fn duplicate_high(&mut self, fd: i32) -> Result<i32, i32> {
        const F_DUPFD_CLOEXEC: usize = 1030;
        self.call(nr::FCNTL, [fd as usize, F_DUPFD_CLOEXEC, 32]).map(|fd| fd as i32)
    }

    /// Becomes a program without a PID 1 of ours.
    pub(super) fn program(&mut self, cwd: Option<&CStr>, tty: bool, session: bool) -> Result<(), i32> {
        const PR_SET_PDEATHSIG: usize = 1;
        const TIOCSCTTY: usize = 0x540E;
        const SIG_SETMASK: usize = 2;
        let mut high = [-1i32; 3];
        for (to, from) in high.iter_mut().zip(self.job.hand.stdio) {
            *to = self.duplicate_high(from)?;
        }
        for (number, from) in high.iter().enumerate() {
            self.call(nr::DUP3, [*from as usize, number, 0])?;
        }
        self.call(nr::CLOSE_RANGE, [3, u32::MAX as usize, 4])?; // CLOSE_RANGE_CLOEXEC
        if session || tty {
            let _ = self.call(nr::SETSID, []);
        }
        if tty {
            self.call(nr::IOCTL, [0, TIOCSCTTY, 0])?;
        }
        if let Some(cwd) = cwd {
            self.call(nr::CHDIR, [text(cwd)])?;
        }
        let _ = self.call(nr::UMASK, [self.umask]);
        let _ = self.call(nr::PRCTL, [PR_SET_PDEATHSIG, 0]);
        let default = [0usize; 4];
        for signal in 1..=64usize {
            // The handler table is our own (no CLONE_SIGHAND).
            let _ = self.call(nr::RT_SIGACTION, [signal, &raw const default as usize, 0, 8]);
        }
        let none = 0u64;
        let _ = self.call(nr::RT_SIGPROCMASK, [SIG_SETMASK, &raw const none as usize, 0, 8]);
        let [candidates, argv, envp] = self.job.tables;
        let (mut errno, mut denied, mut i) = (libc::ENOENT, false, 0);
        loop {
            // SAFETY: every entry before the null was read already.
            let slot = unsafe { candidates.add(i) };
            // SAFETY: within the table, which ends with null.
            let path = unsafe { slot.read() };
            if path.is_null() {
                break;
            }
            errno =
                self.call(nr::EXECVE, [path as usize, argv as usize, envp as usize]).err().unwrap_or(errno);
            match errno {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => denied = true,
                _ => break,
            }
            i += 1;
        }
        let missing = matches!(errno, libc::ENOENT | libc::ENOTDIR);
        Err(if denied && missing { libc::EACCES } else { errno })
    }
}
