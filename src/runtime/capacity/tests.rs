//! Verifies how many connections and writers each limit of the system leaves.

use super::*;

fn quota(limit: u64, used: u64) -> Option<Quota> {
    Some(Quota { limit, used })
}

fn default_machine() -> SystemLimits {
    SystemLimits {
        descriptors: quota(1_048_576, 20),
        memory_maps: quota(65_530, 150),
        threads_max: quota(30_000, 400),
        pid_max: quota(4_194_304, 400),
        user_threads: None,
        cgroup_threads: None,
    }
}

#[test]
fn the_defaults_fit_a_default_machine() {
    let capacity = Capacity::within(10_000, 1024, &default_machine()).unwrap();
    assert_eq!(capacity, Capacity { max_connections: 10_000, max_writers: 1024, decided_by: None });
    assert_eq!(capacity.to_string(), "10000 connections and 1024 writers fit");
    assert!(Capacity::within(10_000, 1024, &SystemLimits::default()).is_ok());
}

#[test]
fn the_tightest_limit_decides() {
    let machine = default_machine();
    let table: [(SystemLimits, usize, &str); 6] = [
        (
            SystemLimits { descriptors: quota(1024, 20), ..machine },
            1024 - 20 - 72 - 16,
            "RLIMIT_NOFILE",
        ),
        (
            SystemLimits { descriptors: quota(200, 12), ..machine },
            200 - 12 - 72 - 16,
            "RLIMIT_NOFILE",
        ),
        (SystemLimits { memory_maps: quota(16_530, 530), ..machine }, 3096, "vm.max_map_count"),
        (SystemLimits { threads_max: quota(4400, 400), ..machine }, 3096, "kernel.threads-max"),
        (SystemLimits { user_threads: quota(4400, 400), ..machine }, 3096, "RLIMIT_NPROC"),
        (
            SystemLimits { cgroup_threads: quota(4400, 400), ..machine },
            3096,
            "pids.max of the cgroup",
        ),
    ];
    for (limits, connections, name) in table {
        let capacity = Capacity::within(10_000, 1024, &limits).unwrap();
        assert_eq!(capacity.max_connections, connections, "{name}");
        assert_eq!(capacity.decided_by.unwrap().name, name);
        assert!((1..=connections).contains(&capacity.max_writers), "{capacity}");
    }
}

#[test]
fn what_is_planned_stays_under_every_limit() {
    for limit in (0..70_000).step_by(97) {
        let limits = SystemLimits {
            memory_maps: quota(limit, 150),
            threads_max: quota(limit / 3, 300),
            descriptors: quota(limit / 2, 20),
            ..SystemLimits::default()
        };
        let Ok(c) = Capacity::within(10_000, 1024, &limits) else { continue };
        let threads =
            (c.max_connections + c.max_writers + RESERVE_CONNECTIONS) as u64 + FIXED_THREADS;
        assert!(threads * MAPS_PER_THREAD + 150 < limit, "{limit}: {c}");
        assert!(threads + 300 < limit / 3, "{limit}: {c}");
        assert!(
            (c.max_connections + RESERVE_CONNECTIONS) as u64 + FIXED_DESCRIPTORS + 20 <= limit / 2
        );
    }
}

#[test]
fn too_few_is_an_error_unless_asked_for() {
    let limits = SystemLimits { descriptors: quota(96, 3), ..default_machine() };
    let line = Capacity::within(10_000, 1024, &limits).unwrap_err().to_string();
    assert_eq!(line, "only 5 connections fit, expected at least 10: RLIMIT_NOFILE is 96");
    assert_eq!(Capacity::within(5, 1024, &limits).unwrap().max_connections, 5);
    let limits = SystemLimits { cgroup_threads: quota(20, 25), ..default_machine() };
    assert_eq!(Capacity::within(10_000, 1024, &limits).unwrap_err().max_connections, 0);
}

#[test]
fn cgroups_of_both_versions_are_found() {
    assert_eq!(
        pids_directories("12:cpu,pids:/a\n1:name=systemd:/b\n0::/user.slice/x\nodd\n"),
        [
            "/sys/fs/cgroup/pids/a",
            "/sys/fs/cgroup/pids",
            "/sys/fs/cgroup/user.slice/x",
            "/sys/fs/cgroup/user.slice",
            "/sys/fs/cgroup"
        ]
        .map(PathBuf::from)
    );
}

#[test]
fn threads_of_a_user_are_counted() {
    let status = "Name:\tx\nUid:\t1000\t1000\t1000\t1000\nThreads:\t7\n";
    assert_eq!(threads_of(status, 1000), Some(7));
    assert_eq!(threads_of(status, 100), None);
    assert_eq!(threads_of("", 1000), None);
}

#[test]
fn this_machine_is_read() {
    let limits = SystemLimits::read();
    assert!(limits.memory_maps.unwrap().used > 0);
    assert!(limits.threads_max.unwrap().used > 0);
    if let Some(descriptors) = limits.descriptors {
        assert!(descriptors.used > 0);
        assert_eq!(getrlimit(Resource::Nofile).current, Some(descriptors.limit));
    }
}
