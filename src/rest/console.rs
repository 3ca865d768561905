//! `GET /console`: one self-contained page under a strict Content-Security-Policy (level 3).

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::http::Response;

const PAGE: &str = include_str!("console.html");

/// Only the page's own script and style run, known by their hashes. `connect-src 'self'` covers `ws:` and
/// `wss:` of the same host; the data image is the page's icon. Trusted types forbid the script to turn
/// text into markup.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        hash(content("script")),
        hash(content("style")),
    )
});

/// The page with its headers.
pub fn page() -> Response {
    Response::new(200, "text/html; charset=utf-8", PAGE)
        .with_header("Content-Security-Policy", POLICY.as_str())
        .with_header("X-Content-Type-Options", "nosniff")
        .with_header("X-Frame-Options", "DENY")
        .with_header("Referrer-Policy", "no-referrer")
        .with_header("Cross-Origin-Opener-Policy", "same-origin")
        .with_header("Cross-Origin-Resource-Policy", "same-origin")
        .with_header("Cache-Control", "no-store")
}

/// What stands in the page's only element of this name without attributes; empty, and then refused by
/// the browser, when there is none.
fn content(element: &str) -> &'static str {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let inside =
        PAGE.split_once(open.as_str()).and_then(|(_, rest)| rest.split_once(close.as_str()));
    inside.map_or("", |(inside, _)| inside)
}

fn hash(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style_and_no_inline_ones() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
            assert!(!content(element).is_empty(), "{element}");
        }
        // Browsers hash the text after they have turned CRLF into LF.
        assert!(!PAGE.contains('\r'));
        for inline in [
            " style=\"",
            " onclick=\"",
            " onload=\"",
            "innerHTML",
            "localStorage",
            "sessionStorage",
        ] {
            assert!(!PAGE.contains(inline), "{inline}");
        }
    }

    #[test]
    fn hashes_are_those_of_csp() {
        // The example of CSP level 3, section 8.3.
        assert_eq!(
            hash("alert('Hello, world.');"),
            "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng="
        );
    }
}
