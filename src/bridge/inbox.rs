//! Decides what happens to a message that arrives. No I/O: the result depends only on this message and on
//! those before it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::channel_names::{ChannelNames, Source, parse_log_name};
use super::envelope::{ENVELOPE_BYTES, Envelope, Numbering, Seen, is_epoch};
use super::{DropReason, Incoming, Logged};
use crate::config::MAX_NOTIFICATION_BYTES;
use crate::protocol::json::parse_object;
use crate::protocol::{Delivery, Draft, Id, Target};

/// What to do with a message.
#[derive(Debug)]
pub(super) enum Inbound {
    /// Hand it to the handler.
    Deliver(Incoming),
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
    /// Without a log here, the numbers of others' messages mean nothing.
    has_log: bool,
    seen: Seen,
}

impl Inbox {
    /// The inbox of the instance that publishes under this origin.
    pub(super) fn new(instance: Uuid, has_log: bool) -> Self {
        Self { instance, has_log, seen: Seen::default() }
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
            Some(Source::Notice(target)) => self.read_notice(target, payload),
            Some(Source::Mark) => read_mark(payload),
        };
        read.unwrap_or_else(Inbound::Drop)
    }

    fn read_message(&mut self, target: Target, payload: &[u8]) -> Result<Inbound, DropReason> {
        let text = checked_text(payload, MAX_NOTIFICATION_BYTES + ENVELOPE_BYTES)?;
        let Some(message) = Envelope::unwrap(text) else {
            let text = checked_text(payload, MAX_NOTIFICATION_BYTES)?;
            return Ok(deliver(target, Draft::text(text)));
        };
        let draft = || Draft::object(&[message.members.as_bytes()]);
        let is_own = message.origin.instance == self.instance;
        if let Numbering::Position(position) = &message.numbering
            && self.has_log
        {
            let ticket = is_own.then_some(message.origin.number);
            let logged = Logged { target, position: position.clone(), ticket, draft: draft() };
            return Ok(Inbound::Deliver(Incoming::Logged(logged)));
        }
        if is_own && self.has_log {
            let ticket = message.origin.number;
            return Ok(Inbound::Deliver(Incoming::Returned { target, ticket }));
        }
        if is_own {
            return Ok(Inbound::Own);
        }
        if !self.seen.advance(message.origin) {
            return Err(DropReason::Repeated);
        }
        if message.numbering == Numbering::Refused && self.has_log {
            let delivery = Delivery { target, draft: draft() };
            return Ok(Inbound::Deliver(Incoming::Unnumbered(delivery)));
        }
        Ok(deliver(target, draft()))
    }

    /// `<epoch>`, or `<epoch> <uuid>:<n>` where somebody has asked for it.
    fn read_notice(&self, target: Target, payload: &[u8]) -> Result<Inbound, DropReason> {
        let text = checked_text(payload, ENVELOPE_BYTES)?;
        let (epoch, asker) = text.split_once(' ').map_or((text, None), |(e, a)| (e, Some(a)));
        if !is_epoch(epoch) {
            return Err(DropReason::BadChannel);
        }
        let asker = asker.and_then(Envelope::parse).filter(|by| by.instance == self.instance);
        let renewal = asker.map(|by| by.number);
        Ok(Inbound::Deliver(Incoming::Renewed { target, epoch: epoch.into(), renewal }))
    }
}

fn deliver(target: Target, draft: Draft) -> Inbound {
    Inbound::Deliver(Incoming::Message(Delivery { target, draft }))
}

/// `<reading> room:<room>` or `<reading> user:<id>`; only this instance has marks published there.
fn read_mark(payload: &[u8]) -> Result<Inbound, DropReason> {
    let text = checked_text(payload, ENVELOPE_BYTES)?;
    let (reading, name) = text.split_once(' ').ok_or(DropReason::BadChannel)?;
    let reading = reading.parse().map_err(|_| DropReason::BadChannel)?;
    let target = parse_log_name(name).ok_or(DropReason::BadChannel)?;
    Ok(Inbound::Deliver(Incoming::Marked { target, reading }))
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
