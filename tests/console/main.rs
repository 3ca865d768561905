//! Verifies that the web console works in a real browser, under its own strict policy, and shows what
//! peers send as text.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod devtools;
#[path = "../support/mod.rs"]
mod support;

use devtools::{Browser, Page, quoted};
use serde_json::{Value, json};
use support::{Redis, Service, token, token_with, unix_now};

const NOTHING: [String; 0] = [];

fn console(browser: &Browser, service: &Service) -> Page {
    browser.open(&format!("http://{}/console", service.addr()))
}

fn connect(page: &Page, user: &str, role: &str) {
    page.fill("#token", &token(user, role));
    page.click("#connect");
    page.shows("#status", &format!("Connected as {user}"));
}

fn join(page: &Page, room: &str) {
    page.fill("#join-room", room);
    page.click("#join button");
    page.shows("#join-said", &format!("Joined {room}"));
}

fn broadcast(page: &Page, room: &str, body: &str) {
    page.fill("#broadcast-room", room);
    page.fill("#broadcast-body", body);
    page.click("#broadcast button");
}

/// Waits for a row that holds all of these; returns the expression that finds it. Rows out of sight are
/// not laid out and have no `innerText`.
fn row(page: &Page, way: &str, parts: &[&str]) -> String {
    let parts = Value::from(parts.to_vec());
    let row = format!(
        "[...document.querySelectorAll('#messages .row[data-way={way}]')]\
         .find(row => {parts}.every(part => row.textContent.includes(part)))"
    );
    page.until(&row);
    row
}

