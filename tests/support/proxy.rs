//! A TCP proxy between a program and its server, which fails as networks do.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What it does with bytes and with new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// What clients say arrives; what the server says does not.
    DropReplies,
    /// Nothing arrives, and nobody is told; what waits so arrives later.
    Stall,
    /// New connections are closed at once. Those that are there go on until they are cut.
    Refuse,
}

/// On a free port of 127.0.0.1; ended when dropped.
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    ended: AtomicBool,
    dropped: AtomicU64,
}

struct State {
    target: SocketAddr,
    mode: Mode,
    links: BTreeMap<u64, [TcpStream; 2]>,
    next: u64,
}

impl Proxy {
    /// To `host:port`.
    pub fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state =
            State { target: resolve(target), mode: Mode::Pass, links: BTreeMap::new(), next: 0 };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.ended.load(SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A server that is away may let the connect wait.
                std::thread::spawn(move || shared.link(client));
            }
        });
        Self { addr, shared, acceptor: Some(acceptor) }
    }

    /// `host:port`, for those that are to go through it.
    pub fn addr(&self) -> String {
        self.addr.to_string()
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.shared.state.lock().unwrap().mode = mode;
        self.shared.changed.notify_all();
    }

    /// New connections lead to this `host:port`.
    pub fn retarget(&self, target: &str) {
        self.shared.state.lock().unwrap().target = resolve(target);
    }

    /// Ends all connections; how many there were.
    pub fn cut(&self) -> usize {
        let links = std::mem::take(&mut self.shared.state.lock().unwrap().links);
        links.values().flatten().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        self.shared.changed.notify_all();
        links.len()
    }

    /// Connections now.
    pub fn links(&self) -> usize {
        self.shared.state.lock().unwrap().links.len()
    }

    /// Bytes of replies that it has not passed on so far.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        self.set(Mode::Pass);
        self.cut();
        // Wakes the acceptor.
        drop(TcpStream::connect(self.addr));
        let _ = self.acceptor.take().unwrap().join();
    }
}

impl Shared {
    fn link(self: Arc<Self>, client: TcpStream) {
        let target = {
            let state = self.state.lock().unwrap();
            if state.mode == Mode::Refuse {
                return;
            }
            state.target
        };
        let Ok(server) = TcpStream::connect_timeout(&target, Duration::from_secs(10)) else {
            return;
        };
        let streams = [client, server];
        streams.iter().for_each(|stream| stream.set_nodelay(true).unwrap());
        let clone = || streams.each_ref().map(|stream| stream.try_clone().unwrap());
        let number = {
            let mut state = self.state.lock().unwrap();
            // It may have been cut, refused or ended meanwhile.
            if state.mode == Mode::Refuse || state.target != target || self.ended.load(SeqCst) {
                return;
            }
            state.next += 1;
            let number = state.next;
            state.links.insert(number, clone());
            number
        };
        let [client, server] = clone();
        let replies = Arc::clone(&self);
        let down = std::thread::spawn(move || replies.pass(server, client, true));
        let [client, server] = streams;
        self.pass(client, server, false);
        let _ = down.join();
        self.state.lock().unwrap().links.remove(&number);
    }

    /// Passes on until either end ends, which then both do.
    fn pass(&self, mut from: TcpStream, mut to: TcpStream, is_reply: bool) {
        let mut chunk = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            let mut state = self.state.lock().unwrap();
            while state.mode == Mode::Stall && !self.ended.load(SeqCst) {
                state = self.changed.wait(state).unwrap();
            }
            let is_dropped = is_reply && state.mode == Mode::DropReplies;
            drop(state);
            if is_dropped {
                self.dropped.fetch_add(length as u64, SeqCst);
            } else if to.write_all(&chunk[..length]).is_err() {
                break;
            }
        }
        for stream in [from, to] {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn resolve(target: &str) -> SocketAddr {
    target.to_socket_addrs().unwrap().next().unwrap()
}
