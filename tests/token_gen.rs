//! Verifies that token_gen prints a token that others than jsonwebtoken find right, or one clear line.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use support::{SECRET, unix_now};

/// A directory without a `.env`, unless the test writes one.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("token_gen-{name}"));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn with_env_file(name: &str, content: &str) -> Self {
        let place = Self::new(name);
        fs::write(place.0.join(".env"), content).unwrap();
        place
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_token_gen"));
        command.args(arguments).env_remove("JWT_SECRET").current_dir(&self.0);
        command
    }
}

fn run(name: &str, arguments: &[&str]) -> Output {
    Place::new(name).command(arguments).env("JWT_SECRET", SECRET).output().unwrap()
}

/// The only line of stdout; nothing may stand on stderr.
fn printed(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let line = text.strip_suffix('\n').unwrap();
    assert!(!line.contains(char::is_whitespace), "{text:?}");
    line.to_owned()
}

/// The only line of stderr, after checking that there was no output and that `code` came back.
fn complaint(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty());
    assert_eq!(stderr.lines().count(), 1, "{stderr:?}");
    stderr
}

/// Signature of `signed` by OpenSSL, in URL-safe base64 without padding.
fn openssl_signature(signed: &str, digest: &str, secret: &str) -> String {
    let key: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mac = pipe(
        Command::new("openssl")
            .args(["dgst", digest, "-binary", "-mac", "HMAC", "-macopt"])
            .arg(format!("hexkey:{key}")),
        signed.as_bytes(),
    );
    let base64 = pipe(Command::new("openssl").args(["base64", "-A"]), &mac);
    let base64 = String::from_utf8(base64).unwrap();
    base64.trim_end_matches('=').replace('+', "-").replace('/', "_")
}

