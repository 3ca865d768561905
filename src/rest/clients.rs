//! `GET /admin/clients?room=…&user=…&page=…`: which connections are wanted, and their JSON.

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::hub::{ListQuery, ListedConnection, Listing};
use crate::protocol::{Id, Room};

/// Connections on a page.
const PAGE_SIZE: usize = 100;

/// A page of the list.
#[derive(Debug)]
pub(super) struct Page {
    room: Option<Room>,
    user: Option<Id>,
    /// From 1.
    number: usize,
}

impl Page {
    /// What the hub is asked.
    pub(super) fn query(&self) -> ListQuery {
        ListQuery {
            room: self.room.clone(),
            user: self.user.clone(),
            offset: (self.number - 1).saturating_mul(PAGE_SIZE),
            limit: PAGE_SIZE,
        }
    }
}

/// Reads the query; `None` when it asks for no list, and so for counts only.
///
/// # Errors
/// What is wrong, and where.
pub(super) fn parse(query: &str) -> Result<Option<Page>, String> {
    let mut page = Page { room: None, user: None, number: 1 };
    let mut wants_list = false;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "room" => {
                let room =
                    Room::parse(&value).map_err(|_| format!("room {value:?} is no room name"))?;
                page.room = Some(room);
            }
            "user" => {
                let id = Id::parse(&value).map_err(|_| format!("user {value:?} is no user id"))?;
                page.user = Some(id);
            }
            "page" => {
                let number = value.parse().ok().filter(|number| *number > 0);
                page.number =
                    number.ok_or_else(|| format!("page is {value:?}, expected a number from 1"))?;
            }
            // Proxies and caches add members of their own.
            _ => continue,
        }
        wants_list = true;
    }
    Ok(wants_list.then_some(page))
}

/// The members that the list adds to the counts, with a comma in front.
pub(super) fn members(page: &Page, listing: &Listing, instance: &str) -> String {
    let rows: Vec<_> = listing.connections.iter().map(|row| Row::new(row, instance)).collect();
    // Rows of strings and numbers always serialise.
    let rows = serde_json::to_string(&rows).unwrap_or_default();
    format!(
        r#","total":{},"page":{},"pages":{},"connections":{rows}"#,
        listing.total,
        page.number,
        listing.total.div_ceil(PAGE_SIZE),
    )
}

#[derive(Serialize)]
struct Row<'a> {
    id: String,
    user: &'a str,
    role: &'a str,
    rooms: &'a [Room],
    #[serde(skip_serializing_if = "Option::is_none")]
    rooms_total: Option<usize>,
    since: String,
    sent: u64,
    received: u64,
    backlog: u64,
}

impl<'a> Row<'a> {
    fn new(connection: &'a ListedConnection, instance: &str) -> Self {
        let since = OffsetDateTime::now_utc() - connection.age;
        let since = since.replace_nanosecond(0).unwrap_or(since);
        Self {
            id: format!("{instance}-{}", connection.number),
            user: connection.identity.user_id.as_str(),
            role: connection.identity.role.as_str(),
            rooms: &connection.rooms,
            rooms_total: Some(connection.rooms_total)
                .filter(|total| *total > connection.rooms.len()),
            since: since.format(&Rfc3339).unwrap_or_default(),
            sent: connection.sent,
            received: connection.received,
            backlog: connection.backlog,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_query_asks_for_a_page_or_for_nothing() {
        assert!(parse("").unwrap().is_none());
        assert!(parse("_=1").unwrap().is_none());
        let page = parse("room=order-1&user=a%2Bb&page=3").unwrap().unwrap().query();
        assert_eq!(page.room, Some(Room::parse("order-1").unwrap()));
        assert_eq!((page.user, page.offset), (Id::parse("a+b").ok(), 200));
        assert_eq!(parse("page=0").unwrap_err(), "page is \"0\", expected a number from 1");
        assert_eq!(parse("user=a%20b").unwrap_err(), "user \"a b\" is no user id");
        assert_eq!(parse("room=a%0Ab").unwrap_err(), "room \"a\\nb\" is no room name");
        let far = parse(&format!("page={}", usize::MAX)).unwrap().unwrap().query();
        assert_eq!(far.offset, usize::MAX);
    }
}
