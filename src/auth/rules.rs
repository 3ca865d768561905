//! Who may join which room, by the claims alone.

use super::{Identity, Role};
use crate::config::RoomPolicy;
use crate::protocol::{Id, Room, RoomKind};

/// Whether an identity may join a room under this policy; admins may join all.
pub fn permits(policy: RoomPolicy, identity: &Identity, room: &Room) -> bool {
    if identity.is_admin() {
        return true;
    }
    let open = policy == RoomPolicy::Open;
    let is_user = |id: &str| identity.user_id == *id;
    let is_own = |claim: &Option<Id>, id: &str| claim.as_ref().is_some_and(|own| own == id);
    match room.kind() {
        RoomKind::Order(id) | RoomKind::User(id) => is_user(id),
        RoomKind::Seller(id) => {
            is_own(&identity.seller_id, id) || (open && identity.role == Role::Seller)
        }
        RoomKind::Client(id) => {
            is_user(id)
                || is_own(&identity.client_id, id)
                || (open && identity.role == Role::Client)
        }
        RoomKind::Admins => false,
        RoomKind::Other => open,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) mod tests {
    use std::time::SystemTime;

    use super::*;

    /// User 1, seller 2, client 3.
    pub(in crate::auth) fn identity(role: &str) -> Identity {
        Identity {
            user_id: Id::parse("1").unwrap(),
            role: role.into(),
            seller_id: Some(Id::parse("2").unwrap()),
            client_id: Some(Id::parse("3").unwrap()),
            expires_at: SystemTime::UNIX_EPOCH,
        }
    }

    pub(in crate::auth) fn room(name: &str) -> Room {
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
}
