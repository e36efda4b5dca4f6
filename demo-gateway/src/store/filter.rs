//! Which rows are meant: by the query of a URL, and in SQL.

use std::time::{Duration, SystemTime};

use percent_encoding::percent_decode_str;

use super::database::Dialect;
use crate::{
    clock::{parse_rfc3339, rfc3339},
    config::parse_duration,
    errors::ApiError,
};

/// How many rows a page has, if nobody says, and at most.
const USUAL: u32 = 100;
const MOST: u32 = 1000;

/// What a verdict can be.
const VERDICTS: [&str; 8] = [
    "success",
    "failure",
    "overload",
    "caller_fault",
    "timed_out",
    "unsent",
    "refused",
    "canceled",
];

/// A value of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arg {
    Text(String),
    Number(i64),
}

/// Which rows are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Columns and what they must be.
    pub(super) equal: Vec<(&'static str, Arg)>,
    pub(super) success: Option<bool>,
    pub(super) since: Option<SystemTime>,
    pub(super) until: Option<SystemTime>,
    /// Only rows with a smaller `id`: the next page.
    pub(super) before: Option<i64>,
    pub(super) limit: u32,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            equal: Vec::new(),
            success: None,
            since: None,
            until: None,
            before: None,
            limit: USUAL,
        }
    }
}

/// Which filters a table has beside those by time and page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Requests,
    ScalingEvents,
}

impl Filter {
    /// Reads the query of a URL.
    ///
    /// # Errors
    ///
    /// 400 with the parameter that is wrong.
    pub(super) fn of_query(query: &str, table: Table, date: SystemTime) -> Result<Self, ApiError> {
        let mut filter = Self::default();
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let wrong =
                |detail: String| ApiError::bad_request(format!("`{name}` {detail}")).param(name);
            // As forms are written; but the zone of a date is said with a plus.
            let value = match name {
                "since" | "until" => value.into(),
                _ => value.replace('+', " "),
            };
            let value = percent_decode_str(&value).decode_utf8();
            let value = value.map_err(|_| wrong("is not UTF-8".into()))?;
            if value.is_empty() {
                return Err(wrong("says nothing".into()));
            }
            if seen.contains(&name) {
                return Err(wrong("is there twice".into()));
            }
            seen.push(name);
            let of_request = filter.take(name, &value, date).map_err(wrong)?;
            if of_request == Some(Table::Requests) && table != Table::Requests
                || of_request.is_none()
            {
                let names = match table {
                    Table::Requests => {
                        "`client`, `backend`, `model`, `success`, `verdict`, `status`, `request_id`, `since`, `until`, `limit` and `before`"
                    }
                    Table::ScalingEvents => "`since`, `until`, `limit` and `before`",
                };
                return Err(wrong(format!("is no filter: there are {names}")));
            }
        }
        Ok(filter)
    }

    /// Takes one parameter up. `None` if there is none of the name, else for which table it is, at least.
    fn take(&mut self, name: &str, value: &str, date: SystemTime) -> Result<Option<Table>, String> {
        let text = |column| (column, Arg::Text(value.replace('\0', "\u{fffd}")));
        let number = |most: i64| match value.parse::<i64>() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(format!("is not a number from 1 to {most}")),
        };
        match name {
            "client" => self.equal.push(text("client_id")),
            "backend" => self.equal.push(text("backend_id")),
            "model" => self.equal.push(text("model")),
            "request_id" => self.equal.push(text("request_id")),
            "verdict" if VERDICTS.contains(&value) => self.equal.push(text("verdict")),
            "verdict" => return Err(format!("is none of `{}`", VERDICTS.join("`, `"))),
            "status" => {
                let status = number(999)?;
                self.equal.push(("status", Arg::Number(status)));
            }
            "success" => {
                self.success = match value {
                    "true" => Some(true),
                    "false" => Some(false),
                    _ => return Err("is neither `true` nor `false`".into()),
                }
            }
            "since" => self.since = Some(instant(value, date)?),
            "until" => self.until = Some(instant(value, date)?),
            "before" => self.before = Some(number(i64::MAX)?),
            "limit" => self.limit = number(i64::from(MOST))? as u32,
            _ => return Ok(None),
        }
        Ok(Some(match name {
            "since" | "until" | "before" | "limit" => Table::ScalingEvents,
            _ => Table::Requests,
        }))
    }

    /// Puts the conditions to a `SELECT`: one row more than asked for, which tells whether there are more.
    pub(super) fn newest_first(&self, select: &str, dialect: &Dialect) -> (String, Vec<Arg>) {
        let (mut conditions, mut args) = self.conditions(dialect);
        if let Some(before) = self.before {
            args.push(Arg::Number(before));
            conditions.push(format!("id < ${}", args.len()));
        }
        let limit = self.limit + 1;
        let sql = format!(
            "{select}{} ORDER BY id DESC LIMIT {limit}",
            all(&conditions)
        );
        (sql, args)
    }

    /// The same from the oldest on, after a row and up to another.
    pub(super) fn oldest_first(
        &self,
        select: &str,
        dialect: &Dialect,
        after: i64,
        last: i64,
    ) -> (String, Vec<Arg>) {
        let (mut conditions, mut args) = self.conditions(dialect);
        args.extend([Arg::Number(after), Arg::Number(last)]);
        let many = args.len();
        conditions.push(format!("id > ${} AND id <= ${many}", many - 1));
        let limit = self.limit;
        let sql = format!("{select}{} ORDER BY id LIMIT {limit}", all(&conditions));
        (sql, args)
    }

    fn conditions(&self, dialect: &Dialect) -> (Vec<String>, Vec<Arg>) {
        let (mut conditions, mut args) = (Vec::new(), Vec::new());
        for (column, arg) in &self.equal {
            args.push(arg.clone());
            conditions.push(format!("{column} = ${}", args.len()));
        }
        // In the words of the index.
        match self.success {
            Some(true) => conditions.push("success".into()),
            Some(false) => conditions.push("NOT success".into()),
            None => {}
        }
        for (compares, date) in [(">=", self.since), ("<", self.until)] {
            if let Some(date) = date {
                args.push(Arg::Text(rfc3339(date)));
                let date = dialect.at(&format!("${}", args.len()));
                conditions.push(format!("timestamp {compares} {date}"));
            }
        }
        (conditions, args)
    }
}

fn all(conditions: &[String]) -> String {
    if conditions.is_empty() {
        return String::new();
    }
    format!(" WHERE {}", conditions.join(" AND "))
}

/// A date after RFC 3339, or how long ago.
pub(super) fn instant(text: &str, date: SystemTime) -> Result<SystemTime, String> {
    let ago = |ago: Duration| date.checked_sub(ago);
    parse_rfc3339(text)
        .or_else(|| parse_duration(text).ok().and_then(ago))
        .ok_or_else(|| {
            "is neither a date such as `2026-11-22T16:00:00Z` nor how long ago, such as `15m`"
                .into()
        })
}
