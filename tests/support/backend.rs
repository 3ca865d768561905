//! An authorization backend for `BACKEND_URL`: real HTTP on a free port, with answers that the test gives.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{Service, until};

pub const ALLOW: &str = r#"{"allowed":true}"#;
pub const DENY: &str = r#"{"allowed":false}"#;

/// Keeps the targets of all requests. Its threads end with the process of the test.
pub struct Backend {
    addr: SocketAddr,
    calls: Arc<Calls>,
}

#[derive(Default)]
struct Calls {
    targets: Mutex<Vec<String>>,
    /// Requests that are not answered yet, and the most that there ever were.
    open: AtomicUsize,
    most_open: AtomicUsize,
}

impl Backend {
    /// One thread for each connection. It answers each request's target with `answer`, which says whether
    /// the connection goes on.
    pub fn start(answer: impl Fn(&str, &mut TcpStream) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let calls = Arc::new(Calls::default());
        let (shared, answer) = (Arc::clone(&calls), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (calls, answer) = (Arc::clone(&shared), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &calls, &*answer));
            }
        });
        Self { addr, calls }
    }

    /// Lets in where `allows` says so, from the request's target.
    pub fn deciding(allows: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self::start(move |target, stream| {
            respond(stream, "200 OK", if allows(target) { ALLOW } else { DENY })
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// For `BACKEND_URL`.
    pub fn url(&self) -> String {
        format!("http://{}/base/", self.addr)
    }

    /// A service that asks it, without a rate limit.
    pub fn service(&self) -> Service {
        Service::with(&[("BACKEND_URL", &self.url()), ("RATE_LIMIT", "0")])
    }

    /// The targets of all requests so far.
    pub fn targets(&self) -> Vec<String> {
        self.calls.targets.lock().unwrap().clone()
    }

    /// Waits until there were so many requests.
    pub fn wait_for_calls(&self, calls: usize) {
        until(&format!("{calls} calls"), || self.targets().len() >= calls);
    }

    /// The most requests that were not answered at one time.
    pub fn most_open(&self) -> usize {
        self.calls.most_open.load(Ordering::SeqCst)
    }
}

fn serve(stream: TcpStream, calls: &Calls, answer: &dyn Fn(&str, &mut TcpStream) -> bool) {
    let mut requests = BufReader::new(stream);
    while let Some(target) = next_target(&mut requests) {
        calls.targets.lock().unwrap().push(target.clone());
        let open = calls.open.fetch_add(1, Ordering::SeqCst) + 1;
        calls.most_open.fetch_max(open, Ordering::SeqCst);
        let goes_on = answer(&target, requests.get_mut());
        calls.open.fetch_sub(1, Ordering::SeqCst);
        if !goes_on {
            return;
        }
    }
}

/// The target of the next request, which has no body; `None` at the end of the stream.
fn next_target(requests: &mut BufReader<TcpStream>) -> Option<String> {
    let mut lines = requests.lines().map_while(Result::ok);
    let target = lines.next()?.split(' ').nth(1)?.to_owned();
    lines.find(|line| line.is_empty())?;
    Some(target)
}

/// Writes an answer of this status, such as `200 OK`; whether the peer took it.
pub fn respond(stream: &mut TcpStream, status: &str, body: &str) -> bool {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").is_ok()
}

/// Says nothing until the peer gives up.
pub fn hang(stream: &mut TcpStream) -> bool {
    let _ = stream.read(&mut [0]);
    false
}
