//! The `Date` of answers. hyper keeps one for each thread and renews it when its second is over, which costs least:
//! but after the system's clock was set back, it stands still until the clock is there again. Answers have one of
//! this server's own meanwhile.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, SystemTime},
};

use hyper::{
    Response,
    header::{self, HeaderValue},
};

/// The last second of the year 9999, which is the last that the format can say.
const LAST: u64 = 253_402_300_799;

thread_local! {
    /// The latest second that hyper can have seen on this thread, since 1970.
    static SEEN: Cell<u64> = const { Cell::new(0) };
    /// Whether the clock is behind it.
    static IS_SET_BACK: Cell<bool> = const { Cell::new(false) };
    /// The latest second that was asked for, since 1970, and how it is written.
    static LATEST: RefCell<(u64, HeaderValue)> = RefCell::new((0, write(0)));
}

/// Looks at the clock, as hyper does whenever a connection of HTTP/1.1 is polled: to be called just before.
pub(super) fn look() {
    let now = second();
    IS_SET_BACK.set(now < SEEN.get());
    SEEN.set(now.max(SEEN.get()));
}

/// Says when an answer was made, where hyper would say another time.
pub(super) fn correct<B>(answer: &mut Response<B>) {
    if IS_SET_BACK.get() {
        stamp(answer);
    }
}

/// Says when an answer was made.
pub(super) fn stamp<B>(answer: &mut Response<B>) {
    answer.headers_mut().insert(header::DATE, now());
}

/// The time as `Date` has it (RFC 9110, section 5.6.7): written once for each second and thread.
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

/// The second that it is, since 1970: a clock before that was never set.
fn second() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since_1970.as_secs().min(LAST)
}

fn write(second: u64) -> HeaderValue {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    // Digits, letters, spaces and colons.
    HeaderValue::try_from(httpdate::fmt_http_date(time)).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_rfc_9110_has_it() {
        assert_eq!(write(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(write(LAST), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