fn pipe(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(input).unwrap();
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn part(base64_url: &str) -> Value {
    let mut base64 = base64_url.replace('-', "+").replace('_', "/");
    while !base64.len().is_multiple_of(4) {
        base64.push('=');
    }
    let json = pipe(Command::new("openssl").args(["base64", "-A", "-d"]), base64.as_bytes());
    serde_json::from_slice(&json).unwrap()
}

/// Header and claims, once OpenSSL has confirmed the signature.
fn verified(token: &str, digest: &str, secret: &str) -> (Value, Value) {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    assert_eq!(signature, openssl_signature(signed, digest, secret));
    let (header, claims) = signed.split_once('.').unwrap();
    (part(header), part(claims))
}

fn lifetime(arguments: &[&str], name: &str) -> u64 {
    let (_, claims) = verified(&printed(&run(name, arguments)), "-sha256", SECRET);
    claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap()
}

#[test]
fn defaults() {
    let before = unix_now();
    let token = printed(&run("defaults", &[]));
    let (header, claims) = verified(&token, "-sha256", SECRET);
    assert_eq!(header, json!({"typ": "JWT", "alg": "HS256"}));
    let iat = claims["iat"].as_u64().unwrap();
    assert!((before..=unix_now()).contains(&iat));
    let expected = json!({
        "sub": "user-123", "role": "client", "iat": iat, "exp": iat + 24 * 3600
    });
    assert_eq!(claims, expected);
}

#[test]
fn every_claim() {
    let arguments =
        ["--user", "u-1", "--role=Admin", "--seller-id", "5", "--client-id", "7", "--ttl", "15m"];
    let (_, claims) = verified(&printed(&run("claims", &arguments)), "-sha256", SECRET);
    let iat = claims["iat"].as_u64().unwrap();
    let expected = json!({
        "sub": "u-1", "role": "Admin", "seller_id": "5", "id_client": "7",
        "iat": iat, "exp": iat + 900
    });
    assert_eq!(claims, expected);
}

#[test]
fn every_algorithm() {
    for (alg, digest) in [("HS256", "-sha256"), ("HS384", "-sha384"), ("HS512", "-sha512")] {
        let token = printed(&run(alg, &["--alg", alg]));
        assert_eq!(verified(&token, digest, SECRET).0["alg"], alg);
    }
}

#[test]
fn every_way_to_write_a_ttl() {
    for (ttl, seconds) in [("90", 90), ("1s", 1), ("15m", 900), ("876000h", 3_153_600_000)] {
        assert_eq!(lifetime(&["--ttl", ttl], "ttl"), seconds);
    }
}

#[test]
fn bad_arguments_are_named() {
    let long = "x".repeat(129);
    for (arguments, named) in [
        (vec!["--ttl", "0"], "--ttl \"0\""),
        (vec!["--ttl", "0h"], "--ttl \"0h\""),
        (vec!["--ttl", "250ms"], "--ttl \"250ms\""),
        (vec!["--ttl", "-5"], "--ttl \"-5\""),
        (vec!["--ttl", "+5"], "--ttl \"+5\""),
        (vec!["--ttl", "1.5h"], "--ttl \"1.5h\""),
        (vec!["--ttl", "876001h"], "--ttl \"876001h\""),
        (vec!["--ttl", "h"], "--ttl \"h\""),
        (vec!["--ttl", ""], "--ttl \"\""),
        (vec!["--ttl", "5é"], "--ttl \"5é\""),
        (vec!["--ttl", "5124095576030432h"], "--ttl \"5124095576030432h\""),
        (vec!["--ttl", "18446744073709551615"], "--ttl \"18446744073709551615\""),
        (vec!["--ttl"], "--ttl"),
        (vec!["--alg", "none"], "--alg \"none\""),
        (vec!["--alg", "hs256"], "--alg \"hs256\""),
        (vec!["--alg", "RS256"], "--alg \"RS256\""),
        (vec!["--user", ""], "--user \"\""),
        (vec!["--user", "two words"], "--user \"two words\""),
        (vec!["--user", "two\nlines"], "--user \"two\\nlines\""),
        (vec!["--user", &long], "--user \"xxx"),
        (vec!["--user", "josé"], "--user \"josé\": expected 1 to 128 visible ASCII characters"),
        (vec!["--seller-id", "é"], "--seller-id \"é\""),
        (vec!["--role", ""], "--role \"\""),
        (vec!["--nonsense"], "--nonsense"),
        (vec!["--non\nsense"], "--non"),
        (vec!["-x"], "-x"),
        (vec!["extra"], "extra"),
    ] {
        let line = complaint(&run("bad", &arguments), 2);
        assert!(line.starts_with("token_gen: ") && line.contains(named), "{line}");
    }
}

#[test]
fn a_missing_or_empty_secret_is_named() {
    let place = Place::with_env_file("none", "OTHER=1\n");
    let line = complaint(&place.command(&[]).output().unwrap(), 1);
    assert!(line.contains("JWT_SECRET"), "{line}");
    let line = complaint(&place.command(&[]).env("JWT_SECRET", "").output().unwrap(), 1);
    assert!(line.contains("JWT_SECRET"), "{line}");
}

#[test]
fn the_secret_may_stand_in_a_file_and_the_environment_wins() {
    let place = Place::with_env_file("file", "# comment\nOTHER=1\nJWT_SECRET='from $the file'\n");
    let token = printed(&place.command(&[]).output().unwrap());
    verified(&token, "-sha256", "from $the file");
    let output = place.command(&[]).env("JWT_SECRET", SECRET).output().unwrap();
    verified(&printed(&output), "-sha256", SECRET);
    let line = complaint(&place.command(&[]).env("JWT_SECRET", "").output().unwrap(), 1);
    assert!(line.contains("JWT_SECRET"), "{line}");
}

#[test]
fn a_broken_file_is_named_without_its_content() {
    let place = Place::with_env_file("broken", "JWT_SECRET=hidden words and more\n");
    let line = complaint(&place.command(&[]).output().unwrap(), 1);
    assert!(line.contains(".env") && !line.contains("words"), "{line}");
}

#[test]
fn help_and_version_need_no_secret() {
    let place = Place::new("help");
    let help = place.command(&["--help"]).output().unwrap();
    assert!(help.status.success() && help.stderr.is_empty());
    let text = String::from_utf8(help.stdout).unwrap();
    for option in ["--user", "--role", "--seller-id", "--client-id", "--ttl", "--alg"] {
        assert!(text.contains(option), "{option}");
    }
    let version = place.command(&["--version"]).output().unwrap();
    assert!(version.status.success() && version.stderr.is_empty());
    let expected = concat!("token_gen ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8(version.stdout).unwrap(), expected);
}

#[test]
fn a_full_or_closed_stdout_is_an_error_and_no_panic() {
    let place = Place::new("stdout");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    for stdout in [Stdio::from(full), Stdio::from(closed)] {
        let process = place
            .command(&[])
            .env("JWT_SECRET", SECRET)
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let line = complaint(&process.wait_with_output().unwrap(), 1);
        assert!(line.contains("stdout"), "{line}");
    }
}
