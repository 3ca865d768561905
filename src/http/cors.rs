//! CORS headers (the Fetch standard, section 3.3) as `ALLOWED_ORIGINS` has them.

use std::borrow::Cow;

use crate::config::AllowedOrigins;

/// A header to add.
pub type Header = (&'static str, Cow<'static, str>);

/// The headers of every response; `origin` is that of the request.
pub fn headers(allowed: &AllowedOrigins, origin: Option<&str>) -> Vec<Header> {
    let allow = |value| ("Access-Control-Allow-Origin", value);
    match (allowed, origin) {
        (AllowedOrigins::Any, _) => vec![allow("*".into())],
        (AllowedOrigins::List(_), Some(origin)) if allowed.allows(Some(origin)) => {
            vec![allow(origin.to_owned().into()), ("Vary", "Origin".into())]
        }
        (AllowedOrigins::List(_), _) => vec![("Vary", "Origin".into())],
    }
}

/// What else a preflight is told. The token comes in a header that scripts set, so credentials
/// (cookies) are not allowed.
pub fn preflight(methods: &'static str) -> [Header; 3] {
    [
        ("Access-Control-Allow-Methods", methods.into()),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type".into()),
        ("Access-Control-Max-Age", "600".into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_origins_are_allowed_and_caches_are_told() {
        let list = AllowedOrigins::List(vec!["https://shop.example".into()]);
        let names = |headers: Vec<Header>| {
            headers.into_iter().map(|(n, v)| format!("{n}: {v}")).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(names(headers(&AllowedOrigins::Any, None)), "Access-Control-Allow-Origin: *");
        assert_eq!(
            names(headers(&list, Some("https://shop.example"))),
            "Access-Control-Allow-Origin: https://shop.example; Vary: Origin"
        );
        assert_eq!(names(headers(&list, Some("https://evil.example"))), "Vary: Origin");
        assert_eq!(names(headers(&list, None)), "Vary: Origin");
    }
}
