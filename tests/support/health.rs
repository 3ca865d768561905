//! What the kernel knows of the service's process, and that it is in good health after a hostile round.

use serde_json::json;

use super::{Service, until};

impl Service {
    /// Threads of the process.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid())).map_or(0, Iterator::count)
    }

    /// Open descriptors of the process.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// Resident memory of the process, in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// This file of /proc/PID/task, such as `comm`, of each thread that has not just ended.
    pub fn of_threads(&self, file: &str) -> impl Iterator<Item = String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        tasks.filter_map(move |task| std::fs::read_to_string(task.ok()?.path().join(file)).ok())
    }

    /// How many threads have a name that starts so, such as `writer-`.
    pub fn threads_named(&self, start: &str) -> usize {
        self.of_threads("comm").filter(|name| name.starts_with(start)).count()
    }

    /// Proves that it serves: health, a join, a broadcast.
    pub fn assert_serves(&self) {
        assert_eq!(self.http("GET", "/health", None, "").status, 200);
        let mut client = self.client("bystander", "");
        client.join("bystanders");
        client.broadcast("bystanders", &json!("still there"));
        assert_eq!(client.json()["body"], "still there");
    }

    /// Threads and descriptors when nobody is connected.
    pub fn at_rest(&self) -> (usize, usize) {
        self.assert_serves();
        self.idle()
    }

    /// The same, where nobody may join a room.
    pub fn idle(&self) -> (usize, usize) {
        assert_eq!(self.http("GET", "/health", None, "").status, 200);
        until("no connection is left", || self.threads_named("conn-") == 0);
        (self.threads(), self.descriptors())
    }

    /// Waits until threads and descriptors are back at `before`, and proves that it serves.
    pub fn assert_recovers(&self, before: (usize, usize)) {
        self.assert_serves();
        until(&format!("threads and descriptors back at {before:?}"), || {
            self.threads() <= before.0 && self.descriptors() <= before.1
        });
    }

    /// A hostile round, twice: after each the service is as before, and the second adds no memory.
    pub fn assert_unharmed_by(&self, mut round: impl FnMut(&Self)) {
        let before = self.at_rest();
        round(self);
        self.assert_recovers(before);
        let rss = self.rss_kib();
        round(self);
        self.assert_recovers(before);
        let grown = self.rss_kib().saturating_sub(rss);
        assert!(grown < 4096, "the second round added {grown} KiB to {rss} KiB");
    }
}
