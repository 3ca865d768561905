//! May this identity join this room: the rules over its claims, or a backend's word (DESIGN section 4).

#[cfg(test)]
mod against_http;
mod backend;
mod call;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::Identity;
use crate::config::{BACKEND_TIMEOUT, RoomPolicy};
use crate::protocol::{Room, RoomKind};
use crate::threads::Threads;

use backend::Backend;
pub use backend::BackendStats;

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

/// Decides who may join; clones share the backend, whose threads end with the last of them.
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

    /// Asks the backend at `url`, a checked `BACKEND_URL`, on threads named `authz…`: one from the
    /// start that keeps the answers, up to [`BACKEND_CALLS`](crate::config::BACKEND_CALLS) that call.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn backend(url: &str, threads: &Threads) -> io::Result<Self> {
        let caller = call::Caller::new(url);
        let call = Arc::new(move |question: &_, left: Duration| caller.call(question, left));
        Backend::start(call, backend::Terms::default(), threads).map(|it| Self(Judge::Backend(it)))
    }

    /// Whether this identity may join this room. With a backend it blocks up to [`BACKEND_TIMEOUT`];
    /// with rules it is instant.
    pub fn may_join(&self, identity: &Identity, room: &Room) -> Verdict {
        match &self.0 {
            Judge::Rules(policy) => verdict(permits(*policy, identity, room)),
            // Admins are in this room from the connect on, whatever the backend thinks.
            Judge::Backend(_) if identity.is_admin() && room.kind() == RoomKind::Admins => {
                Verdict::Allowed
            }
            // Encoded or not, a proxy may resolve the dots and ask for another path; no such id exists.
            Judge::Backend(_) if has_dot_segment(room) => Verdict::Denied,
            Judge::Backend(backend) => backend.ask(&identity.user_id, room),
        }
    }

    /// Whether [`Self::may_join`] is instant, so that nothing is gained by asking the hub first whether
    /// the connection is in the room already.
    pub fn is_local(&self) -> bool {
        matches!(self.0, Judge::Rules(_))
    }

    /// Counts of the backend's calls, when there is a backend.
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

/// The table of DESIGN section 4.
pub fn permits(policy: RoomPolicy, identity: &Identity, room: &Room) -> bool {
    if identity.is_admin() {
        return true;
    }
    let open = policy == RoomPolicy::Open;
    let is_user = |id: &str| identity.user_id == id;
    match room.kind() {
        RoomKind::Order(id) | RoomKind::User(id) => is_user(id),
        RoomKind::Seller(id) => {
            identity.seller_id.as_deref() == Some(id) || (open && identity.role == "seller")
        }
        RoomKind::Client(id) => {
            is_user(id)
                || identity.client_id.as_deref() == Some(id)
                || (open && identity.role == "client")
        }
        RoomKind::Admins => false,
        RoomKind::Other => open,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// User 1, seller 2, client 3.
    fn identity(role: &str) -> Identity {
        Identity {
            user_id: "1".into(),
            role: role.into(),
            seller_id: Some("2".into()),
            client_id: Some("3".into()),
            expires_at: SystemTime::UNIX_EPOCH,
        }
    }

    fn room(name: &str) -> Room {
        Room::parse(name).unwrap()
    }

    #[test]
    fn the_table_cell_by_cell() {
        // Room; who may join it when open, and when strict, out of all of ROLES.
        const ROLES: [&str; 5] = ["", "client", "seller", "service", "admin"];
        let all: &[&str] = &ROLES;
        let admin: &[&str] = &["admin"];
        let rows: [(&str, &[&str], &[&str]); 19] = [
            ("order-1", all, all),
            ("order-2", admin, admin),
            ("order-3", admin, admin),
            ("order-1-1", admin, admin),
            ("seller-1", &["seller", "admin"], admin),
            ("seller-2", all, all),
            ("seller-3", &["seller", "admin"], admin),
            ("client-1", all, all),
            ("client-2", &["client", "admin"], admin),
            ("client-3", all, all),
            ("client-9", &["client", "admin"], admin),
            ("user-1", all, all),
            ("user-2", admin, admin),
            ("user-3", admin, admin),
            ("admins", admin, admin),
            ("admins-1", all, admin),
            ("lobby", all, admin),
            ("orders", all, admin),
            ("Order-1", all, admin),
        ];
        for (name, open, strict) in rows {
            for role in ROLES {
                let may = |policy| permits(policy, &identity(role), &room(name));
                assert_eq!(may(RoomPolicy::Open), open.contains(&role), "open {name} {role}");
                assert_eq!(may(RoomPolicy::Strict), strict.contains(&role), "strict {name} {role}");
            }
        }
    }

    #[test]
    fn claims_that_are_absent_match_nothing() {
        let identity = Identity { seller_id: None, client_id: None, ..identity("") };
        for name in ["seller-2", "client-3"] {
            assert!(!permits(RoomPolicy::Open, &identity, &room(name)), "{name}");
        }
    }

    #[test]
    fn rules_are_instant_and_local() {
        let authorizer = Authorizer::rules(RoomPolicy::Open);
        assert!(authorizer.is_local());
        assert!(authorizer.stats().is_none());
        assert_eq!(authorizer.may_join(&identity(""), &room("lobby")), Verdict::Allowed);
        assert_eq!(authorizer.may_join(&identity(""), &room("user-2")), Verdict::Denied);
    }

    #[test]
    fn what_no_backend_is_asked() {
        // Nothing listens there, so that a call fails.
        let authorizer = Authorizer::backend("http://127.0.0.1:1", &Threads::default()).unwrap();
        assert!(!authorizer.is_local());
        assert_eq!(authorizer.may_join(&identity("admin"), &room("admins")), Verdict::Allowed);
        assert_eq!(authorizer.may_join(&identity("client"), &room("admins")), Verdict::Failed);
        assert_eq!(authorizer.may_join(&identity("admin"), &room("lobby")), Verdict::Failed);
        for name in ["order-.", "order-..", "seller-.", "seller-.."] {
            assert_eq!(authorizer.may_join(&identity("admin"), &room(name)), Verdict::Denied);
        }
        assert_eq!(authorizer.may_join(&identity("admin"), &room("order-...")), Verdict::Failed);
    }
}
