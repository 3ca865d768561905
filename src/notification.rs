//! Typed notifications over the hub: order update, product update, room, user.

use serde::Serialize;

use crate::config::{MAX_EVENT_BYTES, MAX_NOTIFICATION_BYTES};
use crate::hub::{Delivery, HubGone, HubHandle, PublisherName, Target};
use crate::protocol::models::{Order, Product};
use crate::protocol::{self, BadId, Id, Room};

/// Event of [`NotificationService::send_order_update`].
pub const ORDER_UPDATED: &str = "order_updated";
/// Event of [`NotificationService::send_product_update`].
pub const PRODUCT_UPDATED: &str = "product_updated";

/// Sends notifications to users, rooms and everyone; cheap to clone.
#[derive(Clone)]
pub struct NotificationService {
    hub: HubHandle,
}

/// Why a notification was not sent.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// The user id has the wrong form.
    #[error("bad user id: {0}")]
    BadUser(BadId),
    /// The event is empty or over 128 bytes.
    #[error("event must have 1 to {MAX_EVENT_BYTES} bytes")]
    BadEvent,
    /// The notification is over 64 KiB; its size in bytes.
    #[error("notification has {0} bytes, at most {MAX_NOTIFICATION_BYTES} are sent")]
    TooLarge(usize),
    /// The data does not serialise to JSON.
    #[error("data is not JSON: {0}")]
    BadData(serde_json::Error),
    /// The service is stopping.
    #[error(transparent)]
    HubGone(#[from] HubGone),
}

/// Checks event and size, and makes the message; `data` is JSON text.
///
/// # Errors
/// [`NotifyError::BadEvent`] and [`NotifyError::TooLarge`].
pub fn notification(target: Target, event: &str, data: &str) -> Result<Delivery, NotifyError> {
    if event.is_empty() || event.len() > MAX_EVENT_BYTES {
        return Err(NotifyError::BadEvent);
    }
    let draft = protocol::notification(event, data, to(&target));
    if draft.len() > MAX_NOTIFICATION_BYTES {
        return Err(NotifyError::TooLarge(draft.len()));
    }
    Ok(Delivery { target, draft })
}

/// `to` as clients see it: the user id, the room, or `broadcast`.
fn to(target: &Target) -> &str {
    match target {
        Target::User(id) | Target::Seller(id) => id.as_str(),
        Target::Room(room) => room.as_str(),
        Target::Admins => "admins",
        Target::Everyone => "broadcast",
    }
}

impl NotificationService {
    /// A service over this hub.
    pub fn new(hub: HubHandle) -> Self {
        Self { hub }
    }

    /// Sends `order_updated` with the order to every connection of a user; returns how many of this
    /// instance took it, as all methods do.
    ///
    /// # Errors
    /// [`NotifyError`].
    pub fn send_order_update(&self, user_id: &str, order: &Order) -> Result<usize, NotifyError> {
        self.send_to_user(user_id, ORDER_UPDATED, order)
    }

    /// Sends `product_updated` with the product to a room.
    ///
    /// # Errors
    /// [`NotifyError`].
    pub fn send_product_update(
        &self,
        room: &Room,
        product: &Product,
    ) -> Result<usize, NotifyError> {
        self.broadcast_notification(room, PRODUCT_UPDATED, product)
    }

    /// Sends an event to every member of a room.
    ///
    /// # Errors
    /// [`NotifyError`].
    pub fn broadcast_notification(
        &self,
        room: &Room,
        event: &str,
        data: &impl Serialize,
    ) -> Result<usize, NotifyError> {
        self.send(Target::Room(room.clone()), event, data)
    }

    /// Sends an event to every connection of a user.
    ///
    /// # Errors
    /// [`NotifyError`].
    pub fn send_to_user(
        &self,
        user_id: &str,
        event: &str,
        data: &impl Serialize,
    ) -> Result<usize, NotifyError> {
        let user_id = Id::parse(user_id).map_err(NotifyError::BadUser)?;
        self.send(Target::User(user_id), event, data)
    }

    fn send(
        &self,
        target: Target,
        event: &str,
        data: &impl Serialize,
    ) -> Result<usize, NotifyError> {
        let data = serde_json::to_string(data).map_err(NotifyError::BadData)?;
        let deliveries = vec![notification(target, event, &data)?];
        let counts = self.hub.notify(PublisherName::Service, deliveries)?;
        Ok(counts.first().copied().unwrap_or(0))
    }
}
