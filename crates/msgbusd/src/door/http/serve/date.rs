//! The `Date` of responses. hyper caches one for each thread and updates it when its second is over, which is the
//! cheapest way. But after the system clock was set back, hyper's date stands still until the clock has caught up.
//! Meanwhile, this module sets the date.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, SystemTime},
};

use hyper::{
    Response,
    header::{self, HeaderValue},
};

/// The last second of the year 9999, the last that the format can express.
const LAST: u64 = 253_402_300_799;

thread_local! {
    /// The latest second, since 1970, that hyper can have seen on this thread.
    static SEEN: Cell<u64> = const { Cell::new(0) };
    /// Whether the clock is behind `SEEN`.
    static IS_SET_BACK: Cell<bool> = const { Cell::new(false) };
    /// The latest second, since 1970, that was formatted, and its text.
    static LATEST: RefCell<(u64, HeaderValue)> = RefCell::new((0, write(0)));
}

/// Reads the clock. Call it just before an HTTP/1.1 connection is polled, because hyper reads the clock then.
pub(super) fn update() {
    let now = second();
    IS_SET_BACK.set(now < SEEN.get());
    SEEN.set(now.max(SEEN.get()));
}

/// Sets the date of a response if hyper's date would be wrong.
pub(super) fn correct<B>(response: &mut Response<B>) {
    if IS_SET_BACK.get() {
        stamp(response);
    }
}

/// Sets the date of a response.
pub(super) fn stamp<B>(response: &mut Response<B>) {
    response.headers_mut().insert(header::DATE, now());
}

/// The current time in the format of `Date` (RFC 9110, section 5.6.7). It is formatted once per second and thread.
fn now() -> HeaderValue {
    let now = second();
    LATEST.with_borrow_mut(|(second, written)| {
        if *second != now {
            *second = now;
            *written = write(now);
        }
        written.clone()
    })
}

/// The current second since 1970; 0 if the clock is before that.
fn second() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since_1970.as_secs().min(LAST)
}

fn write(second: u64) -> HeaderValue {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    // It cannot fail: the text is ASCII.
    HeaderValue::try_from(httpdate::fmt_http_date(time)).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_has_the_format_of_rfc_9110() {
        assert_eq!(write(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(write(LAST), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
