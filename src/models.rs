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
#[cfg_attr(test, derive(ts_rs::TS))]
pub struct Notification {
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
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    /// Reads `object` as a `T` and writes it again: with all fields, then with each of `optional` gone,
    /// then with each of them `null`. And every other field must be demanded.
    fn round_trips<T: Serialize + DeserializeOwned>(object: &Value, optional: &[&str]) {
        assert_eq!(&rewritten::<T>(object), object);

        let mut bare = object.clone();
        let mut nulled = object.clone();
        for field in optional {
            assert!(bare.as_object_mut().unwrap().remove(*field).is_some());
            *nulled.get_mut(field).unwrap() = Value::Null;
        }
        assert_eq!(rewritten::<T>(&bare), bare);
        assert_eq!(rewritten::<T>(&nulled), bare);

        for field in bare.as_object().unwrap().keys() {
            let mut short = bare.clone();
            short.as_object_mut().unwrap().remove(field);
            let said = match serde_json::from_str::<T>(&short.to_string()) {
                Ok(_) => "nothing".to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(said.contains(field.as_str()), "{field} missing: {said}");
        }
    }

    fn rewritten<T: Serialize + DeserializeOwned>(object: &Value) -> Value {
        let model: T = serde_json::from_str(&object.to_string()).unwrap();
        serde_json::from_str(&serde_json::to_string(&model).unwrap()).unwrap()
    }

    #[test]
    fn order() {
        let object = json!({
            "id_order": 123, "order_date": "2026-01-02T03:04:05.678Z", "status": "pending",
            "total_amount": 99.95, "delivery_type": "delivery", "id_client": 7, "id_cart": 8,
            "id_payment_method": 9, "id_delivery": 10
        });
        round_trips::<Order>(&object, &["id_delivery"]);
    }

    #[test]
    fn product() {
        let object = json!({
            "id_product": 1, "id_seller": 2, "id_inventory": 3, "id_category": 4,
            "id_sub_category": 5, "product_name": "Café", "description": "ground", "price": 4.5,
            "stock": 0, "image_url": "https://example.org/c.png"
        });
        round_trips::<Product>(&object, &["description", "image_url"]);
    }

    #[test]
    fn client() {
        let object = json!({
            "id_client": 7, "client_name": "Ana Pérez", "client_email": "ana@example.org",
            "address": "Calle 1", "phone": "+593 99 123 4567", "document_type": "cedula",
            "document_number": "0912345678", "birth_date": "1990-05-17T00:00:00Z",
            "avatar_url": "https://example.org/a.png",
            "additional_addresses": "[{\"street\":\"Calle 2\"}]",
            "created_at": "2026-01-02T03:04:05-05:00"
        });
        let optional = [
            "phone",
            "document_type",
            "document_number",
            "birth_date",
            "avatar_url",
            "additional_addresses",
        ];
        round_trips::<Client>(&object, &optional);
    }

    #[test]
    fn seller() {
        let object = json!({
            "id_seller": 5, "seller_name": "Luis", "seller_email": "luis@example.org",
            "phone": 593_991_234_567_i64, "bussines_name": "Luis & Co", "location": "Quito",
            "created_at": "2026-01-02T03:04:05Z"
        });
        round_trips::<Seller>(&object, &[]);
    }

    #[test]
    fn cart() {
        let object = json!({
            "id_cart": 8, "id_client": 7, "status": "active", "id_product": 1, "quantity": 3
        });
        round_trips::<Cart>(&object, &[]);
    }

    #[test]
    fn category() {
        let object = json!({
            "id_category": 4, "category_name": "Drinks", "description": "to drink",
            "photo": "https://example.org/d.png"
        });
        round_trips::<Category>(&object, &["description", "photo"]);
    }

    #[test]
    fn sub_category() {
        let object = json!({
            "id_sub_category": 5, "id_category": 4, "sub_category_name": "Coffee",
            "description": "hot"
        });
        round_trips::<SubCategory>(&object, &["description"]);
    }

    #[test]
    fn inventory() {
        let object = json!({
            "id_inventory": 3, "id_seller": 5, "updated_at": "2026-01-02T03:04:05Z"
        });
        round_trips::<Inventory>(&object, &[]);
    }

    #[test]
    fn delivery() {
        let object = json!({
            "id_delivery": 10, "id_product": 1, "delivery_address": "Calle 1", "city": "Quito",
            "status": "in_transit", "estimated_time": "2026-01-02T03:04:05Z",
            "delivery_person": "Eva", "delivery_cost": 2.25, "phone": 593_991_234_567_i64
        });
        round_trips::<Delivery>(&object, &[]);
    }

    #[test]
    fn payment_method() {
        let object = json!({
            "id_payment_method": 9, "method_name": "cash", "details_payment": "exact change"
        });
        round_trips::<PaymentMethod>(&object, &["details_payment"]);
    }

    #[test]
    fn admin() {
        let object = json!({
            "id_admin": 1, "admin_name": "Root", "admin_email": "root@example.org",
            "role": "super_admin", "created_at": "2026-01-02T03:04:05Z"
        });
        round_trips::<Admin>(&object, &[]);
    }

    #[test]
    fn notification() {
        let object = json!({
            "event": "order_created", "data": {"id_order": 123}, "to": "order-123"
        });
        assert_eq!(rewritten::<Notification>(&object), object);
        let bare = json!({"event": "order_created", "to": "broadcast"});
        let with_null = json!({"event": "order_created", "data": null, "to": "broadcast"});
        assert_eq!(rewritten::<Notification>(&bare), with_null);
    }

    #[test]
    fn message() {
        let object = json!({
            "id": "m1", "from": "7", "to": "5", "room": "seller-5", "type": "text",
            "content": "hello", "data": {"any": [1, "json"]},
            "timestamp": "2026-01-02T03:04:05.678Z"
        });
        round_trips::<Message>(&object, &["id", "to", "room", "data"]);
    }

    #[test]
    fn free_form_json_keeps_its_bytes() {
        let data = r#"{ "b":1, "a":1.0e400, "b":12345678901234567890123 }"#;
        let text = format!(r#"{{"event":"e","data":{data},"to":"7"}}"#);
        let notification: Notification = serde_json::from_str(&text).unwrap();
        assert_eq!(notification.data.get(), data);
        assert_eq!(serde_json::to_string(&notification).unwrap(), text);
    }

    #[test]
    fn an_unreadable_date_is_refused() {
        let object = r#"{"id_inventory":3,"id_seller":5,"updated_at":"yesterday"}"#;
        assert!(serde_json::from_str::<Inventory>(object).is_err());
    }
}
