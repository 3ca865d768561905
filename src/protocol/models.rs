//! The marketplace's models: the objects that its REST service exchanges as JSON, under the same names.
//!
//! Three rules hold for all of them. Integers are `i64`, since phone numbers exceed 32 bits. Dates are
//! RFC 3339 strings with any offset; what is written carries no trailing zeros in the fraction. An
//! optional field that is absent, or `null`, on the way in is left out on the way out. Fields that a
//! model does not have (relations, passwords) are ignored.
//!
//! Free-form JSON (`data`) is a [`RawValue`]: checked to be JSON when it is read, then passed on byte
//! for byte, so that numbers beyond `f64` and the order of members survive and no tree is built.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::serde::rfc3339;

/// An order of a client, made from a cart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS), ts(optional_fields))]
pub struct Order {
    /// Id of the order; its room is `order-{id_order}`.
    pub id_order: i64,
    /// When it was placed.
    #[serde(with = "rfc3339")]
    #[cfg_attr(test, ts(type = "string"))]
    pub order_date: OffsetDateTime,
    /// `pending`, `confirmed`, `delivered`, …
    pub status: String,
    /// Price of everything in it, in the marketplace's currency.
    pub total_amount: f64,
    /// `pickup` or `delivery`.
    pub delivery_type: String,
    /// Who ordered.
    pub id_client: i64,
    /// The cart that it came from.
    pub id_cart: i64,
    /// How it is paid.
    pub id_payment_method: i64,
    /// The delivery, once there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_delivery: Option<i64>,
}

/// A product that a seller offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS), ts(optional_fields))]
pub struct Product {
    /// Id of the product.
    pub id_product: i64,
    /// Who sells it.
    pub id_seller: i64,
    /// The inventory that holds it.
    pub id_inventory: i64,
    /// Its category.
    pub id_category: i64,
    /// Its category within that one.
    pub id_sub_category: i64,
    /// Name shown to clients.
    pub product_name: String,
    /// Text shown to clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Price of one, in the marketplace's currency.
    pub price: f64,
    /// How many are left.
    pub stock: i64,
    /// Picture shown to clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_url: Option<String>,
}

/// Someone who buys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS), ts(optional_fields))]
pub struct Client {
    /// Id of the client; its room is `client-{id_client}`.
    pub id_client: i64,
    /// Full name.
    pub client_name: String,
    /// Address for mail from the marketplace.
    pub client_email: String,
    /// Where deliveries go by default.
    pub address: String,
    /// Phone number as the client wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
    /// `cedula`, `dni`, `pasaporte` or `ruc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document_type: Option<String>,
    /// Number of that document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document_number: Option<String>,
    /// Date of birth.
    #[serde(default, with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, ts(as = "Option<String>"))]
    pub birth_date: Option<OffsetDateTime>,
    /// Picture of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
    /// More addresses: JSON within a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub additional_addresses: Option<String>,
    /// When the account was opened.
    #[serde(with = "rfc3339")]
    #[cfg_attr(test, ts(type = "string"))]
    pub created_at: OffsetDateTime,
}

/// Someone who sells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Seller {
    /// Id of the seller; its room is `seller-{id_seller}`.
    pub id_seller: i64,
    /// Full name.
    pub seller_name: String,
    /// Address for mail from the marketplace.
    pub seller_email: String,
    /// Phone number in digits, country code included.
    pub phone: i64,
    /// Name of the business; spelt so in the marketplace.
    pub bussines_name: String,
    /// Where the business is.
    pub location: String,
    /// When the account was opened.
    #[serde(with = "rfc3339")]
    #[cfg_attr(test, ts(type = "string"))]
    pub created_at: OffsetDateTime,
}

/// One product in a client's cart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Cart {
    /// Id of the cart.
    pub id_cart: i64,
    /// Whose cart it is.
    pub id_client: i64,
    /// `active`, `completed` or `abandoned`.
    pub status: String,
    /// What is in it.
    pub id_product: i64,
    /// How many of that.
    pub quantity: i64,
}

/// A category of products.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS), ts(optional_fields))]
pub struct Category {
    /// Id of the category.
    pub id_category: i64,
    /// Name shown to clients.
    pub category_name: String,
    /// Text shown to clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Picture shown to clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub photo: Option<String>,
}

/// A category within a [`Category`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS), ts(optional_fields))]
pub struct SubCategory {
    /// Id of the category within.
    pub id_sub_category: i64,
    /// The category that it belongs to.
    pub id_category: i64,
    /// Name shown to clients.
    pub sub_category_name: String,
    /// Text shown to clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The stock of a seller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Inventory {
    /// Id of the inventory.
    pub id_inventory: i64,
    /// Whose stock it is.
    pub id_seller: i64,
    /// When it changed last.
    #[serde(with = "rfc3339")]
    #[cfg_attr(test, ts(type = "string"))]
    pub updated_at: OffsetDateTime,
}

/// A product on its way to a client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Delivery {
    /// Id of the delivery.
    pub id_delivery: i64,
    /// What is delivered.
    pub id_product: i64,
    /// Street and number.
    pub delivery_address: String,
    /// City.
    pub city: String,
    /// `pending`, `in_transit` or `delivered`.
    pub status: String,
    /// When it should arrive.
    #[serde(with = "rfc3339")]
    #[cfg_attr(test, ts(type = "string"))]
    pub estimated_time: OffsetDateTime,
    /// Who brings it.
    pub delivery_person: String,
    /// Price of the delivery, in the marketplace's currency.
    pub delivery_cost: f64,
    /// Phone number of who brings it, in digits, country code included.
    pub phone: i64,
}

/// A way to pay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS), ts(optional_fields))]
pub struct PaymentMethod {
    /// Id of the method.
    pub id_payment_method: i64,
    /// `credit_card`, `debit_card`, `cash` or `transfer`.
    pub method_name: String,
    /// What the method needs to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details_payment: Option<String>,
}

/// Someone who runs the marketplace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Admin {
    /// Id of the admin.
    pub id_admin: i64,
    /// Full name.
    pub admin_name: String,
    /// Address for mail from the marketplace.
    pub admin_email: String,
    /// `super_admin`, `admin`, …
    pub role: String,
    /// When the account was opened.
    #[serde(with = "rfc3339")]
    #[cfg_attr(test, ts(type = "string"))]
    pub created_at: OffsetDateTime,
}

/// What a client receives when a backend notifies.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS), ts(optional_fields))]
pub struct Notification {
    /// Number in the room, where it was sent to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// Number in the user's own notifications, where it was sent to a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_seq: Option<u64>,
    /// What happened, e.g. `order_created`.
    pub event: String,
    /// Any JSON, byte for byte; `null` when there was none.
    #[serde(default)]
    #[cfg_attr(test, ts(type = "unknown"))]
    pub data: Box<RawValue>,
    /// A user id, a room, or `broadcast`.
    pub to: String,
}

/// A message from one user to another or to a room.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(ts_rs::TS), ts(optional_fields))]
pub struct Message {
    /// Id of the message, where the sender gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// User id of the sender.
    pub from: String,
    /// User id of the receiver, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The room that it goes to, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<String>,
    /// `text`, `notification` or `system`; `type` in JSON.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it says.
    pub content: String,
    /// Any JSON, byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, ts(type = "unknown", optional))]
    pub data: Option<Box<RawValue>>,
    /// When it was sent.
    #[serde(with = "rfc3339")]
    #[cfg_attr(test, ts(type = "string"))]
    pub timestamp: OffsetDateTime,
}

#[cfg(test)]
mod tests;
