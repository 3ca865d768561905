//! Decides what happens to a message that arrives. No I/O: the result depends only on this message and on
//! those before it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::DropReason;
use super::channel_names::{ChannelNames, Source};
use super::envelope::{ENVELOPE_BYTES, Envelope, Seen};
use crate::config::MAX_NOTIFICATION_BYTES;
use crate::hub::{Delivery, Target};
use crate::protocol::json::parse_object;
use crate::protocol::{Draft, Id};

/// What to do with a message.
#[derive(Debug)]
pub(super) enum Inbound {
    /// Hand it to the handler.
    Deliver(Delivery),
    /// Nothing: it is our own, and local connections have it.
    Own,
    /// The probe with this number has come back.
    Probe(u64),
    /// Count it, and log some of these.
    Drop(DropReason),
}

/// Reads messages in the order in which they arrive.
#[derive(Debug)]
pub(super) struct Inbox {
    instance: Uuid,
    seen: Seen,
}

impl Inbox {
    /// The inbox of the instance that publishes under this origin.
    pub(super) fn new(instance: Uuid) -> Self {
        Self { instance, seen: Seen::default() }
    }

    /// Decides about one message.
    pub(super) fn read(
        &mut self,
        channels: &ChannelNames,
        channel: &str,
        payload: &[u8],
    ) -> Inbound {
        let read = match channels.read(channel) {
            None => Err(DropReason::BadChannel),
            Some(Source::Probe) => Ok(read_probe(payload)),
            Some(Source::Event) => read_event(payload),
            Some(Source::Target(target)) => self.read_message(target, payload),
        };
        read.unwrap_or_else(Inbound::Drop)
    }

    fn read_message(&mut self, target: Target, payload: &[u8]) -> Result<Inbound, DropReason> {
        let text = checked_text(payload, MAX_NOTIFICATION_BYTES + ENVELOPE_BYTES)?;
        let Some((origin, members)) = Envelope::unwrap(text) else {
            let text = checked_text(payload, MAX_NOTIFICATION_BYTES)?;
            return Ok(deliver(target, Draft::text(text)));
        };
        if origin.instance == self.instance {
            return Ok(Inbound::Own);
        }
        if !self.seen.advance(origin) {
            return Err(DropReason::Repeated);
        }
        Ok(deliver(target, Draft::object(&[members.as_bytes()])))
    }
}

fn deliver(target: Target, draft: Draft) -> Inbound {
    Inbound::Deliver(Delivery { target, draft })
}

fn checked_text(payload: &[u8], most_bytes: usize) -> Result<&str, DropReason> {
    if payload.len() > most_bytes {
        return Err(DropReason::TooLarge);
    }
    std::str::from_utf8(payload).map_err(|_| DropReason::NotUtf8)
}

/// Only this instance publishes to its probe channel. Anything but a number was sent by somebody who tries
/// things out.
fn read_probe(payload: &[u8]) -> Inbound {
    let number = std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok());
    number.map_or(Inbound::Drop(DropReason::BadChannel), Inbound::Probe)
}

/// An event of the marketplace. Clients get all of it; only these members are read here.
#[derive(Deserialize)]
struct SystemEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    seller_id: Option<&'a RawValue>,
}

fn read_event(payload: &[u8]) -> Result<Inbound, DropReason> {
    let text = checked_text(payload, MAX_NOTIFICATION_BYTES)?;
    let event: SystemEvent<'_> = parse_object(text).map_err(|_| DropReason::BadEvent)?;
    let target = match &*event.kind {
        "ADMIN_STATS_UPDATED" => Target::Admins,
        "SELLER_STATS_UPDATED" => {
            let id = event.seller_id.ok_or(DropReason::BadEvent)?;
            Target::Seller(Id::from_json(id).map_err(|_| DropReason::BadEvent)?)
        }
        _ => return Err(DropReason::UnknownEvent),
    };
    Ok(deliver(target, Draft::text(text)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests;
