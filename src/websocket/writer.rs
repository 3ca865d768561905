//! The writer thread of a connection whose socket pushed back: drains its backlog with blocking writes.

use crate::config::CONNECTION_STACK_BYTES;
use crate::hub::{Event, HubHandle, StartWriter, WriterJob};
use crate::runtime::threads::Threads;

/// How the hub starts a writer: a thread `writer-<connection>` that ends when the hub has taken the
/// socket back, or the socket breaks.
pub fn starter(threads: Threads, hub: HubHandle) -> StartWriter {
    Box::new(move |job| {
        let hub = hub.clone();
        let name = format!("writer-{}", job.number);
        threads.spawn_small(name, CONNECTION_STACK_BYTES, move || {
            let WriterJob { key, socket, drain, .. } = job;
            let broken = drain.run(|frame| socket.send_all(frame)).is_err();
            // The hub outlives its writers, except when it fails; then no one counts them.
            let _ = hub.send(Event::WriterEnded { key, broken });
        })
    })
}
