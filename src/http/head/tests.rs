//! Verifies which request heads are taken, and how the others are refused.

use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Head, HeadError> {
    Head::parse(text.as_bytes()).map(|head| head.unwrap().0)
}

fn status(text: &str) -> u16 {
    match Head::parse(text.as_bytes()) {
        Err(error) => Response::from(&error).status(),
        Ok(Some(_)) => 200,
        Ok(None) => 0,
    }
}

fn written(head: &Head) -> Vec<u8> {
    let version = match head.version() {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
    };
    let mut out = format!("{} {} {version}\r\n", head.method(), head.target());
    for (name, value) in head.headers() {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str("\r\n");
    out.into_bytes()
}

#[test]
fn the_parts_are_found() {
    let text = "\r\nGET /ws?token=a?b HTTP/1.1\r\nhOst: shop.example:80\r\n\
                Connection: keep-alive ,\tUpgrade\r\nUser-Agent:  ä b \r\n\r\nrest";
    let (head, length) = Head::parse(text.as_bytes()).unwrap().unwrap();
    assert_eq!(text.len() - length, "rest".len());
    assert_eq!((head.method(), head.target()), ("GET", "/ws?token=a?b"));
    assert_eq!((head.path(), head.query()), ("/ws", Some("token=a?b")));
    assert_eq!(head.header("HOST"), Some("shop.example:80"));
    assert_eq!(head.header("user-agent"), Some("ä b"));
    assert!(head.has_token("connection", "upgrade") && !head.has_token("connection", "up"));
    assert!(head.keeps_alive());
    assert_eq!((head.version(), head.content_length()), (Version::Http11, None));
    assert!(!parse("GET / HTTP/1.0\r\n\r\n").unwrap().keeps_alive());
    assert!(
        !parse("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n").unwrap().keeps_alive()
    );
}

#[test]
fn absolute_targets_are_taken_for_their_path() {
    for (target, path, query) in [
        ("http://a/b?c", "/b", Some("c")),
        ("HTTPS://a:1", "/", None),
        ("http://a?x=/", "/", Some("x=/")),
        ("/http://a/b", "/http://a/b", None),
        ("//a", "//a", None),
    ] {
        let head = parse(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
        assert_eq!((head.path(), head.query()), (path, query), "{target}");
    }
    for target in ["*", "a:80", "ftp://a/", "http:///b", "http://u@a/", "/a#b", "/ä", "a"] {
        assert_eq!(status(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")), 400, "{target}");
    }
}

#[test]
fn each_kind_of_bad_head_has_its_status() {
    let get = |rest: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{rest}\r\n");
    let post = |rest: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{rest}\r\n");
    for (text, expected) in [
        (get(""), 200),
        (get("X:\r\n"), 200),
        (get(" folded\r\n"), 400),
        (get("A: b\r\n\tfolded\r\n"), 400),
        (get("A : b\r\n"), 400),
        (get("A\r\n"), 400),
        (get(": b\r\n"), 400),
        (get("A: b\rc\r\n"), 400),
        (get("A: b\0c\r\n"), 400),
        (get("A: b\x7fc\r\n"), 400),
        (get("Ä: b\r\n"), 400),
        (get("A: b\n"), 400),
        (get("Host: a\r\n"), 400),
        (get("Authorization: a\r\nauthorization: a\r\n"), 400),
        ("GET / HTTP/1.1\n\n".into(), 400),
        ("GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".into(), 400),
        ("GET / HTTP/1.0\r\n\r\n".into(), 200),
        ("GET / HTTP/1.2\r\n\r\n".into(), 505),
        ("GET / HTTP/2.0\r\n\r\n".into(), 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
        ("GET / HTTP/0.9\r\n\r\n".into(), 505),
        ("GET / HTTP/11.1\r\n\r\n".into(), 400),
        ("GET / http/1.1\r\n\r\n".into(), 400),
        ("GET /\r\n\r\n".into(), 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n".into(), 400),
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("\x16\x03\x01\x02".into(), 400),
        (post(""), 411),
        (post("Content-Length: 5\r\n"), 200),
        (post("Content-Length: 99999999999999999999999\r\n"), 200),
        (post("Content-Length: 5\r\nContent-Length: 5\r\n"), 400),
        (post("Content-Length: 5\r\ncontent-length: 6\r\n"), 400),
        (post("Content-Length: 5, 5\r\n"), 400),
        (post("Content-Length: -5\r\n"), 400),
        (post("Content-Length: +5\r\n"), 400),
        (post("Content-Length: 0x5\r\n"), 400),
        (post("Content-Length: 5 5\r\n"), 400),
        (post("Content-Length:\r\n"), 400),
        (post("Content-Length : 5\r\n"), 400),
        (post("Transfer-Encoding: chunked\r\n"), 501),
        (post("Transfer-Encoding: identity\r\n"), 501),
        (post("Transfer-Encoding:\r\n"), 501),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), 400),
        (post("Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n"), 400),
        (get("Transfer-Encoding: chunked\r\n"), 501),
    ] {
        assert_eq!(status(&text), expected, "{text:?}");
    }
}

#[test]
fn a_huge_length_stays_huge() {
    let head = parse("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n");
    assert_eq!(head.unwrap().content_length(), Some(u64::MAX));
}

#[test]
fn the_limits_are_exact() {
    let with_headers = |n| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(n - 1));
    assert_eq!(status(&with_headers(MAX_HEADERS)), 200);
    assert_eq!(status(&with_headers(MAX_HEADERS + 1)), 431);
    let of_length = |n: usize| {
        let bare = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(n - bare))
    };
    assert_eq!(status(&of_length(MAX_HEAD_BYTES)), 200);
    assert_eq!(status(&of_length(MAX_HEAD_BYTES + 1)), 431);
    assert_eq!(status(of_length(2 * MAX_HEAD_BYTES).get(..MAX_HEAD_BYTES).unwrap()), 431);
    assert_eq!(status(&format!("GET /{}", "a".repeat(8000))), 0);
    assert_eq!(status(&format!("GET /{}", "a".repeat(MAX_REQUEST_LINE_BYTES))), 414);
    assert_eq!(status(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(9000))), 414);
}

#[test]
fn errors_name_the_thing_and_the_value() {
    let message = |text: &str| parse(text).unwrap_err().to_string();
    assert_eq!(
        message("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n"),
        "Content-Length is \"-5\", expected digits only"
    );
    assert_eq!(
        message("GET / HTTP/3.0\r\n\r\n"),
        "version is \"HTTP/3.0\", expected HTTP/1.1 or HTTP/1.0"
    );
}

fn heads() -> impl Strategy<Value = String> {
    let header = ("[A-Za-z!-]{1,8}", "[ -~\t]{0,20}").prop_map(|(n, v)| format!("{n}:{v}\r\n"));
    let lines = proptest::collection::vec(header, 0..6);
    ("(\r\n)?[A-Z]{1,6}", "(http://a)?/[!-~]{0,20}", "HTTP/1\\.[01]", lines).prop_map(
        |(method, target, version, lines)| {
            format!("{method} {target} {version}\r\nHost: a\r\n{}\r\n", lines.concat())
        },
    )
}

proptest! {
    #[test]
    fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Head::parse(&bytes);
    }

    #[test]
    fn mangled_heads_are_judged(head in heads(), at in 0usize..200, byte in any::<u8>()) {
        let mut bytes = head.into_bytes();
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        if let Ok(Some((head, length))) = Head::parse(&bytes) {
            prop_assert!(length <= bytes.len());
            prop_assert!(head.path().starts_with('/'));
        }
    }

    #[test]
    fn a_prefix_is_incomplete_and_an_accepted_head_comes_back_the_same(head in heads()) {
        let bytes = head.as_bytes();
        if let Ok(Some((head, length))) = Head::parse(bytes) {
            for end in 0..length {
                prop_assert_eq!(Head::parse(bytes.get(..end).unwrap()), Ok(None));
            }
            let (again, _) = Head::parse(&written(&head)).unwrap().unwrap();
            prop_assert_eq!(written(&again), written(&head));
            prop_assert_eq!(again.content_length(), head.content_length());
        }
    }
}
