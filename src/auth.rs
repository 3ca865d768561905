//! Token → claims → [`Identity`] (DESIGN section 4).

use std::time::SystemTime;

/// Who a connection or a request belongs to; checked, so that it can be trusted from here on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `sub`, else `user_id`, else `id`.
    pub user_id: String,
    /// `role` in lower case; empty when the token has none.
    pub role: String,
    /// `seller_id`, else `id_seller`, else `reference_id` of role seller.
    pub seller_id: Option<String>,
    /// `id_client`, else `reference_id` of role client.
    pub client_id: Option<String>,
    /// `exp`.
    pub expires_at: SystemTime,
}

impl Identity {
    /// Whether the role is admin.
    pub fn is_admin(&self) -> bool {
        self.role == "admin"
    }
}
