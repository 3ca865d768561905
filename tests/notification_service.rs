//! Verifies that a program that embeds the service starts it on a free port, notifies clients through
//! `NotificationService` with the marketplace's models, and shuts it down.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use realtime_service::config::Config;
use realtime_service::notification::NotifyError;
use realtime_service::protocol::Room;
use realtime_service::protocol::models::{Order, Product};
use realtime_service::server::Server;
use serde_json::{Value, json};
use support::{Client, Frame, SECRET, token};

fn start() -> Server {
    let mut config = Config::new(SECRET);
    config.bind = ([127, 0, 0, 1], 0).into();
    config.redis = None;
    Server::start(config).unwrap()
}

/// A client whose registration is proved.
fn client(server: &Server, user: &str) -> Client {
    let mut client = Client::connect(server.addr(), &token(user, ""));
    client.assert_quiet();
    client
}

fn order() -> Value {
    json!({
        "id_order": 5, "order_date": "2026-01-02T03:04:05Z", "status": "confirmed",
        "total_amount": 12.5, "delivery_type": "pickup", "id_client": 7, "id_cart": 8,
        "id_payment_method": 1,
    })
}

fn product() -> Value {
    json!({
        "id_product": 3, "id_seller": 4, "id_inventory": 1, "id_category": 2,
        "id_sub_category": 6, "product_name": "Té \"verde\"", "price": 2.25, "stock": 10,
    })
}

#[test]
fn typed_notifications_reach_users_and_rooms_until_the_shutdown() {
    let server = start();
    assert_ne!(server.addr().port(), 0);
    let notifications = server.notifications();
    let (mut one, mut two, mut other) =
        (client(&server, "7"), client(&server, "7"), client(&server, "8"));
    let room = Room::parse("shop").unwrap();
    one.join("shop");

    let sent: Order = serde_json::from_value(order()).unwrap();
    assert_eq!(notifications.send_order_update("7", &sent).unwrap(), 2);
    for client in [&mut one, &mut two] {
        let expected = json!({"user_seq": 1, "event": "order_updated", "data": order(), "to": "7"});
        assert_eq!(client.json(), expected);
    }
    let sent: Product = serde_json::from_value(product()).unwrap();
    assert_eq!(notifications.send_product_update(&room, &sent).unwrap(), 1);
    let expected = json!({"seq": 1, "event": "product_updated", "data": product(), "to": "shop"});
    assert_eq!(one.json(), expected);

    assert_eq!(notifications.broadcast_notification(&room, "sale", &json!([1, "a"])).unwrap(), 1);
    assert_eq!(one.text(), r#"{"seq":2,"event":"sale","data":[1,"a"],"to":"shop"}"#);
    assert_eq!(notifications.send_to_user("8", "hello", &()).unwrap(), 1);
    assert_eq!(other.text(), r#"{"user_seq":1,"event":"hello","data":null,"to":"8"}"#);
    assert_eq!(notifications.send_to_user("nobody", "hello", &()).unwrap(), 0);
    for client in [&mut one, &mut two, &mut other] {
        client.assert_quiet();
    }

    let goodbyes: Vec<_> = [one, two, other]
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                assert_eq!(client.next(), Frame::Close(1001, "going away".into()));
                client.send_close(1001);
                assert_eq!(client.next(), Frame::End);
            })
        })
        .collect();
    assert_eq!(server.shutdown(), Ok(()));
    for goodbye in goodbyes {
        goodbye.join().unwrap();
    }
    let late = notifications.send_to_user("8", "late", &());
    assert!(matches!(late, Err(NotifyError::HubGone(_))), "{late:?}");
}

#[test]
fn what_cannot_be_sent_is_an_error_that_says_why() {
    let server = start();
    let notifications = server.notifications();
    for event in ["", &"e".repeat(129)] {
        let error = notifications.send_to_user("7", event, &()).unwrap_err();
        assert!(matches!(error, NotifyError::BadEvent), "{error}");
    }
    let error = notifications.send_to_user("7", "e", &"x".repeat(70_000)).unwrap_err();
    assert!(matches!(error, NotifyError::TooLarge(bytes) if bytes > 70_000), "{error}");
    // JSON has no keys other than strings.
    let map = std::collections::HashMap::from([((1, 2), 3)]);
    let error = notifications.send_to_user("7", "e", &map).unwrap_err();
    assert!(matches!(error, NotifyError::BadData(_)), "{error}");
    assert_eq!(server.shutdown(), Ok(()));
}

#[test]
fn two_services_in_one_process_do_not_meet() {
    let (a, b) = (start(), start());
    let (mut at_a, mut at_b) = (client(&a, "7"), client(&b, "7"));
    assert_eq!(a.notifications().send_to_user("7", "a", &()).unwrap(), 1);
    assert_eq!(at_a.json()["event"], "a");
    at_b.assert_quiet();
    drop((at_a, at_b));
    assert_eq!((a.shutdown(), b.shutdown()), (Ok(()), Ok(())));
}
