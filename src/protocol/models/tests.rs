//! Verifies that the models are read and written as the marketplace does.

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
