//! The port: accepts, caps connections, and gives each a thread that reads its requests.
//!
//! `/ws` goes to the handshake with the raw socket. Any other request is checked by its head alone, and
//! answered at once where that is enough; else its body is read, and the whole is written anew and
//! forwarded to tiny_http on a private Unix socket.

mod forward;
mod incoming;
mod permits;
mod requests;
mod shutdown;
mod turns;

#[cfg(test)]
mod tests;

use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::{
    CLOSE_TIMEOUT, CONNECTION_STACK_BYTES, Config, KIB, LISTEN_BACKLOG,
    SOCKET_RECEIVE_BUFFER_BYTES, SOCKET_SEND_BUFFER_BYTES,
};
use crate::http::Head;
use crate::http::response::{self, Response};
use crate::metrics::{Counters, RefusalReason};
use crate::rest::{PrivateSocket, RequestGuard, Rest, RestParts};
use crate::runtime::threads::Threads;
use forward::Pool;
use permits::{Permit, Permits};
use requests::Accepted;
use shutdown::{GateShutdown, ShutdownPhase};
use turns::Turns;

/// How long the gate waits when the system has no descriptor or memory for another connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// A request for `/ws`, of whatever method, and the socket that it came on.
#[derive(Debug)]
pub struct Upgrade {
    /// The socket, blocking and without a read timeout; the only descriptor of the connection.
    pub stream: TcpStream,
    /// The request's head; a body may be announced, of which nothing but `early` was read.
    pub head: Head,
    /// What came behind the head.
    pub early: Vec<u8>,
    /// Number of the connection, as in its thread's name.
    pub number: u64,
    /// The peer's address.
    pub peer: SocketAddr,
}

/// Performs the handshake and serves the WebSocket; the connection counts until it returns.
pub type OnUpgrade = Arc<dyn Fn(Upgrade) + Send + Sync>;

/// What all threads of the gate share.
struct Context {
    config: Arc<Config>,
    shutdown: GateShutdown,
    permits: Arc<Permits>,
    guard: RequestGuard,
    /// Request bodies held in memory, in bytes.
    body_bytes: AtomicUsize,
    pool: Pool,
    turns: Turns,
    upgrade: OnUpgrade,
    counters: Counters,
}

/// The running gate. Dropping it closes it and ends the REST threads, so that is done when the
/// connection threads have ended.
pub struct Gate {
    addr: SocketAddr,
    context: Arc<Context>,
    listener: Arc<TcpListener>,
    _rest: Rest,
}

impl Gate {
    /// Listens, and starts the threads `gate` and `rest-1` to `rest-4`; each connection gets a thread
    /// `conn-<n>`. `config.max_connections` is what the system has room for.
    ///
    /// # Errors
    /// When the address or the private socket cannot be bound, or a thread not be started.
    pub fn start(
        config: Arc<Config>,
        threads: &Threads,
        rest: RestParts,
        upgrade: OnUpgrade,
    ) -> io::Result<Self> {
        let listener = Arc::new(listen(&config)?);
        let addr = listener.local_addr()?;
        let (socket, private) = PrivateSocket::bind()?;
        let path = socket.path().to_owned();
        let counters = rest.counters.clone();
        let permits = Permits::new(config.max_connections, counters.heads_evicted.clone());
        let guard = RequestGuard {
            config: Arc::clone(&config),
            verifier: Arc::clone(&rest.verifier),
            counters: counters.clone(),
        };
        let rest = Rest::start((socket, private), rest, threads)?;
        let context = Arc::new(Context {
            config,
            shutdown: GateShutdown::default(),
            permits: Arc::new(permits),
            guard,
            body_bytes: AtomicUsize::new(0),
            pool: Pool::connect(&path)?,
            turns: Turns::default(),
            upgrade,
            counters,
        });
        let acceptor = Acceptor {
            listener: Arc::clone(&listener),
            context: Arc::clone(&context),
            threads: threads.clone(),
            number: 0,
            is_starved: false,
        };
        threads.spawn_batch("gate", move || acceptor.run())?;
        Ok(Self { addr, context, listener, _rest: rest })
    }

    /// The address that it listens on, with the actual port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections open now, WebSockets and the reserve included.
    pub fn connections(&self) -> usize {
        self.context.permits.open()
    }

    /// From now on everything but `/health` is answered with 503, and idle kept-alive connections end
    /// within 250 ms. Running requests finish, if their bodies come within a second.
    pub fn drain(&self) {
        self.context.shutdown.advance(ShutdownPhase::Draining);
    }

