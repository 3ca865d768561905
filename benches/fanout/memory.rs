//! Memory counted by pages: what two processes and the kernel take, without what others do meanwhile.
//! `MemAvailable` moves with other processes and the page cache by as much as is to be measured.

use std::{fs, io};

/// Memory of this process, of process `pid`, and of the kernel, in KiB: anonymous pages and page tables of
/// the two; slabs, stacks, and the pages that no line of /proc/meminfo tells, such as those of sockets.
///
/// # Errors
/// When a file of proc(5) cannot be read or lacks a line.
pub(crate) fn taken_kib(pid: u32) -> io::Result<u64> {
    let of_process = |pid: &str| {
        let path = format!("/proc/{pid}/status");
        sum_of_lines(&path, &["RssAnon:", "VmPTE:"])
    };
    Ok(of_process("self")? + of_process(&pid.to_string())? + kernel_kib()?)
}

fn kernel_kib() -> io::Result<u64> {
    let not_kernel =
        ["MemFree:", "Buffers:", "Cached:", "SwapCached:", "AnonPages:", "PageTables:"];
    let total = sum_of_lines("/proc/meminfo", &["MemTotal:"])?;
    // Freed pages wait in lists of each processor, where they count as neither free nor used.
    let zones = fs::read_to_string("/proc/zoneinfo")?;
    let waiting = zones.lines().filter_map(|line| line.trim().strip_prefix("count:"));
    let waiting: u64 = waiting.filter_map(|pages| pages.trim().parse::<u64>().ok()).sum();
    let rest = total.saturating_sub(sum_of_lines("/proc/meminfo", &not_kernel)?);
    Ok(rest.saturating_sub(4 * waiting))
}

fn sum_of_lines(path: &str, names: &[&str]) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let of = |name: &&str| {
        text.lines()
            .find_map(|line| {
                line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok()
            })
            .ok_or_else(|| io::Error::other(format!("{path} has no number {name}")))
    };
    names.iter().map(of).sum()
}
