//! Routes and handlers on tiny_http, which only the gate talks to.

pub mod clients;
pub mod console;
pub mod notify;
mod private_socket;
mod routes;

use std::io::{self, Cursor};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tiny_http::{Header, Request, Server, StatusCode};

use crate::auth::Verifier;
use crate::bridge::BridgeState;
use crate::config::{KIB, REST_CONNECTIONS};
use crate::http::Response;
use crate::http::response::SERVER_NAME;
use crate::hub::{Event, HubHandle, PublisherName};
use crate::metrics::{self, Counters, Metrics, NotifyResult};
use crate::protocol::Id;
use crate::runtime::threads::Threads;

pub(crate) use private_socket::PrivateSocket;
pub use private_socket::{CONNECTION_HEADER, PEER_HEADER, USER_HEADER};
pub(crate) use routes::RequestGuard;
use routes::Route;

/// Tells what the broker does.
pub type RedisState = Arc<dyn Fn() -> BridgeState + Send + Sync>;

/// What the handlers need of the service.
pub struct RestParts {
    /// Delivers notifications and counts connections.
    pub hub: HubHandle,
    /// Checks the tokens of notify, admin and metrics, for the gate.
    pub verifier: Arc<Verifier>,
    /// For `/health`.
    pub redis_state: RedisState,
    /// For `/metrics`.
    pub metrics: Metrics,
    /// What the gate and the handlers count.
    pub counters: Counters,
    /// The first part of connection ids.
    pub instance: String,
}

/// The running handlers; dropping it ends their threads once they have answered what waits.
pub(crate) struct Rest {
    hop: Arc<Hop>,
}

/// tiny_http and the socket that it listens on. Its drop connects to the socket once more, to end its
/// accept loop, so the socket must go last.
struct Hop {
    server: Server,
    ending: AtomicBool,
    _socket: PrivateSocket,
}

impl Rest {
    /// Starts tiny_http on `listener`, which listens on `socket`, and the threads `rest-1` to `rest-4`.
    ///
    /// # Errors
    /// When tiny_http does not take the listener or a thread cannot be started.
    pub(crate) fn start(
        (socket, listener): (PrivateSocket, UnixListener),
        parts: RestParts,
        threads: &Threads,
    ) -> io::Result<Self> {
        let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
        let hop = Hop { server, ending: AtomicBool::new(false), _socket: socket };
        // Made before the threads: when one of them cannot be started, its drop ends the others.
        let rest = Self { hop: Arc::new(hop) };
        let handlers = Arc::new(Handlers { parts });
        for number in 1..=REST_CONNECTIONS {
            let (hop, handlers) = (Arc::clone(&rest.hop), Arc::clone(&handlers));
            threads.spawn(format!("rest-{number}"), move || {
                while !hop.ending.load(Ordering::Relaxed) {
                    if let Ok(request) = hop.server.recv() {
                        handlers.serve(request);
                    }
                }
            })?;
        }
        Ok(rest)
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.hop.ending.store(true, Ordering::Relaxed);
        for _ in 0..REST_CONNECTIONS {
            // Wakes one thread each.
            self.hop.server.unblock();
        }
    }
}

struct Handlers {
    parts: RestParts,
}

impl Handlers {
    fn serve(&self, mut request: Request) {
        // A bug in a handler costs a response, not a thread.
        let response = catch_unwind(AssertUnwindSafe(|| self.dispatch(&mut request)))
            .unwrap_or_else(|_| Response::error(500, "server_error", "the handler failed"));
        if let Err(error) = request.respond(for_tiny_http(response)) {
            log::debug!(error:%; "the gate did not take a response");
        }
    }

    fn dispatch(&self, request: &mut Request) -> Response {
        let path = request.url().split('?').next().unwrap_or_default();
        match Route::of(path) {
            Ok(route) => (route.handler)(self, request),
            Err(not_found) => not_found,
        }
    }

