//! A real Chromium, driven over the DevTools protocol: one WebSocket, one session per page.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::support::PATIENCE;

/// A browser starts and paints more slowly than anything else here, above all on a busy machine.
const BROWSER_PATIENCE: Duration = PATIENCE.saturating_mul(3);

/// A headless Chromium with an empty profile; ended, and the profile removed, when dropped.
pub struct Browser {
    child: Child,
    profile: PathBuf,
    wire: Rc<RefCell<Wire>>,
}

impl Browser {
    pub fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let profile =
            std::env::temp_dir().join(format!("console-test-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&profile);
        std::fs::create_dir_all(&profile).unwrap();
        let mut child = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--disable-quic", "--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync", "--no-proxy-server"])
            // Nothing but this machine can be reached.
            .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
            .args(["--lang=en-US", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .env("HOME", &profile)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("chromium is installed");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let url = lines
            .find_map(|line| line.strip_prefix("DevTools listening on ").map(str::to_owned))
            .expect("chromium tells where it listens");
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, profile, wire: Rc::new(RefCell::new(Wire::connect(&url))) }
    }

    /// Opens a page and waits until it is loaded.
    pub fn open(&self, url: &str) -> Page {
        let target = self.wire.borrow_mut().call(
            None,
            "Target.createTarget",
            json!({"url": "about:blank", "newWindow": true}),
        );
        let session = self.wire.borrow_mut().call(
            None,
            "Target.attachToTarget",
            json!({"targetId": target["targetId"], "flatten": true}),
        );
        let session = session["sessionId"].as_str().unwrap().to_owned();
        let page = Page { wire: Rc::clone(&self.wire), session };
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            page.call(domain, json!({}));
        }
        page.call("Page.navigate", json!({"url": url}));
        page.until("document.readyState === 'complete' && location.href !== 'about:blank'");
        page
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked first, so that its own children end too and write no more.
        if let Ok(mut wire) = self.wire.try_borrow_mut() {
            let request = json!({"id": 0, "method": "Browser.close"});
            let _ = wire.socket.send(Message::text(request.to_string()));
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        while std::fs::remove_dir_all(&self.profile).is_err()
            && self.profile.exists()
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

struct Wire {
    socket: WebSocket<TcpStream>,
    next_id: u64,
    events: Vec<Value>,
}

impl Wire {
    fn connect(url: &str) -> Self {
        let host = url.trim_start_matches("ws://").split('/').next().unwrap();
        let stream = TcpStream::connect(host.parse::<SocketAddr>().unwrap()).unwrap();
        stream.set_read_timeout(Some(BROWSER_PATIENCE)).unwrap();
        let (socket, _) = tungstenite::client(url, stream).unwrap();
        Self { socket, next_id: 1, events: Vec::new() }
    }

    fn call(&mut self, session: Option<&str>, method: &str, params: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            request["sessionId"] = session.into();
        }
        self.socket.send(Message::text(request.to_string())).unwrap();
        loop {
            let Message::Text(text) = self.socket.read().expect("chromium answers") else {
                continue;
            };
            let mut message: Value = serde_json::from_str(&text).unwrap();
            if message["id"] != id {
                self.events.push(message);
                continue;
            }
            assert!(message["error"].is_null(), "{method}: {message}");
            return message["result"].take();
        }
    }
}

/// A tab.
pub struct Page {
    wire: Rc<RefCell<Wire>>,
    session: String,
}

impl Page {
    pub fn call(&self, method: &str, params: Value) -> Value {
        self.wire.borrow_mut().call(Some(&self.session), method, params)
    }

    /// The value of a JavaScript expression.
    pub fn eval(&self, expression: &str) -> Value {
        let mut answer = self.call(
            "Runtime.evaluate",
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true}),
        );
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true; panics with what the page shows at the deadline.
    pub fn until(&self, expression: &str) {
        let deadline = Instant::now() + BROWSER_PATIENCE;
        while self.eval(&format!("Boolean({expression})")) != true {
            assert!(
                Instant::now() < deadline,
                "never came: {expression}\n{}",
                self.eval("document.body.innerText").as_str().unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What an element shows.
    pub fn text(&self, selector: &str) -> String {
        self.eval(&format!("document.querySelector({}).innerText", quoted(selector)))
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Waits until an element shows a part of text.
    pub fn shows(&self, selector: &str, part: &str) {
        let (selector, part) = (quoted(selector), quoted(part));
        self.until(&format!("document.querySelector({selector})?.innerText.includes({part})"));
    }

    /// Clicks on an element, from wherever it is.
    pub fn click(&self, selector: &str) {
        self.eval(&format!("document.querySelector({}).click()", quoted(selector)));
    }

    /// Replaces the text of a field, as if it were pasted.
    pub fn fill(&self, selector: &str, text: &str) {
        let selector = quoted(selector);
        self.eval(&format!(
            "(field => {{ field.closest('details')?.setAttribute('open', ''); field.focus(); \
             field.value = ''; }})(document.querySelector({selector}))"
        ));
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Presses a key on the keyboard: `Tab`, `Enter` or ` `.
    pub fn press(&self, key: &str) {
        let (code, text) = match key {
            "Enter" => (13, "\r"),
            " " => (32, " "),
            "Tab" => (9, ""),
            other => panic!("{other:?} is no key of these tests"),
        };
        let event = |kind: &str| {
            json!({"type": kind, "key": key, "code": if key == " " { "Space" } else { key },
                "windowsVirtualKeyCode": code, "text": if kind == "keyDown" { text } else { "" }})
        };
        self.call("Input.dispatchKeyEvent", event("keyDown"));
        self.call("Input.dispatchKeyEvent", event("keyUp"));
    }

    /// What the browser's console shows as errors and warnings: violated policies, exceptions, failed
    /// requests.
    pub fn complaints(&self) -> Vec<String> {
        // What was said before this answer has come before it.
        self.eval("null");
        let wire = self.wire.borrow();
        wire.events
            .iter()
            .filter(|event| event["sessionId"] == self.session.as_str())
            .filter_map(|event| match event["method"].as_str()? {
                "Log.entryAdded" => Some(&event["params"]["entry"]),
                "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" => Some(&event["params"]),
                _ => None,
            })
            .map(Value::to_string)
            .collect()
    }

    /// Emulates a screen.
    pub fn resize(&self, width: u32, height: u32, is_phone: bool) {
        self.call(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}),
        );
    }

    /// Emulates a colour scheme, `dark` or `light`.
    pub fn prefer(&self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// What it looks like, as PNG.
    pub fn screenshot(&self) -> Vec<u8> {
        let picture = self.call("Page.captureScreenshot", json!({"format": "png"}));
        STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()
    }
}

/// A JavaScript string.
pub fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
