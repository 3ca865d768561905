//! Authentication (whose is a token?) and authorization (may they join this room?). The second is decided
//! by rules over the token's claims, or by asking a backend.

mod backend;
mod role;
mod rules;
mod token;

use std::io;

use crate::config::RoomPolicy;
use crate::protocol::{Room, RoomKind};
use crate::runtime::threads::Threads;

use backend::Backend;
pub use backend::BackendStats;
pub use role::Role;
use rules::permits;
pub use token::{Identity, MAX_TOKEN_BYTES, TokenError, Verifier, VerifierError, bearer};

/// The answer to a join, or to a broadcast into a room that the sender is not in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The identity may join.
    Allowed,
    /// It may not: `not_authorized`.
    Denied,
    /// The backend failed or did not answer in time: `server_error`.
    Failed,
}

/// Decides who may join a room. Clones share one backend; its threads end when the last clone is dropped.
#[derive(Clone)]
pub struct Authorizer(Judge);

#[derive(Clone)]
enum Judge {
    Rules(RoomPolicy),
    Backend(Backend),
}

impl Authorizer {
    /// Decides by the claims alone.
    pub fn rules(policy: RoomPolicy) -> Self {
        Self(Judge::Rules(policy))
    }

    /// Asks the backend at `url`, a checked `BACKEND_URL`, on threads named `authz…`: one that
    /// keeps the answers, and up to [`BACKEND_CALLS`](crate::config::BACKEND_CALLS) that make the calls.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn backend(url: &str, threads: &Threads) -> io::Result<Self> {
        Backend::over_http(url, threads).map(|backend| Self(Judge::Backend(backend)))
    }

    /// Whether this identity may join this room. With a backend it blocks up to [`BACKEND_TIMEOUT`](crate::config::BACKEND_TIMEOUT);
    /// with rules it is instant. It
    /// gives up, and says [`Verdict::Failed`], when `give_up` says that nobody waits for the answer any more.
    pub fn may_join(
        &self,
        identity: &Identity,
        room: &Room,
        give_up: impl Fn() -> bool,
    ) -> Verdict {
        match &self.0 {
            Judge::Rules(policy) => verdict(permits(*policy, identity, room)),
            // Admins were put into this room when they connected, so the backend is not asked.
            Judge::Backend(_) if identity.is_admin() && room.kind() == RoomKind::Admins => {
                Verdict::Allowed
            }
            // `.` and `..` as a path segment: a proxy in front of the backend could resolve them, encoded
            // or not, and ask about another path. No real id looks like this.
            Judge::Backend(_) if has_dot_segment(room) => Verdict::Denied,
            Judge::Backend(backend) => backend.ask(&identity.user_id, room, give_up),
        }
    }

    /// Whether [`Self::may_join`] answers without a call to a backend. Only where it does not is it worth
    /// asking the hub first whether the connection is in the room already.
    pub fn is_local(&self) -> bool {
        matches!(self.0, Judge::Rules(_))
    }

    /// Counts and durations of backend calls; `None` without a backend.
    pub fn stats(&self) -> Option<&BackendStats> {
        match &self.0 {
            Judge::Rules(_) => None,
            Judge::Backend(backend) => Some(backend.stats()),
        }
    }
}

fn verdict(allowed: bool) -> Verdict {
    if allowed { Verdict::Allowed } else { Verdict::Denied }
}

fn has_dot_segment(room: &Room) -> bool {
    matches!(room.kind(), RoomKind::Order("." | "..") | RoomKind::Seller("." | ".."))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::rules::tests::{identity, room};
    use super::*;

    fn never() -> bool {
        false
    }

    #[test]
    fn rules_are_instant_and_local() {
        let authorizer = Authorizer::rules(RoomPolicy::Open);
        assert!(authorizer.is_local());
        assert!(authorizer.stats().is_none());
        assert_eq!(authorizer.may_join(&identity(""), &room("lobby"), never), Verdict::Allowed);
        assert_eq!(authorizer.may_join(&identity(""), &room("user-2"), never), Verdict::Denied);
    }

    #[test]
    fn what_no_backend_is_asked() {
        // Nothing listens there, so that a call fails.
        let authorizer = Authorizer::backend("http://127.0.0.1:1", &Threads::default()).unwrap();
        assert!(!authorizer.is_local());
        assert_eq!(
            authorizer.may_join(&identity("admin"), &room("admins"), never),
            Verdict::Allowed
        );
        assert_eq!(
            authorizer.may_join(&identity("client"), &room("admins"), never),
            Verdict::Failed
        );
        assert_eq!(authorizer.may_join(&identity("admin"), &room("lobby"), never), Verdict::Failed);
        for name in ["order-.", "order-..", "seller-.", "seller-.."] {
            assert_eq!(
                authorizer.may_join(&identity("admin"), &room(name), never),
                Verdict::Denied
            );
        }
        assert_eq!(
            authorizer.may_join(&identity("admin"), &room("order-..."), never),
            Verdict::Failed
        );
    }
}
