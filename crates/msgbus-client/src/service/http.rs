//! Requests, and answers to them, over HTTP.

use std::{borrow::Cow, time::Duration};

use hyper::{
    Method, Request as HttpRequest, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderMap},
};
use msgbus_core::{
    Headers, NewRequest, Reply, ReplyToken, TopicName, format_duration, json, parse_duration,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Answer, Replier, Request, RequestError};
use crate::{
    client::Client,
    error::ClientError,
    message_headers,
    settle::Retry,
    transport::{PROBLEM, Problem, RESPONSE_TIMEOUT, buffered_body, is_problem},
};

/// How much longer than the server a requester waits for the head of the response. To connect may take 10 s of it.
const GRACE: Duration = Duration::from_secs(15);

impl Client {
    /// Asks a service, and waits for the reply. The names of its headers are in lower case.
    ///
    /// A service without responders is an error at once. If the future is dropped, the request is taken back.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn request(
        &self,
        service: &TopicName,
        request: impl Into<NewRequest>,
    ) -> Result<Reply, RequestError> {
        let (payload, headers, timeout, may_repeat) = request.into().into_parts();
        let retry = if may_repeat { "&retry" } else { "" };
        let query = format!("timeout={}{retry}", format_duration(timeout));
        let request = HttpRequest::builder()
            .method(Method::POST)
            .uri(self.server().service("request", service, &query))
            .header(header::ACCEPT, PROBLEM);
        let request = message_headers::write(&headers, request);
        let limit = timeout + GRACE;
        let response = self.send_payload(request, buffered_body(payload), limit).await?;
        if response.status() != StatusCode::OK {
            return Err(self.no_reply(response).await);
        }
        let headers = self.message_headers(response.headers())?;
        Ok(Reply { payload: self.body(response).await?, headers })
    }

    fn message_headers(&self, headers: &HeaderMap) -> Result<Headers, ClientError> {
        message_headers::read(headers).map_err(|error| self.not_msgbus(&error.to_string()))
    }

    /// Why there is no reply. Proxies answer with the same statuses, but not with these code words.
    async fn no_reply(&self, response: Response<Incoming>) -> RequestError {
        if !is_problem(response.headers()) {
            let status = response.status().as_u16();
            return match self.refusal(response).await {
                // A proxy may say so after it has passed the request on.
                ClientError::Busy { text, .. } => ClientError::Refused { status, text }.into(),
                error => error.into(),
            };
        }
        let (head, body) = response.into_parts();
        let body = match self.body(Response::new(body)).await {
            Ok(body) => body,
            Err(error) => return error.into(),
        };
        match serde_json::from_slice::<Problem>(&body) {
            // A responder may have the request.
            Ok(Problem { code, .. }) if code == "closed" => {
                self.lost("the server has stopped").into()
            }
            Ok(Problem { code, detail }) => RequestError::of_code(&code, &detail)
                .unwrap_or_else(|| self.refused(head.status, &head.headers, detail).into()),
            Err(error) => self.not_msgbus(&format!("invalid JSON: {}", json::brief(&error))).into(),
        }
    }

    /// Takes up to `max` requests of a service; waits for the first one, if `wait` is given.
    pub(super) async fn take_requests(
        &self,
        service: &TopicName,
        max: usize,
        wait: Option<Duration>,
    ) -> Result<Vec<Request>, ClientError> {
        let limit = RESPONSE_TIMEOUT.saturating_add(wait.unwrap_or_default());
        let wait = wait.map_or(String::new(), |wait| format!("&wait={}", format_duration(wait)));
        let uri = self.server().service("serve", service, &format!("max={max}{wait}"));
        let response =
            self.send(HttpRequest::builder().method(Method::GET).uri(uri), limit).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NO_CONTENT => return Ok(Vec::new()),
            _ => return Err(self.refusal(response).await),
        }
        let body = self.body(response).await?;
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| self.read_request(service, line)).collect()
    }

    fn read_request(&self, service: &TopicName, line: &[u8]) -> Result<Request, ClientError> {
        /// Without the limit of messages: `max` is given, so it comes as JSON, which keeps the case of names.
        #[derive(Deserialize)]
        struct RequestIn<'a> {
            #[serde(borrow)]
            reply: Cow<'a, str>,
            #[serde(borrow)]
            timeout: Cow<'a, str>,
            #[serde(borrow)]
            payload: Cow<'a, str>,
            #[serde(borrow)]
            headers: Option<&'a RawValue>,
        }
        let RequestIn { reply, timeout, payload, headers } = serde_json::from_slice(line)
            .map_err(|error| self.not_msgbus(&format!("not a request: {}", json::brief(&error))))?;
        let token = reply.parse().map_err(|_| self.not_msgbus("not a reply token"))?;
        let time_left = parse_duration(&timeout).map_err(|_| self.not_msgbus("not a timeout"))?;
        let payload = json::read_base64(&payload)?;
        let headers =
            headers.map_or(Ok(Headers::default()), |headers| json::read_headers(headers.get()))?;
        let replier = Replier::Http(Box::new(self.clone()));
        Ok(Request::new(replier, service.clone(), token, (payload.into(), headers), time_left))
    }

    /// Answers a request. Tries again for the time `within`.
    pub(super) async fn answer(
        &self,
        token: &ReplyToken,
        answer: &Answer,
        within: Duration,
    ) -> Result<(), ClientError> {
        Retry::within(within).repeat(|limit| self.answer_once(token, answer, limit)).await
    }

    async fn answer_once(
        &self,
        token: &ReplyToken,
        answer: &Answer,
        limit: Duration,
    ) -> Result<(), ClientError> {
        let (query, reply) = match answer {
            Answer::Reply(reply) => (String::new(), reply.clone()),
            Answer::Failure(failure) => {
                let reason = failure.text();
                let reason = utf8_percent_encode(&reason, NON_ALPHANUMERIC);
                (format!("error={reason}"), Reply::default())
            }
            Answer::Decline => ("retry".to_owned(), Reply::default()),
        };
        let uri = self.server().settlement("reply", &token.to_string(), &query);
        let request = HttpRequest::builder().method(Method::POST).uri(uri);
        let request = message_headers::write(&reply.headers, request);
        let response = self.send_payload(request, buffered_body(reply.payload), limit).await?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(()),
            StatusCode::GONE => Err(ClientError::ReplyNotWanted),
            _ => Err(self.refusal(response).await),
        }
    }
}