#[test]
fn two_pages_exchange_messages() {
    let service = Service::start();
    let browser = Browser::start();
    let (alice, bob) = (console(&browser, &service), console(&browser, &service));
    connect(&alice, "alice", "client");
    connect(&bob, "bob", "admin");
    join(&alice, "lobby");
    join(&bob, "lobby");
    assert!(alice.text("#rooms").contains("lobby"));

    // Twice: the first answer tells the page its own connection id. Numbers keep their digits.
    for count in ["12345678901234567890.10", "2e0"] {
        broadcast(&alice, "lobby", &format!(r#"{{"text": "from alice", "n": {count}}}"#));
        row(&alice, "sent", &[count, "lobby", " ms"]);
        row(&alice, "own", &[count, "lobby", " ms"]);
        let received = row(&bob, "received", &[count, "lobby", " ms", "from alice"]);
        bob.eval(&format!("{received}.querySelector('summary').click()"));
        bob.until(&format!(
            "{received}.querySelector('pre')?.textContent.includes('\"n\": {count}')"
        ));
    }
    alice.shows("#broadcast-said", "Delivered to lobby in");
    bob.fill("#broadcast-room", "");
    bob.click("#broadcast button");
    bob.shows("#broadcast-said", "Room is missing");
    broadcast(&bob, "lobby", r#"{"broken": "#);
    bob.shows("#broadcast-said", "Not JSON");
    broadcast(&bob, "lobby", r#""from bob""#);
    row(&alice, "received", &["from bob", "lobby"]);

    // Only the admin's page has the live figures and may notify.
    bob.shows("#charts", "Largest rooms");
    bob.until("document.querySelector('#charts .now').innerText.trim() === '2'");
    bob.shows(".bars", "lobby");
    bob.until("/delivered\\s+[0-9]/.test(document.querySelector('#charts').innerText)");
    assert_eq!(alice.eval("document.querySelector('#live').hidden"), true);
    bob.click("#notify [value=user_id]");
    bob.fill("#notify-to", "alice");
    bob.fill("#notify-event", "order_created");
    bob.fill("#notify-body", r#"{"order": 5}"#);
    bob.click("#notify button");
    bob.shows("#notify-said", "Delivered to 1 connection");
    row(&alice, "received", &["order_created", r#"{"order":5}"#, "alice"]);

    alice.click("#rooms button");
    alice.shows("#join-said", "Left lobby");
    alice.until("document.querySelector('#rooms').childElementCount === 0");
    alice.fill("#join-room", "user-bob");
    alice.click("#join button");
    alice.shows("#join-said", "user-bob: not authorized");

    // The token is nowhere but in memory.
    for page in [&alice, &bob] {
        let stored = "localStorage.length + sessionStorage.length + document.cookie.length";
        assert_eq!(page.eval(stored), 0);
        assert!(page.eval("location.href").as_str().unwrap().ends_with("/console"));
        assert_eq!(page.complaints(), NOTHING);
        page.click("#connect");
        page.shows("#status", "Not connected");
    }
    // Alice is told that her role does not do; that answer is one in the browser's console.
    connect(&alice, "alice", "client");
    alice.fill("#notify-to", "lobby");
    alice.click("#notify button");
    alice.shows("#notify-said", "403: role is not admin or service");
}

#[test]
fn a_wrong_token_is_told() {
    let service = Service::start();
    let browser = Browser::start();
    let page = console(&browser, &service);
    let claims = json!({"sub": "mallory", "exp": unix_now() + 60});
    let key = jsonwebtoken::EncodingKey::from_secret(b"another secret");
    let forged = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
    let cases = [
        ("", "Paste a token first"),
        ("not a token", "This is not a JWT"),
        (&forged, "refuses this token: "),
        (&token_with(json!({"sub": "old", "exp": unix_now() - 5})), "expired"),
        // On a live connection.
        (&token_with(json!({"sub": "brief", "exp": unix_now() + 2})), "expired"),
    ];
    for (token, told) in cases {
        page.fill("#token", token);
        page.click("#connect");
        page.shows("#token-said", told);
        page.shows("#status", "Refused");
        page.shows("#connect", "Connect");
        let field = "document.querySelector('#token').getAttribute('aria-invalid')";
        assert_eq!(page.eval(field), "true", "{told}");
    }
    connect(&page, "good", "client");
    assert_eq!(page.text("#token-said"), "");
}

#[test]
fn it_says_when_the_server_is_gone_and_comes_back_with_it() {
    let service = Service::start();
    let browser = Browser::start();
    let page = console(&browser, &service);
    connect(&page, "alice", "client");
    join(&page, "lobby");
    let port = service.addr().port().to_string();

    let status = service.stop().0;
    assert!(status.success());
    page.until("document.querySelector('#state').dataset.phase === 'waiting'");
    page.shows("#status", "Reconnecting");
    row(&page, "system", &["going away"]);
    // It goes on trying, and waits between the tries.
    page.shows("#countdown", "attempt 2");
    page.shows("#status", "Server cannot be reached");
    assert_eq!(page.eval("document.querySelector('#retry').hidden"), false);

    let service = Service::with(&[("PORT", &port)]);
    page.shows("#status", "Connected as alice");
    page.until("document.querySelectorAll('#messages .row[data-way=system]').length >= 5");
    let mut other = service.client("bob", "client");
    // The room was joined again without being asked.
    row(&page, "system", &["Connected"]);
    page.until(
        "[...document.querySelectorAll('#messages .row')].filter(row => row.textContent.includes('Joined lobby')).length === 2",
    );
    other.broadcast("lobby", &json!("welcome back"));
    row(&page, "received", &["welcome back"]);
}

#[test]
fn the_switch_drops_the_connection_and_recovers_what_was_missed() {
    let service = Service::start();
    let browser = Browser::start();
    let page = console(&browser, &service);
    connect(&page, "alice", "client");
    join(&page, "lobby");
    let mut other = service.client("bob", "client");
    let say = |other: &mut support::Client, text: &str| other.broadcast("lobby", &json!(text));
    let rows = |part: &str| {
        format!(
            "[...document.querySelectorAll('#messages .row')].filter(row => row.textContent.includes({})).length",
            quoted(part)
        )
    };
    say(&mut other, "before");
    row(&page, "received", &["before", "lobby#1"]);
    page.shows("#rooms", "#1");
    page.shows("#who-position", "up to #0");

    page.click("#away");
    page.shows("#status", "Away");
    assert_eq!(page.eval("document.querySelector('#away').getAttribute('aria-checked')"), "true");
    service.log_line("closed by the peer with 1000");
    say(&mut other, "missed 1");
    say(&mut other, "missed 2");
    service.notify(&json!({"user_id": "alice", "event": "missed 3", "data": null}));
    other.assert_quiet();
    assert_eq!(page.eval(&rows("missed")), 0);
    page.click("#away");
    page.shows("#status", "Connected as alice");
    row(&page, "system", &["Joined lobby, recovered what was missed"]);
    row(&page, "system", &["Own messages, recovered what was missed"]);
    say(&mut other, "after");
    row(&page, "received", &["after", "lobby#4"]);
    for missed in ["missed 1", "missed 2", "missed 3"] {
        page.until(&format!("{} === 1", rows(missed)));
    }
    page.shows("#rooms", "#4");
    page.shows("#who-position", "up to #1");
    assert_eq!(page.complaints(), NOTHING);

    // A service that has begun anew cannot: the page says so.
    let port = service.addr().port().to_string();
    drop(service);
    let service = Service::with(&[("PORT", &port)]);
    row(&page, "system", &["Joined lobby, could not recover what was missed"]);
    row(&page, "system", &["Own messages, could not recover what was missed"]);
    service.notify(&json!({"room": "lobby", "event": "anew", "data": null}));
    row(&page, "received", &["anew", "lobby#1"]);
}

#[test]
fn what_peers_send_is_shown_as_text() {
    const EVIL: &str = "<img src=x onerror=\"window.broken=1\">";
    let redis = Redis::start();
    let service = Service::with(&[("REDIS_ADDR", &redis.addr())]);
    let browser = Browser::start();
    let page = console(&browser, &service);
    // A user id has no spaces, and names the user in many places.
    connect(&page, "<img/src=x/onerror=window.broken=1>", "client");
    join(&page, "lobby");
    service.log_line("redis is connected");

    let mut peer = service.client("bob", "client");
    peer.broadcast("lobby", &json!({ "text": EVIL, EVIL: [EVIL] }));
    let body = row(&page, "received", &[&format!("{}:[{}]", quoted(EVIL), quoted(EVIL))]);
    page.eval(&format!("{body}.querySelector('summary').click()"));
    page.until(&format!(
        "{body}.querySelector('pre')?.textContent.includes({})",
        quoted(&quoted(EVIL))
    ));
    service.notify(&json!({"room": "lobby", "event": EVIL, "data": EVIL}));
    row(&page, "received", &[EVIL, &quoted(EVIL)]);
    let user = "<img/src=x/onerror=window.broken=1>";
    service.notify(&json!({"user_id": user, "event": "e", "data": null}));
    row(&page, "received", &[user, "null"]);
    let foreign = [
        json!({"from": EVIL, "room": EVIL, "ts": EVIL, "body": EVIL}),
        json!({"type": EVIL, "id": EVIL, "payload": EVIL}),
        json!({"type": "error", "payload": {"error": format!("failed {EVIL}")}}),
        json!({"event": {"nested": EVIL}, "to": [EVIL]}),
        json!([EVIL]),
        json!(null),
    ];
    for message in &foreign {
        redis.publish("ws:room:lobby", message.to_string());
    }
    row(&page, "received", &["null", ""]);
    row(&page, "error", &["failed <img src=x"]);
    page.fill("#join-room", EVIL);
    page.click("#join button");
    page.shows("#join-said", &format!("{EVIL}: invalid room format"));
    page.fill("#filter", "onerror");
    page.until("document.querySelectorAll('#messages .row').length >= 7");

    let made = "document.querySelectorAll('img, #messages script, #messages a').length";
    assert_eq!(page.eval(made), 0);
    assert_eq!(page.eval("typeof window.broken"), "undefined");
    assert_eq!(page.complaints(), NOTHING);
    // Even the page's own script could not turn text into markup, or style itself inline.
    let refused = page.eval(
        "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'done' } catch (e) { return e.name } })()",
    );
    assert_eq!(refused, "TypeError");
    page.eval("document.body.setAttribute('style', 'display: none')");
    assert_eq!(page.eval("getComputedStyle(document.body).display"), "block");
    assert!(page.complaints().iter().any(|said| said.contains("style-src")));
}

#[test]
fn a_flood_stays_bounded_and_can_be_paused_filtered_and_cleared() {
    let service = Service::start();
    let browser = Browser::start();
    let page = console(&browser, &service);
    connect(&page, "alice", "client");
    join(&page, "lobby");
    let notify = |from: usize, event: &str| {
        let batch: Vec<_> = (from..from + 100)
            .map(|n| json!({"room": "lobby", "event": event, "data": format!("number {n}.")}))
            .collect();
        assert_eq!(service.notify(&batch.into()).status, 200);
    };
    for batch in 0..7 {
        notify(100 * batch, "flood");
    }
    row(&page, "received", &["number 699."]);
    let count = "document.querySelectorAll('#messages .row').length";
    assert_eq!(page.eval(count), 500);
    assert_eq!(
        page.eval("document.querySelector('#messages .row').textContent.includes('699')"),
        true
    );
    assert!(page.text("#tally").starts_with("700 received"));

    page.click("#pause");
    notify(700, "held");
    page.shows("#pause", "Resume (100)");
    let messages = "document.querySelector('#messages').textContent.includes('number 700.')";
    assert_eq!(page.eval(messages), false);
    page.click("#pause");
    row(&page, "received", &["number 799."]);
    assert_eq!(page.eval(count), 500);

    page.fill("#filter", "number 42");
    page.until(&format!("{count} === 10"));
    page.fill("#filter", "HELD");
    page.until(&format!("{count} === 100"));
    notify(800, "other");
    page.shows("#tally", "900 received");
    assert_eq!(page.eval(count), 100);
    page.click("#clear");
    page.until(&format!("{count} === 0"));
    assert_eq!(page.complaints(), NOTHING);
}

#[test]
fn it_works_on_a_phone_in_the_dark_with_the_keyboard_alone() {
    let service = Service::start();
    let browser = Browser::start();
    let page = console(&browser, &service);
    page.resize(360, 740, true);
    page.prefer("dark");
    let background = "getComputedStyle(document.body).backgroundColor";
    page.until(&format!("{background} === 'rgb(14, 19, 25)'"));

    let focused = "document.activeElement.id || document.activeElement.innerText";
    let tab_to = |wanted: &str| {
        for _ in 0..40 {
            if page.eval(focused) == wanted {
                return;
            }
            page.press("Tab");
        }
        panic!("the Tab key never reaches {wanted}");
    };
    page.press("Tab");
    assert_eq!(page.eval(focused), "Skip to messages");
    tab_to("token");
    page.call("Input.insertText", json!({"text": token("ops", "admin")}));
    page.press("Enter");
    page.shows("#status", "Connected as ops");
    tab_to("join-room");
    let outline = "getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(page.eval(outline), "solid");
    page.call(
        "Input.insertText",
        json!({"text": "a-room-with-a-very-long-name.that:goes-on".repeat(3)}),
    );
    page.press("Enter");
    page.shows("#join-said", "Joined a-room");
    tab_to("Broadcast");
    page.press(" ");
    page.until("!document.querySelector('.send').open");
    page.shows("#charts", "Largest rooms");

    assert_eq!(page.eval("document.documentElement.scrollWidth"), 360);
    let unnamed = "[...document.querySelectorAll('input, textarea, select, button')].filter(field => \
        !(field.labels?.length || field.getAttribute('aria-label') || field.textContent)).length";
    page.eval("document.querySelectorAll('details').forEach(section => section.open = true)");
    assert_eq!(page.eval(unnamed), 0);
    assert_eq!(page.eval("document.querySelectorAll('main, h1').length"), 2);
    assert_eq!(page.complaints(), NOTHING);
}

#[test]
fn the_page_comes_with_a_strict_policy() {
    let service = Service::start();
    let answer = service.http("GET", "/console", None, "");
    assert_eq!(answer.status, 200);
    let policy = &answer.headers["content-security-policy"];
    for part in [
        "default-src 'none';",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "connect-src 'self';",
        "frame-ancestors 'none';",
        "base-uri 'none';",
        "form-action 'none';",
    ] {
        assert!(policy.contains(part), "{part} in {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    assert_eq!(answer.headers["referrer-policy"], "no-referrer");
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert_eq!(service.http("POST", "/console", None, "x").status, 405);
}

/// Makes the README's picture: `cargo test --test console -- --ignored`. `CONSOLE_PICTURES` names a
/// directory for those of other screens.
#[test]
#[ignore = "it writes docs/console.png"]
fn take_the_picture() {
    let service = Service::with(&[("RATE_LIMIT", "0")]);
    let browser = Browser::start();
    let page = console(&browser, &service);
    page.resize(1360, 850, false);
    page.prefer("light");
    let shops = ["order-1042", "order-1043", "seller-7", "auction-31", "lobby"];
    let mut people: Vec<_> =
        (0..23).map(|n| service.client(&format!("user-{n}"), "admin")).collect();
    for (n, person) in people.iter_mut().enumerate() {
        for room in shops.iter().take(1 + n % shops.len()) {
            person.join(room);
        }
    }
    connect(&page, "ops-anna", "admin");
    for room in ["order-1042", "auction-31", "lobby"] {
        join(&page, room);
    }
    let orders = ["order-1042", "order-1043"];
    let statuses = ["paid", "packed", "shipped"];
    for step in 0_usize..84 {
        for turn in 0..1 + (step * step) % 7 {
            let person = &mut people[(step * 5 + turn) % (23 - step / 14)];
            let metres = 1900 - 21 * step;
            match (step + turn) % 5 {
                0 | 3 => {
                    person.broadcast("auction-31", &json!({"bid": 120 + step, "currency": "EUR"}))
                }
                1 => person.broadcast("lobby", &json!({"text": "is the blue one still there?"})),
                2 => person.broadcast("order-1042", &json!({"courier": {"metres": metres}})),
                _ => person.broadcast("order-1043", &json!({"seen": true})),
            }
        }
        if step % 14 == 13 {
            people.pop();
        }
        if step % 6 == 2 {
            let data = json!({"id": 1042 + step % 2, "status": statuses[step / 6 % 3]});
            let event = json!({"room": orders[step % 2], "event": "order_updated", "data": data});
            service.notify(&event);
        }
        if step % 27 == 1 {
            broadcast(&page, "lobby", r#"{"text": "two are left", "sku": "BL-204"}"#);
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    join(&page, "seller-7");
    let shipped = json!({"id": 1042, "status": "shipped", "carrier": "DHL"});
    service.notify(&json!({"room": "order-1042", "event": "order_shipped", "data": shipped}));
    let shipped = row(&page, "received", &["order_shipped"]);
    page.eval(&format!("{shipped}.querySelector('summary').click()"));
    page.until(&format!("{shipped}.querySelector('pre')"));
    page.eval("document.activeElement.blur()");
    std::fs::create_dir_all("docs").unwrap();
    std::fs::write("docs/console.png", page.screenshot()).unwrap();
    let Some(directory) = std::env::var_os("CONSOLE_PICTURES").map(std::path::PathBuf::from) else {
        return;
    };
    for (name, width, height, phone, scheme) in [
        ("desktop-dark", 1360, 850, false, "dark"),
        ("tablet", 820, 1180, true, "light"),
        ("phone", 390, 1900, true, "light"),
        ("phone-dark", 360, 2000, true, "dark"),
    ] {
        page.resize(width, height, phone);
        page.prefer(scheme);
        page.until(&format!("innerWidth === {width}"));
        std::thread::sleep(std::time::Duration::from_millis(300));
        std::fs::write(directory.join(format!("{name}.png")), page.screenshot()).unwrap();
    }
}
