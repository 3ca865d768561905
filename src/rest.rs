//! Routes and handlers on tiny_http, which only the gate talks to (DESIGN section 5).

pub mod clients;
pub mod console;
pub mod notify;
mod private_socket;

use std::borrow::Cow;
use std::io::{self, Cursor};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tiny_http::{Header, Request, Server, StatusCode};

use crate::auth::{Identity, bearer};
use crate::config::{AllowedOrigins, KIB, REST_CONNECTIONS};
use crate::http::{Response, cors};
use crate::hub::{Event, HubHandle};
use crate::metrics::{self, Counters, Metrics};
use crate::notification::NotificationService;
use crate::runtime::threads::Threads;

pub(crate) use private_socket::PrivateSocket;
pub use private_socket::{CONNECTION_HEADER, PEER_HEADER};

/// Checks a token; the error is the reason, for the log and the peer.
pub type Verify = Arc<dyn Fn(&str) -> Result<Identity, String> + Send + Sync>;
/// `connected`, `disconnected` or `disabled`.
pub type RedisState = Arc<dyn Fn() -> &'static str + Send + Sync>;
/// Whether the service is shutting down.
pub(crate) type IsDraining = Arc<dyn Fn() -> bool + Send + Sync>;

/// What the handlers need of the service.
pub struct RestParts {
    /// Delivers notifications and counts connections.
    pub hub: HubHandle,
    /// Checks the tokens of notify and admin.
    pub verify: Verify,
    /// For `/health`.
    pub redis_state: RedisState,
    /// For `/metrics`.
    pub metrics: Metrics,
    /// What the gate and the handlers count.
    pub counters: Counters,
    /// The first part of connection ids.
    pub instance: String,
    /// `ALLOWED_ORIGINS`.
    pub allowed_origins: AllowedOrigins,
    /// `API_AUTH`: whether notify and admin ask for a token.
    pub api_auth: bool,
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
        is_draining: IsDraining,
        threads: &Threads,
    ) -> io::Result<Self> {
        let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
        let hop = Hop { server, ending: AtomicBool::new(false), _socket: socket };
        // Made before the threads: when one of them cannot be started, its drop ends the others.
        let rest = Self { hop: Arc::new(hop) };
        let handlers = Arc::new(Handlers {
            notifications: NotificationService::new(parts.hub.clone()),
            parts,
            is_draining,
        });
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
    notifications: NotificationService,
    is_draining: IsDraining,
}

/// Answers a request on one path.
type Handler = fn(&Handlers, &mut Request) -> Response;

/// Whether a path is read or written to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// GET, and HEAD, for which tiny_http leaves out the body.
    Read,
    /// POST.
    Write,
}

impl Access {
    fn methods(self) -> &'static str {
        match self {
            Self::Read => "GET, HEAD, OPTIONS",
            Self::Write => "POST, OPTIONS",
        }
    }
}

/// All paths.
const ROUTES: [(&str, Access, Handler); 6] = [
    ("/health", Access::Read, Handlers::health),
    ("/ready", Access::Read, Handlers::ready),
    ("/api/notify", Access::Write, Handlers::notify),
    ("/admin/clients", Access::Read, Handlers::clients),
    ("/metrics", Access::Read, Handlers::metrics),
    ("/console", Access::Read, |_, _| console::page()),
];

impl Handlers {
    fn serve(&self, mut request: Request) {
        // A bug in a handler costs an answer, not a thread.
        let response = catch_unwind(AssertUnwindSafe(|| self.answer(&mut request)))
            .unwrap_or_else(|_| Response::error(500, "server_error", "the handler failed"));
        let cors = cors::headers(&self.parts.allowed_origins, header(&request, "Origin"));
        if let Err(error) = request.respond(for_tiny_http(response, cors)) {
            log::debug!(error:%; "the gate did not take an answer");
        }
    }

    fn answer(&self, request: &mut Request) -> Response {
        let path = request.url().split('?').next().unwrap_or_default();
        let Some((_, access, handler)) = ROUTES.iter().find(|(known, ..)| *known == path) else {
            return Response::error(404, "not_found", "there is nothing at this path");
        };
        match (request.method().as_str(), access) {
            ("GET" | "HEAD", Access::Read) | ("POST", Access::Write) => handler(self, request),
            ("OPTIONS", _) => cors::preflight(access.methods())
                .into_iter()
                .fold(Response::empty(204), |response, (name, value)| {
                    response.with_header(name, value)
                })
                .with_header("Allow", access.methods()),
            (method, _) => Response::error(
                405,
                "method_not_allowed",
                &format!("{method:?} is not allowed here, {} are", access.methods()),
            )
            .with_header("Allow", access.methods()),
        }
    }

