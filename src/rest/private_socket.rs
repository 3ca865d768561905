//! The Unix socket between the gate and tiny_http, and the headers that the gate adds for the handlers.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Carries the peer's address to the handlers; the gate alone sets it.
pub const PEER_HEADER: &str = "X-Realtime-Peer";
/// Carries the number of the connection to the handlers, for their log lines; the gate alone sets it.
pub const CONNECTION_HEADER: &str = "X-Realtime-Connection";
/// Carries the user id of the token to the handlers; the gate alone sets it, once it has checked the token.
pub const USER_HEADER: &str = "X-Realtime-User";

/// A directory that only this user can enter, with the socket in it; removed when dropped.
pub(crate) struct PrivateSocket {
    directory: PathBuf,
    path: PathBuf,
}

impl PrivateSocket {
    pub(crate) fn bind() -> io::Result<(Self, UnixListener)> {
        let name = format!("realtime_service-{}", uuid::Uuid::new_v4());
        let directory = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        let socket = Self { path: directory.join("rest.sock"), directory };
        let listener = UnixListener::bind(&socket.path)?;
        Ok((socket, listener))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        // Nothing is lost if they stay: the next start has a directory of its own.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_dir(&self.directory);
    }
}
