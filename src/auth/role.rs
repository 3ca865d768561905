//! What a token's bearer is: the claim `role`.

use std::fmt;

use log::kv::{ToValue, Value};

/// The claim `role`, read without regard to upper and lower case. Any text is a role, but only four give
/// rights.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Role {
    /// The token has no role, or an empty one.
    #[default]
    None,
    /// `admin`: may join every room and call every endpoint.
    Admin,
    /// `service`: a backend; may call every endpoint.
    Service,
    /// `seller`.
    Seller,
    /// `client`.
    Client,
    /// Any other text, in lower case.
    Other(Box<str>),
}

impl Role {
    /// The role in lower case; empty for [`Role::None`].
    pub fn as_str(&self) -> &str {
        match self {
            Self::None => "",
            Self::Admin => "admin",
            Self::Service => "service",
            Self::Seller => "seller",
            Self::Client => "client",
            Self::Other(text) => text,
        }
    }

    /// Whether this role may notify, and read `/admin/clients` and `/metrics`.
    pub fn may_call_api(&self) -> bool {
        matches!(self, Self::Admin | Self::Service)
    }
}

impl From<&str> for Role {
    fn from(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        match text.as_str() {
            "" => Self::None,
            "admin" => Self::Admin,
            "service" => Self::Service,
            "seller" => Self::Seller,
            "client" => Self::Client,
            _ => Self::Other(text.into()),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ToValue for Role {
    fn to_value(&self) -> Value<'_> {
        Value::from(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_read_in_any_case_and_written_in_lower_case() {
        for (text, role) in [
            ("", Role::None),
            ("ADMIN", Role::Admin),
            ("Service", Role::Service),
            ("seller", Role::Seller),
            ("cLient", Role::Client),
            ("Courier É", Role::Other("courier É".into())),
        ] {
            assert_eq!(Role::from(text), role);
            assert_eq!(role.as_str(), text.to_ascii_lowercase());
        }
    }
}