    fn health(&self, _: &mut Request) -> Response {
        let redis = (self.parts.redis_state)();
        Response::json(
            200,
            format!(r#"{{"status":"healthy","service":"realtime_service","redis":"{redis}"}}"#),
        )
    }

    fn ready(&self, _: &mut Request) -> Response {
        if (self.is_draining)() {
            return Response::unavailable("the service is shutting down");
        }
        Response::json(200, r#"{"status":"ready"}"#)
    }

    fn clients(&self, request: &mut Request) -> Response {
        if let Err(refusal) = self.authorize(request) {
            return refusal;
        }
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
        Response::json(200, format!(r#"{{"clients":{},"rooms":{rooms}{list}}}"#, counts.clients))
    }

    fn metrics(&self, request: &mut Request) -> Response {
        if let Err(refusal) = self.authorize(request) {
            return refusal;
        }
        match self.parts.metrics.render() {
            Ok(text) => Response::new(200, metrics::CONTENT_TYPE, text),
            Err(_) => Response::unavailable("the service is shutting down"),
        }
    }

    fn notify(&self, request: &mut Request) -> Response {
        let response = self.try_notify(request);
        self.parts.counters.notify_requests.count(match response.status() {
            200 => "sent",
            400 => "bad_request",
            401 => "unauthorized",
            403 => "forbidden",
            _ => "unavailable",
        });
        response
    }

    fn try_notify(&self, request: &mut Request) -> Response {
        let identity = match self.authorize(request) {
            Ok(identity) => identity,
            Err(refusal) => return refusal,
        };
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
        let wanted = match notify::parse(&body) {
            Ok(wanted) => wanted,
            Err(bad) => return Response::error(400, bad.code, &bad.message),
        };
        let is_batch = wanted.is_batch;
        let Ok(counts) = self.notifications.send_all(wanted.deliveries) else {
            return Response::unavailable("the service is shutting down");
        };
        log::info!(
            conn = connection(request),
            peer = peer(request),
            user = identity.as_ref().map_or("", |identity| identity.user_id.as_str()),
            notifications = counts.len(),
            delivered = counts.iter().sum::<usize>();
            "notify"
        );
        notified(&counts, is_batch)
    }

    /// The caller, of role admin or service; `None` where `API_AUTH` is off.
    fn authorize(&self, request: &Request) -> Result<Option<Identity>, Response> {
        if !self.parts.api_auth {
            return Ok(None);
        }
        let identity = match header(request, "Authorization").map(bearer) {
            Some(Some(token)) => (self.parts.verify)(token),
            Some(None) => Err("authorization is not a bearer token".to_owned()),
            None => Err("token is missing".to_owned()),
        };
        let identity = identity.map_err(|reason| {
            log::info!(conn = connection(request), peer = peer(request), reason = reason.as_str(); "token refused");
            Response::error(401, "unauthorized", &reason).with_header("WWW-Authenticate", "Bearer")
        })?;
        if !identity.role.may_call_api() {
            log::info!(
                conn = connection(request), peer = peer(request), user = identity.user_id.as_str(), role = identity.role.as_str();
                "role refused"
            );
            return Err(Response::error(403, "forbidden", "role is not admin or service"));
        }
        Ok(Some(identity))
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

/// Number of the connection; the gate sends it with every request.
fn connection(request: &Request) -> u64 {
    header(request, CONNECTION_HEADER).and_then(|number| number.parse().ok()).unwrap_or_default()
}

fn peer(request: &Request) -> &str {
    header(request, PEER_HEADER).unwrap_or_default()
}

/// tiny_http's own form of an answer. It must not chunk, since the gate reads by Content-Length.
fn for_tiny_http(
    response: Response,
    cors: Vec<(&'static str, Cow<'static, str>)>,
) -> tiny_http::Response<Cursor<Vec<u8>>> {
    let status = StatusCode(response.status());
    // Else tiny_http tells its own name and version.
    let response = response.with_header("Server", "realtime_service");
    let headers = cors.into_iter().fold(response, |response, (n, v)| response.with_header(n, v));
    let list = headers
        .headers()
        .iter()
        // An answer holds visible ASCII only, so all of them pass.
        .filter_map(|(name, value)| Header::from_bytes(*name, value.as_bytes()).ok())
        .collect();
    let body = headers.into_body();
    let length = body.len();
    tiny_http::Response::new(status, list, Cursor::new(body), Some(length), None)
        .with_chunked_threshold(usize::MAX)
}
