//! The service inside another program: a small shop that tells user 7 how an order goes on.
//!
//! Start it:
//!
//! ```sh
//! JWT_SECRET=try-it-out cargo run --release --example embed
//! ```
//!
//! It waits for user 7. Connect as this user in a second terminal:
//!
//! ```sh
//! TOKEN=$(JWT_SECRET=try-it-out cargo run -q --release --bin token_gen -- --user 7)
//! python3 -m websockets "ws://localhost:8080/ws?token=$TOKEN"
//! ```
//!
//! The order then takes one step every two seconds, and each step is sent to every connection of user 7.
//! The program ends after the last step, or at Ctrl-C. `PORT` and the other settings of the service
//! work here too; only Redis is off.

use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select};
use realtime_service::config::Config;
use realtime_service::logging;
use realtime_service::notification::NotificationService;
use realtime_service::protocol::models::Order;
use realtime_service::server::Server;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use time::macros::datetime;

/// Who is told: the user id in the token.
const USER: &str = "7";
/// The statuses that the order goes through.
const STEPS: [&str; 4] = ["confirmed", "packed", "on its way", "delivered"];
/// Time between two steps, and between two looks for the user.
const PAUSE: Duration = Duration::from_secs(2);
/// How long queued log lines may take to get out at the end.
const LOG_FLUSH: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut config = Config::from_lookup(|name| env::var(name).ok())?;
    // One process has no other instances to talk to.
    config.redis = None;
    // The service logs through the crate `log`. A program with a logger of its own leaves this line out.
    let printer = logging::init(config.log_level, config.log_format)?;
    let interrupted = watch_signals()?;

    let server = Server::start(config)?;
    println!("The order waits for user {USER} on port {}", server.addr().port());
    let ended = follow_order(&server, &interrupted);
    // Every client gets what is queued for it, then Close 1001, also when the order failed.
    server.shutdown()?;
    printer.flush(LOG_FLUSH);
    ended
}

/// Takes the order through its steps, until the last one or a signal.
fn follow_order(server: &Server, interrupted: &Receiver<()>) -> Result<(), Box<dyn Error>> {
    let notifications = server.notifications();
    let mut order = new_order();
    let mut steps = STEPS.into_iter().peekable();
    while let Some(&step) = steps.peek() {
        order.status = step.to_owned();
        // While the user is away, the order waits at this step.
        if tell(&notifications, &order)? {
            steps.next();
        }
        select! {
            recv(interrupted) -> _ => return Ok(()),
            recv(server.failures()) -> thread => {
                return Err(format!("thread {} of the service failed", thread?).into());
            }
            default(PAUSE) => {}
        }
    }
    Ok(())
}

/// Sends the order; whether any connection of the user took it.
fn tell(notifications: &NotificationService, order: &Order) -> Result<bool, Box<dyn Error>> {
    let connections = notifications.send_order_update(USER, order)?;
    if connections > 0 {
        println!("Order {} is {}: told {connections} connection(s)", order.id_order, order.status);
    }
    Ok(connections > 0)
}

fn new_order() -> Order {
    Order {
        id_order: 123,
        order_date: datetime!(2026-01-02 03:04:05 UTC),
        status: "pending".to_owned(),
        total_amount: 99.95,
        delivery_type: "delivery".to_owned(),
        id_client: 7,
        id_cart: 8,
        id_payment_method: 9,
        id_delivery: None,
    }
}

/// A message at SIGINT (Ctrl-C) or SIGTERM.
fn watch_signals() -> Result<Receiver<()>, Box<dyn Error>> {
    let (sender, receiver) = bounded(1);
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if signals.forever().next().is_some() {
            // The channel has room for one signal, and more are not needed.
            let _ = sender.try_send(());
        }
    })?;
    Ok(receiver)
}
