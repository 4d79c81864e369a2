//! What `ls -l /proc/PID/ns` shows: the namespaces of a process.

use std::fs;

use crate::error::{Error, Result};

/// One link of `/proc/PID/ns`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The link's name, such as `pid_for_children`.
    pub name: String,
    /// The kind in the link's text, such as `pid`.
    pub kind: String,
    /// The inode number: equal for two processes in the same namespace.
    pub inode: u64,
}

/// The links of process `pid`, or of the calling thread, in the order of `ls`. Links that may not be read (those of
/// another user's process) are an error; a link without a namespace yet (`pid_for_children` after unshare(2), before
/// the first child) is left out.
pub fn inspect(pid: Option<i32>) -> Result<Vec<Link>> {
    let dir = pid.map_or_else(|| "/proc/thread-self/ns".to_owned(), |pid| format!("/proc/{pid}/ns"));
    let fail = |syscall, e: &std::io::Error, path: &str| {
        Error::io(format!("inspect the namespaces of {dir}"), syscall, e, Some(path))
    };
    let mut names: Vec<String> = fs::read_dir(&dir)
        .map_err(|e| fail("open", &e, &dir))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let mut links = Vec::with_capacity(names.len());
    for name in names {
        let path = format!("{dir}/{name}");
        let text = match fs::read_link(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && name.ends_with("_for_children") => continue,
            Err(e) => return Err(fail("readlink", &e, &path)),
        };
        if let Some((kind, inode)) = parse(&text.to_string_lossy()) {
            links.push(Link { name, kind, inode });
        }
    }
    Ok(links)
}

/// `pid:[4026531836]`.
fn parse(text: &str) -> Option<(String, u64)> {
    let (kind, rest) = text.split_once(":[")?;
    Some((kind.to_owned(), rest.strip_suffix(']')?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_sees_ten_links() {
        let links = inspect(None).unwrap();
        let names: Vec<_> = links.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "cgroup",
                "ipc",
                "mnt",
                "net",
                "pid",
                "pid_for_children",
                "time",
                "time_for_children",
                "user",
                "uts"
            ]
        );
        assert_eq!(parse("uts:[7]"), Some(("uts".into(), 7)));
        assert_eq!(parse("uts:7"), None);
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        let error = inspect(Some(i32::MAX)).unwrap_err();
        assert_eq!(error.errno(), Some(nix::errno::Errno::ENOENT), "{error}");
        assert!(error.to_string().contains("2147483647"));
    }
}
