//! Who may join which room, by the claims alone.

use super::Identity;
use crate::config::RoomPolicy;
use crate::protocol::{Room, RoomKind};

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
}
