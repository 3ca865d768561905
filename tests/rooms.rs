//! Verifies that clients join, leave and broadcast as the protocol says, and that who may do so is
//! decided by the claims.

mod support;

use serde_json::json;
use support::Service;

#[test]
fn members_get_every_broadcast_in_order_and_others_get_none() {
    let service = Service::start();
    let (mut a, mut b, mut c) =
        (service.client("1", ""), service.client("2", ""), service.client("3", ""));
    a.join("lobby");
    b.join("lobby");
    for n in 0..50 {
        a.broadcast("lobby", &json!(n));
    }
    for n in 0..50 {
        for client in [&mut a, &mut b] {
            let message = client.json();
            assert_eq!((&message["room"], &message["body"]), (&json!("lobby"), &json!(n)));
        }
    }
    c.assert_quiet();
}
