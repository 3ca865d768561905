//! The floor of REST: tiny_http behind a bare gate, with delivery to the room and nothing else.
//!
//! The gate is a thread per connection that reads a request whole, sends it over one of four
//! persistent connections to tiny_http on a Unix socket, and passes the answer on. No tokens, no
//! checks, no limits.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender};
use serde::Deserialize;
use serde_json::value::RawValue;
use tiny_http::{Request, Response, Server};

use crate::Fallible;
use crate::fanout::floor::{self, Message};

/// The argument, with a path for the Unix socket behind it, that makes this binary the REST floor.
pub(crate) const ARGUMENT: &str = "--rest-floor";

/// The threads that tiny_http keeps, so the connections that it serves at once.
const HOPS: usize = 4;
const READ_BYTES: usize = 32 * 1024;
const STACK_BYTES: usize = 128 * 1024;

type Rooms = Arc<Mutex<HashMap<String, Members>>>;
type Members = Vec<Arc<TcpStream>>;

#[derive(Deserialize)]
struct Notification<'a> {
    event: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
    room: &'a str,
}

/// Serves until it is killed; prints its address.
pub(crate) fn run(path: &str) -> Fallible<()> {
    let rooms = Rooms::default();
    let server = Arc::new(Server::http_unix(Path::new(path)).map_err(|error| error.to_string())?);
    for _ in 0..HOPS {
        let (server, rooms) = (Arc::clone(&server), Arc::clone(&rooms));
        thread::Builder::new().name("rest".to_owned()).spawn(move || serve(&server, &rooms))?;
    }
    let (give_back, hops) = crossbeam_channel::bounded(HOPS);
    for _ in 0..HOPS {
        give_back.send(UnixStream::connect(path)?)?;
    }
    let listener = floor::listen()?;
    println!("{}", listener.local_addr()?);
    for stream in listener.incoming() {
        let (stream, rooms) = (stream?, Arc::clone(&rooms));
        let (hops, give_back) = (hops.clone(), give_back.clone());
        let gate = move || {
            if let Err(error) = pass_requests(stream, &hops, &give_back, &rooms) {
                eprintln!("REST floor: {error}");
            }
        };
        thread::Builder::new().name("gate".to_owned()).stack_size(STACK_BYTES).spawn(gate)?;
    }
    Ok(())
}

fn lock(rooms: &Rooms) -> MutexGuard<'_, HashMap<String, Members>> {
    rooms.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The gate's side of one connection, until it ends or turns into a WebSocket.
fn pass_requests(
    mut stream: TcpStream,
    hops: &Receiver<UnixStream>,
    give_back: &Sender<UnixStream>,
    rooms: &Rooms,
) -> Fallible<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::with_capacity(READ_BYTES);
    let mut answer = Vec::with_capacity(READ_BYTES);
    loop {
        bytes.clear();
        if !read_unit(&mut stream, &mut bytes)? {
            return Ok(());
        }
        if bytes.starts_with(b"GET /ws ") {
            return join_room(stream, &bytes, rooms);
        }
        let mut hop = hops.recv()?;
        hop.write_all(&bytes)?;
        answer.clear();
        let answered = read_unit(&mut hop, &mut answer)?;
        give_back.send(hop)?;
        if !answered {
            return Err("tiny_http closed a connection".into());
        }
        stream.write_all(&answer)?;
    }
}

/// Reads a head and the body that it announces; false at the end of the stream, which may be a
/// reset.
fn read_unit(stream: &mut impl Read, bytes: &mut Vec<u8>) -> Fallible<bool> {
    let mut chunk = [0; READ_BYTES];
    loop {
        let count = match stream.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            other => other?,
        };
        if count == 0 {
            return Ok(false);
        }
        bytes.extend_from_slice(&chunk[..count]);
        if unit_length(bytes)?.is_some_and(|length| bytes.len() >= length) {
            return Ok(true);
        }
    }
}

/// The length of the message at the front of `bytes`, once its head is complete.
fn unit_length(bytes: &[u8]) -> Fallible<Option<usize>> {
    let Some(head) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..head])?;
    let value = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    let body = value.map_or(Ok(0), str::parse::<usize>)?;
    Ok(Some(head + 4 + body))
}

/// Upgrades, takes one join, and leaves the socket to the handlers, which write to the room.
fn join_room(mut stream: TcpStream, head: &[u8], rooms: &Rooms) -> Fallible<()> {
    let (answer, _) = floor::answer_upgrade(head)?.ok_or("an upgrade with an incomplete head")?;
    stream.write_all(answer.as_bytes())?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    let text = loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&chunk[..count]);
        if let Some((_, text, _)) = floor::read_frame(&bytes) {
            break text;
        }
    };
    let Some(Message::Join(room)) = Message::read(&text) else {
        return Err(format!("the REST floor does not know {}", text.escape_ascii()).into());
    };
    let mut all = lock(rooms);
    stream.write_all(&floor::frame(floor::TEXT, format!("joined {room}").as_bytes()))?;
    all.entry(room.to_owned()).or_default().push(Arc::new(stream));
    Ok(())
}

/// A thread of tiny_http's: takes requests and answers them.
fn serve(server: &Server, rooms: &Rooms) {
    while let Ok(mut request) = server.recv() {
        let (status, text) = match notify(&mut request, rooms) {
            Ok(delivered) => {
                let text =
                    "{\"status\":\"success\",\"message\":\"Notification sent\",\"delivered\":";
                (200, format!("{text}{delivered}}}"))
            }
            Err(error) => (400, error.to_string()),
        };
        // A caller that has gone needs no answer.
        let _ = request.respond(Response::from_string(text).with_status_code(status));
    }
}

/// Delivers what `request` holds; returns the count or counts for the answer.
fn notify(request: &mut Request, rooms: &Rooms) -> Fallible<String> {
    let mut content = Vec::with_capacity(request.body_length().unwrap_or(0));
    request.as_reader().read_to_end(&mut content)?;
    if content.starts_with(b"[") {
        let batch: Vec<Notification<'_>> = serde_json::from_slice(&content)?;
        let delivered = deliver(&batch, rooms)?;
        return Ok(serde_json::to_string(&vec![delivered; batch.len()])?);
    }
    let one: Notification<'_> = serde_json::from_slice(&content)?;
    Ok(deliver(&[one], rooms)?.to_string())
}

/// Writes notifications, all for one room, to its members, with one send each.
fn deliver(batch: &[Notification<'_>], rooms: &Rooms) -> Fallible<usize> {
    let Some(first) = batch.first() else {
        return Ok(0);
    };
    let mut frames = Vec::new();
    for Notification { event, data, room } in batch {
        let text = format!("{{\"event\":\"{event}\",\"data\":{},\"to\":\"{room}\"}}", data.get());
        frames.extend_from_slice(&floor::frame(floor::TEXT, text.as_bytes()));
    }
    let members = lock(rooms).get(first.room).cloned().unwrap_or_default();
    for member in &members {
        member.as_ref().write_all(&frames)?;
    }
    Ok(members.len())
}
