//! The head of an HTTP/1 response.

use std::io;

use httparse::{EMPTY_HEADER, Header, Response, Status};

/// The maximum number of headers in a response.
const MAX_HEADERS: usize = 32;

/// The head of an HTTP/1 response. Borrows from the input.
#[derive(Debug)]
pub struct ResponseHead<'input> {
    status: u16,
    length: usize,
    headers: [Header<'input>; MAX_HEADERS],
    count: usize,
}

impl<'input> ResponseHead<'input> {
    /// Parses the head at the beginning of `input`; `None` if it is incomplete.
    ///
    /// # Errors
    /// The input is not HTTP/1, or has more than 32 headers.
    pub fn parse(input: &'input [u8]) -> io::Result<Option<Self>> {
        let mut headers = [EMPTY_HEADER; MAX_HEADERS];
        let mut response = Response::new(&mut headers);
        let Status::Complete(length) = response.parse(input).map_err(invalid)? else {
            return Ok(None);
        };
        let (status, count) = (response.code.unwrap_or_default(), response.headers.len());
        Ok(Some(Self { status, length, headers, count }))
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The length of the head in bytes, including the empty line at its end.
    pub fn length(&self) -> usize {
        self.length
    }

    /// All headers in order. A value that is not UTF-8 is empty.
    pub fn headers(&self) -> impl Iterator<Item = (&'input str, &'input str)> {
        let headers = self.headers[..self.count].iter();
        headers.map(|header| (header.name, str::from_utf8(header.value).unwrap_or_default()))
    }

    /// The value of the first header with this name. The case of the name is ignored.
    pub fn header(&self, name: &str) -> Option<&'input str> {
        self.headers().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The length of the body in bytes.
    ///
    /// # Errors
    /// `Content-Length` is missing although there may be a body, or is not a number.
    pub fn body_length(&self) -> io::Result<usize> {
        match self.header("content-length") {
            Some(length) => length.parse().map_err(invalid),
            None if matches!(self.status, 101 | 204 | 304) => Ok(0),
            None => Err(invalid("a response without Content-Length")),
        }
    }
}

/// An error for input that violates the protocol.
pub(crate) fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// An error that shows the beginning of a message that was not expected.
pub(crate) fn unexpected(message: &[u8]) -> io::Error {
    invalid(format!("unexpected: {}", String::from_utf8_lossy(&message[..message.len().min(200)])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_parsed_once_it_is_whole() {
        let input = b"HTTP/1.1 200 OK\r\nContent-LENGTH: 5\r\nX: \xff\r\nx: 2\r\n\r\nhello";
        for end in 0..input.len() - 5 {
            assert!(ResponseHead::parse(&input[..end]).unwrap().is_none(), "{end}");
        }
        let head = ResponseHead::parse(input).unwrap().unwrap();
        assert_eq!((head.status(), head.length()), (200, input.len() - 5));
        assert_eq!(head.body_length().unwrap(), 5);
        assert_eq!(head.header("x"), Some(""));
        assert_eq!(head.headers().count(), 3);
        assert!(ResponseHead::parse(b"SSH-2.0-x\r\n\r\n").is_err());
    }

    #[test]
    fn a_body_of_unknown_length_is_an_error_where_there_may_be_one() {
        let length =
            |text: &str| ResponseHead::parse(text.as_bytes()).unwrap().unwrap().body_length();
        assert_eq!(length("HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap(), 0);
        assert_eq!(length("HTTP/1.1 204 No Content\r\n\r\n").unwrap(), 0);
        assert!(length("HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(length("HTTP/1.1 200 OK\r\nContent-Length: +1x\r\n\r\n").is_err());
    }
}
