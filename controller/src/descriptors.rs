//! The limit of open files of the process (`RLIMIT_NOFILE`).

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises this process's soft limit of open files (`RLIMIT_NOFILE`) to the hard one. Returns the hard limit: a number
/// of descriptors that includes those in use, or `usize::MAX` if there is no limit. The usual soft limit of 1,024
/// protects programs that use `select(2)`, which fails for larger descriptors; this program does not use it. A second
/// call changes nothing.
///
/// # Errors
/// The kernel refuses to read or to set the limit.
pub fn raise() -> anyhow::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .with_context(|| format!("cannot raise the limit of open files from {soft} to {hard}"))?;
    }
    Ok(usize::try_from(hard).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, usize::try_from(hard).unwrap()), (hard, raised));
    }
}
