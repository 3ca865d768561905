//! Prints a token for trying out the service, signed with its `JWT_SECRET`.

use std::borrow::Cow;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use lexopt::{Arg, Parser, ValueExt};
use realtime_service::config::{MAX_ID_BYTES, Variables, parse_duration};
use realtime_service::protocol::Id;
use serde::Serialize;

const HELP: &str = "\
Prints a token for realtime_service, signed with JWT_SECRET from the environment, else from .env.

Usage: token_gen [OPTIONS]

Options:
  --user <ID>         user id, claim sub [default: user-123]
  --role <ROLE>       role, e.g. client, seller, admin, service [default: client]
  --seller-id <ID>    seller id, claim seller_id [default: none]
  --client-id <ID>    client id, claim id_client [default: none]
  --ttl <TIME>        time to live from now: 90, 90s, 15m, 24h [default: 24h]
  --alg <NAME>        HS256, HS384 or HS512 [default: HS256]
  -h, --help          print this help
  -V, --version       print the version

Exit code: 0, or 1 without a JWT_SECRET, or 2 for a bad argument.
";

const VERSION: &str = concat!("token_gen ", env!("CARGO_PKG_VERSION"), "\n");

/// A hundred years; longer times could overflow the integers of those who read the claims.
const MAX_TTL_SECONDS: u64 = 876_000 * 3600;

fn main() -> ExitCode {
    match run() {
        Ok(output) => print(&output),
        Err(failure) => fail(&failure),
    }
}

fn run() -> Result<Cow<'static, str>, Failure> {
    match Request::parse(Parser::from_env())? {
        Request::Help => Ok(HELP.into()),
        Request::Version => Ok(VERSION.into()),
        Request::Token(options) => Ok(options.token(&secret()?)?.into()),
    }
}

/// println! would panic when stdout is closed.
fn print(output: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(output.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&Failure::Other(format!("cannot write to stdout: {error}"))),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    // If stderr is closed, the exit code is all that tells.
    let _ = writeln!(io::stderr(), "token_gen: {failure}");
    match failure {
        Failure::Argument(_) => ExitCode::from(2),
        Failure::Other(_) => ExitCode::FAILURE,
    }
}

/// Why there is no token, in one line.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The command line is wrong.
    #[error("{0} (see --help)")]
    Argument(String),
    /// Something is wrong with the secret, the clock or stdout.
    #[error("{0}")]
    Other(String),
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        // Without control characters, since some of lexopt's messages repeat the argument as it is.
        Self::Argument(error.to_string().replace(char::is_control, "?"))
    }
}

/// What the command line asks for.
enum Request {
    Help,
    Version,
    Token(Options),
}

impl Request {
    fn parse(mut arguments: Parser) -> Result<Self, Failure> {
        let mut options = Options::default();
        while let Some(argument) = arguments.next()? {
            match argument {
                Arg::Long("user") => options.user = id("--user", &mut arguments)?,
                Arg::Long("role") => options.role = role(&mut arguments)?,
                Arg::Long("seller-id") => {
                    options.seller = Some(id("--seller-id", &mut arguments)?);
                }
                Arg::Long("client-id") => {
                    options.client = Some(id("--client-id", &mut arguments)?);
                }
                Arg::Long("ttl") => options.ttl_seconds = ttl_seconds(&text(&mut arguments)?)?,
                Arg::Long("alg") => options.algorithm = algorithm(&text(&mut arguments)?)?,
                Arg::Short('h') | Arg::Long("help") => return Ok(Self::Help),
                Arg::Short('V') | Arg::Long("version") => return Ok(Self::Version),
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(Self::Token(options))
    }
}

fn text(arguments: &mut Parser) -> Result<String, Failure> {
    Ok(arguments.value()?.string()?)
}

fn id(option: &str, arguments: &mut Parser) -> Result<String, Failure> {
    let id = text(arguments)?;
    match Id::parse(&id) {
        Ok(_) => Ok(id),
        Err(error) => Err(Failure::Argument(format!("bad {option} {id:?}: {error}"))),
    }
}

/// The service takes any text of at most 128 bytes as a role.
fn role(arguments: &mut Parser) -> Result<String, Failure> {
    let role = text(arguments)?;
    let is_visible = role.chars().all(|c| !c.is_whitespace() && !c.is_control());
    if is_visible && (1..=MAX_ID_BYTES).contains(&role.len()) {
        return Ok(role);
    }
    Err(Failure::Argument(format!(
        "bad --role {role:?}: expected 1 to {MAX_ID_BYTES} bytes of visible characters"
    )))
}

fn ttl_seconds(ttl: &str) -> Result<u64, Failure> {
    parse_duration(ttl)
        // `exp` is written in whole seconds.
        .filter(|ttl| ttl.subsec_nanos() == 0)
        .map(|ttl| ttl.as_secs())
        .filter(|seconds| (1..=MAX_TTL_SECONDS).contains(seconds))
        .ok_or_else(|| {
            Failure::Argument(format!(
                "bad --ttl {ttl:?}: expected seconds, or 90s, 15m, 24h, from 1s to 876000h"
            ))
        })
}

fn algorithm(name: &str) -> Result<Algorithm, Failure> {
    match name {
        "HS256" => Ok(Algorithm::HS256),
        "HS384" => Ok(Algorithm::HS384),
        "HS512" => Ok(Algorithm::HS512),
        _ => Err(Failure::Argument(format!("bad --alg {name:?}: expected HS256, HS384 or HS512"))),
    }
}

/// Whose token, for how long, signed how.
struct Options {
    user: String,
    role: String,
    seller: Option<String>,
    client: Option<String>,
    ttl_seconds: u64,
    algorithm: Algorithm,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            user: "user-123".to_owned(),
            role: "client".to_owned(),
            seller: None,
            client: None,
            ttl_seconds: 24 * 3600,
            algorithm: Algorithm::HS256,
        }
    }
}

impl Options {
    fn token(self, secret: &str) -> Result<String, Failure> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_err(|_| Failure::Other("the system's clock is before 1970".to_owned()))?
            .as_secs();
        let claims = Claims {
            iat: now,
            exp: now.saturating_add(self.ttl_seconds),
            sub: self.user,
            role: self.role,
            seller_id: self.seller,
            id_client: self.client,
        };
        let key = EncodingKey::from_secret(secret.as_bytes());
        jsonwebtoken::encode(&Header::new(self.algorithm), &claims, &key)
            .map(|token| token + "\n")
            .map_err(|error| Failure::Other(format!("cannot sign the token: {error}")))
    }
}

/// The claims that the service reads; all ids are strings.
#[derive(Serialize)]
struct Claims {
    sub: String,
    role: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    seller_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id_client: Option<String>,
    /// Seconds since 1970.
    iat: u64,
    /// Seconds since 1970.
    exp: u64,
}

/// `JWT_SECRET`, from where the service takes it.
fn secret() -> Result<String, Failure> {
    let variables = Variables::load().map_err(Failure::Other)?;
    variables.get("JWT_SECRET").filter(|secret| !secret.is_empty()).ok_or_else(|| {
        Failure::Other("JWT_SECRET is missing or empty: set it, or write it to .env".to_owned())
    })
}
