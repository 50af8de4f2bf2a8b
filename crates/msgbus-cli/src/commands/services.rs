//! The commands about services.

use super::{
    Command, CommandSpec,
    table::{ASKED, CONNECT, REFUSED, SIGNAL, USAGE},
};

pub(super) const NO_RESPONDER: (u8, &str) = (7, "nobody serves the service (request)");
pub(super) const TIMED_OUT: (u8, &str) = (8, "there was no reply in time (request)");
pub(super) const FAILED: (u8, &str) = (9, "the responder failed, or left (request)");

pub(super) const REQUEST: CommandSpec = CommandSpec {
    command: Command::Request,
    name: "request",
    alias: None,
    arguments: "SERVICE [PAYLOAD]",
    about: "Ask a service, and print the reply",
    details: "Without PAYLOAD, or with -, the payload is read from standard input. Standard output is\n\
              the payload of the reply, byte for byte; why there is none is on standard error. A\n\
              service that nobody serves is refused at once. After a time-out, or if a responder has\n\
              left, the work may have been done.\n\n\
              It tries again within --timeout while the server cannot be reached or is busy.",
    examples: &[
        "msgbus request upper hello",
        "msgbus request --timeout 30s -t image/png resize < a.png > b.png",
    ],
    max_arguments: 2,
    takes: "one service and one payload",
    runs_a_command: false,
    exit_codes: &[
        (0, "replied"),
        REFUSED,
        USAGE,
        CONNECT,
        (7, "nobody serves the service"),
        (8, "there was no reply in time"),
        (9, "the responder failed, or left"),
    ],
};

pub(super) const SERVE: CommandSpec = CommandSpec {
    command: Command::Serve,
    name: "serve",
    alias: None,
    arguments: "SERVICE COMMAND [ARG...]",
    about: "Answer requests with a command, or with a local HTTP server",
    details: "COMMAND is run once for each request, without a shell, as by msgbus work: it gets the\n\
              payload on standard input, and in its environment MSGBUS_SERVICE, MSGBUS_PAYLOAD and\n\
              MSGBUS_HEADER_CONTENT_TYPE and the like. Its standard output is the reply. If it exits\n\
              with something else than 0, the request fails with the last line of standard error as\n\
              the reason. It is killed when the timeout of the request is over.\n\n\
              With --to instead of COMMAND, each request is a POST to that URI, with its payload,\n\
              content type and headers, and the response is the reply. A status of 400 or more is a\n\
              failure, and so is a server that cannot be reached. Nothing needs to reach this machine\n\
              from outside.\n\n\
              Any number can serve the same service: each request goes to one of them. If the server\n\
              is lost, msgbus connects again by itself. Ctrl-C or SIGTERM takes no more requests and\n\
              lets those in hand finish, at most until their timeouts are over. A second\n\
              signal kills commands and gives the requests back.",
    examples: &[
        "msgbus serve upper -- tr a-z A-Z",
        "msgbus serve -P 4 -t image/png resize -- convert - -resize 50% png:-",
        "msgbus serve orders/api --to http://127.0.0.1:3000/orders",
    ],
    max_arguments: 1,
    takes: "one service",
    runs_a_command: true,
    exit_codes: &[
        (0, "done; requests that failed do not change it"),
        (1, "the server refused, or the command could not be run"),
        USAGE,
        (3, "cannot connect at the start"),
        SIGNAL,
    ],
};

pub(super) const SERVICES: CommandSpec = CommandSpec {
    command: Command::Services,
    name: "services",
    alias: None,
    arguments: "[PREFIX]",
    about: "List the services, who serves them and what became of requests",
    details: "With PREFIX, lists only services whose names begin with it, or match it if it is a\n\
              pattern such as 'orders/*'. RESPONDERS are those that wait for a request. A service that\n\
              nobody uses is forgotten after ten minutes.",
    examples: &["msgbus services", "msgbus services --json 'orders/**'"],
    max_arguments: 1,
    takes: "one prefix",
    runs_a_command: false,
    exit_codes: ASKED,
};
