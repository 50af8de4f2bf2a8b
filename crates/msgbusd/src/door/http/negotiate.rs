//! Helpers for headers that are lists, or that negotiate a format.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Whether the client accepts this media type by name. Wildcards do not count, and `;q=0` excludes the type.
pub(super) fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    if !headers.contains_key(header::ACCEPT) {
        return false;
    }
    headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|item| {
            let mut parts = item.split(';').map(str::trim);
            parts.next().is_some_and(|named| named.eq_ignore_ascii_case(media_type))
                && !parts.any(is_quality_0)
        })
    })
}

/// Whether a parameter of a media type is `q=0`, not acceptable (RFC 9110, section 12.4.2).
fn is_quality_0(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, value)| {
        name.eq_ignore_ascii_case("q") && value.parse().is_ok_and(|quality: f32| quality <= 0.0)
    })
}

/// The first value of a header. Comparing a few names is faster than hashing one.
pub(super) fn find<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    const FEW: usize = 6;
    if headers.len() > FEW {
        return headers.get(name);
    }
    headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// The items of a header that is a list.
pub(super) fn items<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}
