//! `msgbus services`.

use msgbus_client::{Client, ServiceSummary, TopicPattern};

use crate::{
    failure::{Exit, Failure},
    output::{print, printable},
    topics::{json_line, table},
};

#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) client: Client,
    pub(crate) prefix: String,
    /// Lists these instead of those with the prefix.
    pub(crate) pattern: Option<TopicPattern>,
    pub(crate) json: bool,
}

impl Services {
    fn lists(&self, service: &ServiceSummary) -> bool {
        match &self.pattern {
            Some(pattern) => service.name.parse().is_ok_and(|name| pattern.matches(&name)),
            None => service.name.starts_with(&self.prefix),
        }
    }
}

const HEAD: [&str; 9] = [
    "SERVICE",
    "RESPONDERS",
    "QUEUED",
    "IN HAND",
    "ASKED",
    "REPLIED",
    "FAILED",
    "TIMED OUT",
    "REFUSED",
];

pub(crate) async fn run(args: Services) -> Result<Exit, Failure> {
    let mut services = args.client.services().await?;
    services.retain(|service| args.lists(service));
    if args.json {
        print(&services.iter().map(json_line).collect::<String>())?;
    } else {
        print(&table(HEAD, services.iter().map(row)))?;
    }
    Ok(Exit::Done)
}

fn row(service: &ServiceSummary) -> [String; 9] {
    [
        printable(&service.name),
        service.responders.to_string(),
        service.queued.to_string(),
        service.in_hand.to_string(),
        service.asked.to_string(),
        service.replied.to_string(),
        service.failed.to_string(),
        service.timed_out.to_string(),
        service.refused.to_string(),
    ]
}