    /// After [`Self::drain`]: waits until the running requests have their responses, so that no handler is
    /// publishing any more, nor will be. It does not wait for idle connections, for `/health`, or for
    /// peers to take their responses.
    ///
    /// # Errors
    /// How many requests were still running at the deadline.
    pub fn wait_for_requests(&self, deadline: Instant) -> Result<(), usize> {
        self.context.shutdown.wait_for_requests(deadline)
    }

    /// Ends the thread `gate`; connections that wait for a request, or for the rest of one, end within
    /// a second.
    pub fn close(&self) {
        self.context.shutdown.advance(ShutdownPhase::Closed);
        // Unblocks accept.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.close();
    }
}

/// The options are set before listening: accepted sockets inherit them without a call each.
fn listen(config: &Config) -> io::Result<TcpListener> {
    let bind = config.bind;
    let socket = Socket::new(Domain::for_address(bind), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_send_buffer_size(SOCKET_SEND_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(SOCKET_RECEIVE_BUFFER_BYTES)?;
    socket.set_tcp_nodelay(true)?;
    // What a peer did not acknowledge is the kernel's no longer than the hub would wait for a sign of life,
    // or for it to read; `CLOSE_TIMEOUT` once the service has done with the connection.
    let patience = config
        .ping_interval
        .saturating_mul(2)
        .max(config.write_timeout.saturating_add(CLOSE_TIMEOUT));
    socket.set_tcp_user_timeout(Some(patience))?;
    socket.bind(&bind.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// The accept loop.
struct Acceptor {
    listener: Arc<TcpListener>,
    context: Arc<Context>,
    threads: Threads,
    /// Of the last connection.
    number: u64,
    /// Whether the last connection found the system without room; told once, not for each.
    is_starved: bool,
}

impl Acceptor {
    fn run(mut self) {
        while self.context.shutdown.phase() < ShutdownPhase::Closed {
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    self.number += 1;
                    self.admit(Accepted { stream, peer, number: self.number });
                }
                Err(error) if is_of_one_connection(&error) => {}
                // Descriptors or memory are used up; trying again at once would spin.
                Err(error) => {
                    if self.context.shutdown.phase() < ShutdownPhase::Closed {
                        self.starve("no connection can be accepted", &error);
                        std::thread::sleep(EXHAUSTED_PAUSE);
                    }
                }
            }
        }
    }

    fn admit(&mut self, accepted: Accepted) {
        let Some(permit) = self.context.permits.take() else {
            self.context.counters.refused.count(RefusalReason::ConnectionCap);
            return turn_away(&accepted.stream, "all connections are taken");
        };
        let name = format!("conn-{}", accepted.number);
        // Through a channel, so that a failed spawn leaves the socket here.
        let (hand_over, taken) = bounded(1);
        let left = taken.clone();
        let _ = hand_over.try_send((permit, accepted));
        let context = Arc::clone(&self.context);
        let started = self.threads.spawn_small(name, CONNECTION_STACK_BYTES, move || {
            if let Ok((permit, accepted)) = taken.try_recv() {
                // Frees the channel now: this closure lives as long as the connection.
                drop(taken);
                requests::serve(&context, permit, accepted);
            }
        });
        match started {
            Ok(()) => self.is_starved = false,
            Err(error) => {
                self.context.counters.refused.count(RefusalReason::NoThread);
                self.starve("no thread is left for a connection", &error);
                if let Ok((_, accepted)) = left.try_recv() {
                    turn_away(&accepted.stream, "no thread is left");
                }
            }
        }
    }

    fn starve(&mut self, what: &str, error: &io::Error) {
        if !std::mem::replace(&mut self.is_starved, true) {
            log::warn!(error:%; "{what}");
        }
    }
}

/// Errors that say nothing about the next connection: a signal came, or the peer went away between its
/// connect and the accept, which Linux reports as that connection's network error (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::INTR,
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::AGAIN,
        Errno::PROTO,
        Errno::PERM,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::NONET,
        Errno::OPNOTSUPP,
        Errno::NOPROTOOPT,
    ];
    Errno::from_io_error(error).is_some_and(|errno| passing.contains(&errno))
}

/// 503, written without waiting: nobody delays the accept loop. What has already come is read, so that
/// closing does not reset the connection before the response is read.
fn turn_away(stream: &TcpStream, message: &str) {
    let response = Response::unavailable(message).closing_bytes(false);
    let _ = response::send_now(stream, &response);
    let _ = stream.shutdown(Shutdown::Write);
    if stream.set_nonblocking(true).is_ok() {
        let _ = (&mut &*stream).read(&mut [0; KIB]);
    }
}
