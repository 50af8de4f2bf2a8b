//! Query parameters. Known parameters with invalid values are refused; unknown ones are refused where a misspelt one
//! would do harm.

use std::{ops::RangeInclusive, time::Duration};

use hyper::Request;

use super::error::ApiError;
use crate::service::parameters;

/// The decoded query string. It is parsed once for each request, and outlives the request's head.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        Self::parse(request.uri().query())
    }

    pub(super) fn parse(query: Option<&str>) -> Self {
        let Some(query) = query else { return Self(Vec::new()) };
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses parameters that are not among `known`.
    pub(super) fn only(self, known: &'static [&'static str]) -> Result<Self, ApiError> {
        // Scripts add `_` to bypass caches.
        let is_known = |name: &str| name == "_" || known.contains(&name);
        match self.0.iter().find(|(name, _)| !is_known(name)) {
            Some((name, _)) => {
                Err(ApiError::UnknownParameter { name: name.chars().take(40).collect(), known })
            }
            None => Ok(self),
        }
    }

    /// Whether a parameter is present, with any value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// The value of a parameter. It must not be repeated.
    pub(super) fn get(&self, name: &'static str) -> Result<Option<&str>, ApiError> {
        let mut values = self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(ApiError::RepeatedParameter(name)),
            (value, None) => Ok(value.map(AsRef::as_ref)),
        }
    }

    /// A boolean parameter: `?raw`, `?raw=1` or `?raw=true`.
    pub(super) fn flag(&self, name: &'static str) -> Result<bool, ApiError> {
        match self.get(name)? {
            None | Some("0" | "false") => Ok(false),
            Some("" | "1" | "true") => Ok(true),
            Some(_) => Err(ApiError::parameter(name, "omit the value, or use 1, true, 0 or false")),
        }
    }

    /// A parameter that is a whole number, 1 or more.
    pub(super) fn count(&self, name: &'static str) -> Result<Option<usize>, ApiError> {
        self.get(name)?
            .map(|text| text.parse().ok().filter(|count| *count > 0))
            .map(|count| {
                count.ok_or_else(|| ApiError::parameter(name, "use a whole number, 1 or more"))
            })
            .transpose()
    }

    /// A parameter that is a duration.
    pub(super) fn duration(
        &self,
        name: &'static str,
        allowed: RangeInclusive<Duration>,
    ) -> Result<Option<Duration>, ApiError> {
        let Some(text) = self.get(name)? else { return Ok(None) };
        Ok(Some(parameters::duration(name, text, &allowed)?))
    }
}
