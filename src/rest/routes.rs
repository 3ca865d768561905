//! The routing table, and what the head of a request alone decides: the gate asks before it reads any of
//! the body.

use std::net::SocketAddr;
use std::sync::Arc;

use tiny_http::Request;

use super::{Handlers, console};
use crate::auth::{Identity, TokenError, Verifier, bearer};
use crate::config::Config;
use crate::http::{Head, Response, cors};
use crate::metrics::{Counters, NotifyResult};

/// Path of the notifications.
const NOTIFY_PATH: &str = "/api/notify";

/// Answers a request that [`RequestGuard::check`] has let pass.
type Handler = fn(&Handlers, &mut Request) -> Response;

/// Whether a path is read or written to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Methods {
    /// GET, and HEAD, for which tiny_http leaves out the body.
    Read,
    /// POST.
    Write,
}

impl Methods {
    /// The value of `Allow`.
    fn allow(self) -> &'static str {
        match self {
            Self::Read => "GET, HEAD, OPTIONS",
            Self::Write => "POST, OPTIONS",
        }
    }

    fn include(self, method: &str) -> bool {
        match self {
            Self::Read => matches!(method, "GET" | "HEAD" | "OPTIONS"),
            Self::Write => matches!(method, "POST" | "OPTIONS"),
        }
    }
}

/// Who may use a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Anyone,
    /// Who has a token of role admin or service; anyone with `API_AUTH=off`.
    Backends,
}

/// A path, and what is needed to use it.
pub(super) struct Route {
    path: &'static str,
    methods: Methods,
    access: Access,
    pub(super) handler: Handler,
}

impl Route {
    const fn new(path: &'static str, methods: Methods, access: Access, handler: Handler) -> Self {
        Self { path, methods, access, handler }
    }

    /// The route of a path, which is compared byte for byte.
    ///
    /// # Errors
    /// The 404.
    pub(super) fn of(path: &str) -> Result<&'static Self, Response> {
        ROUTES
            .iter()
            .find(|route| route.path == path)
            .ok_or_else(|| Response::error(404, "not_found", "there is nothing at this path"))
    }

    fn check_method(&self, method: &str) -> Result<(), Response> {
        let allow = self.methods.allow();
        if self.methods.include(method) {
            return Ok(());
        }
        let message = format!("{method:?} is not allowed here, {allow} are");
        Err(Response::error(405, "method_not_allowed", &message).with_header("Allow", allow))
    }

    fn preflight(&self) -> Response {
        let allow = self.methods.allow();
        cors::preflight(allow)
            .into_iter()
            .fold(Response::empty(204), |response, (name, value)| response.with_header(name, value))
            .with_header("Allow", allow)
    }
}

/// All paths but that of the WebSocket.
static ROUTES: [Route; 6] = [
    Route::new("/health", Methods::Read, Access::Anyone, Handlers::health),
    Route::new("/ready", Methods::Read, Access::Anyone, Handlers::ready),
    Route::new(NOTIFY_PATH, Methods::Write, Access::Backends, Handlers::notify),
    Route::new("/admin/clients", Methods::Read, Access::Backends, Handlers::clients),
    Route::new("/metrics", Methods::Read, Access::Backends, Handlers::metrics),
    Route::new("/console", Methods::Read, Access::Anyone, |_, _| console::page()),
];

/// Lets a request pass, or answers it, by its head alone.
pub(crate) struct RequestGuard {
    pub(crate) config: Arc<Config>,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) counters: Counters,
}

impl RequestGuard {
    /// Checks path, method, token, role and what is announced of a body; returns whose token it was,
    /// `None` where none was asked for. `number` and `peer` of the connection are for the log.
    ///
    /// # Errors
    /// The response where no handler is needed: an error, or that to a preflight.
    pub(crate) fn check(
        &self,
        head: &Head,
        number: u64,
        peer: SocketAddr,
    ) -> Result<Option<Identity>, Response> {
        let route = Route::of(head.path())?;
        route.check_method(head.method())?;
        let is_preflight = head.method() == "OPTIONS";
        let identity = if route.access == Access::Anyone || is_preflight || !self.config.api_auth {
            None
        } else {
            Some(self.authorize(head, number, peer).inspect_err(|refusal| {
                if route.path == NOTIFY_PATH {
                    let result = NotifyResult::of_status(refusal.status());
                    self.counters.notify_requests.count(result);
                }
            })?)
        };
        self.check_body(head)?;
        if is_preflight { Err(route.preflight()) } else { Ok(identity) }
    }

    /// The caller, of role admin or service.
    fn authorize(&self, head: &Head, number: u64, peer: SocketAddr) -> Result<Identity, Response> {
        let identity = head
            .header("authorization")
            .and_then(bearer)
            .ok_or(TokenError::Missing)
            .and_then(|token| self.verifier.verify(token))
            .map_err(|error| {
                log::info!(conn = number, peer:%, reason:% = error; "token refused");
                Response::unauthorized(error.code(), error.client_text())
            })?;
        if !identity.role.may_call_api() {
            log::info!(
                conn = number, peer:%, user = identity.user_id, role = identity.role;
                "role refused"
            );
            return Err(Response::error(403, "forbidden", "role is not admin or service"));
        }
        Ok(identity)
    }

    /// Only POST has a body here, and `Expect` says something about a body only.
    fn check_body(&self, head: &Head) -> Result<(), Response> {
        let announced = head.content_length().unwrap_or(0);
        let most = self.config.max_body_bytes;
        if announced == 0 {
            return Ok(());
        }
        if head.method() != "POST" {
            let message = format!("{} has no body here", head.method());
            return Err(Response::error(400, "bad_request", &message));
        }
        if usize::try_from(announced).map_or(true, |announced| announced > most) {
            let message = format!("body has {announced} bytes, at most {most} are taken");
            return Err(Response::error(413, "payload_too_large", &message));
        }
        if head.header("expect").is_some_and(|expect| !expect.eq_ignore_ascii_case("100-continue"))
        {
            return Err(Response::error(417, "expectation_failed", "Expect is not 100-continue"));
        }
        Ok(())
    }
}