    fn health(&self, _: &mut Request) -> Response {
        let redis = (self.parts.redis_state)().as_str();
        Response::json(
            200,
            format!(r#"{{"status":"healthy","service":"realtime_service","redis":"{redis}"}}"#),
        )
    }

    /// The gate itself says that the service is shutting down.
    fn ready(&self, _: &mut Request) -> Response {
        Response::json(200, r#"{"status":"ready"}"#)
    }

    fn clients(&self, request: &mut Request) -> Response {
        let Ok(counts) = self.parts.hub.counts() else {
            return Response::unavailable("the service is shutting down");
        };
        let query =
            match clients::parse(request.url().split_once('?').map_or("", |(_, query)| query)) {
                Ok(query) => query,
                Err(bad) => return Response::error(400, "bad_request", &bad),
            };
        // Names and counts always serialise.
        let rooms = serde_json::to_string(&counts.rooms).unwrap_or_default();
        let list = match query {
            None => String::new(),
            Some(page) => match self.parts.hub.ask(|reply| Event::List(page.query(), reply)) {
                Ok(listing) => clients::members(&page, &listing, &self.parts.instance),
                Err(_) => return Response::unavailable("the service is shutting down"),
            },
        };
        let clients = counts.clients;
        // Only where the list is not whole: the form that is known has no such member.
        let total = match counts.rooms_total {
            total if total > counts.rooms.len() => format!(r#","rooms_total":{total}"#),
            _ => String::new(),
        };
        Response::json(200, format!(r#"{{"clients":{clients},"rooms":{rooms}{total}{list}}}"#))
    }

    fn metrics(&self, _: &mut Request) -> Response {
        match self.parts.metrics.render() {
            Ok(text) => Response::new(200, metrics::CONTENT_TYPE, text),
            Err(_) => Response::unavailable("the service is shutting down"),
        }
    }

    fn notify(&self, request: &mut Request) -> Response {
        let response = self.try_notify(request);
        let result = NotifyResult::of_status(response.status());
        self.parts.counters.notify_requests.count(result);
        response
    }

    fn try_notify(&self, request: &mut Request) -> Response {
        let body = match body(request) {
            Ok(body) => body,
            Err(error) => {
                return Response::error(
                    400,
                    "bad_request",
                    &format!("body cannot be read: {error}"),
                );
            }
        };
        let notify::NotifyRequest { deliveries, is_batch } = match notify::parse(&body) {
            Ok(request) => request,
            Err(error) => return Response::error(400, error.code, &error.message),
        };
        let Ok(counts) = self.parts.hub.notify(publisher(request), deliveries) else {
            return Response::unavailable("the service is shutting down");
        };
        log::info!(
            conn = connection(request),
            peer = peer(request),
            user = header(request, USER_HEADER).unwrap_or_default(),
            notifications = counts.len(),
            delivered = counts.iter().sum::<usize>();
            "notify"
        );
        notified(&counts, is_batch)
    }
}

/// `{"status":"success",…,"delivered":3}`, for a batch with a list of counts.
fn notified(counts: &[usize], is_batch: bool) -> Response {
    let delivered = if is_batch {
        let counts: Vec<_> = counts.iter().map(usize::to_string).collect();
        format!("[{}]", counts.join(","))
    } else {
        counts.first().copied().unwrap_or(0).to_string()
    };
    Response::json(
        200,
        format!(r#"{{"status":"success","message":"Notification sent","delivered":{delivered}}}"#),
    )
}

/// The body, which the gate has read, bounded and sent whole.
fn body(request: &mut Request) -> io::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(request.body_length().unwrap_or(0).min(64 * KIB));
    request.as_reader().read_to_end(&mut body)?;
    Ok(body)
}

fn header<'a>(request: &'a Request, name: &'static str) -> Option<&'a str> {
    request.headers().iter().find(|h| h.field.equiv(name)).map(|h| h.value.as_str())
}

/// Whose notifications wait together; the gate sends the user with every request that has a token.
fn publisher(request: &Request) -> PublisherName {
    let user = header(request, USER_HEADER).and_then(|user| Id::parse(user).ok());
    user.map_or(PublisherName::Service, PublisherName::Backend)
}

/// Number of the connection; the gate sends it with every request.
fn connection(request: &Request) -> u64 {
    header(request, CONNECTION_HEADER).and_then(|number| number.parse().ok()).unwrap_or_default()
}

fn peer(request: &Request) -> &str {
    header(request, PEER_HEADER).unwrap_or_default()
}

/// tiny_http's own form of a response. It must not chunk, since the gate reads by Content-Length.
fn for_tiny_http(response: Response) -> tiny_http::Response<Cursor<Vec<u8>>> {
    let status = StatusCode(response.status());
    // Else tiny_http tells its own name and version.
    let response = response.with_header("Server", SERVER_NAME);
    let headers = response
        .headers()
        .iter()
        // A response holds visible ASCII only, so all of them pass.
        .filter_map(|(name, value)| Header::from_bytes(*name, value.as_bytes()).ok())
        .collect();
    let body = response.into_body();
    let length = body.len();
    tiny_http::Response::new(status, headers, Cursor::new(body), Some(length), None)
        .with_chunked_threshold(usize::MAX)
}
