//! The commands themselves, and their exit codes.

use super::{
    Command, CommandSpec,
    services::{self, FAILED, NO_RESPONDER, TIMED_OUT},
};

pub(super) const USAGE: (u8, &str) = (2, "wrong usage");
pub(super) const CONNECT: (u8, &str) = (3, "cannot connect, or the connection was lost");
pub(super) const REFUSED: (u8, &str) =
    (1, "the server refused, or the output could not be written");
const FOLLOWED: &str = "--timeout before --count";
const MISSED: (u8, &str) = (6, "messages were missed (with --strict)");
pub(super) const SIGNAL: (u8, &str) = (130, "ended by a second signal");
const PRINTED: &[(u8, &str)] = &[(0, "done"), (1, "the output could not be written"), USAGE];
pub(super) const ASKED: &[(u8, &str)] = &[(0, "done"), REFUSED, USAGE, CONNECT];
const ABOUT_A_TOPIC: &[(u8, &str)] =
    &[(0, "done"), (1, "there is no such topic, or the server refused"), USAGE, CONNECT];

const SETTLED: &[(u8, &str)] =
    &[(0, "done"), (1, "a lease was over, or the server refused"), USAGE, CONNECT];
const TOKENS: &str = "A TOKEN comes from msgbus pull --group, or from the header Msgbus-Lease. With - they are read\n\
                      from standard input, one per line. Leases that were over are reported; all others are\n\
                      settled. It tries again within --timeout while the server cannot be reached or is busy.";

pub(crate) const COMMANDS: [CommandSpec; 23] = [
    CommandSpec {
        command: Command::Pub,
        name: "pub",
        alias: Some("put"),
        arguments: "TOPIC [MESSAGE]",
        about: "Publish a message",
        details: "Without MESSAGE, or with -, the message is read from standard input.\n\
                  Use -- before a MESSAGE that starts with a dash.\n\n\
                  With --from-dump, without TOPIC and MESSAGE, each line of standard input is a message\n\
                  as JSON. It is published to its topic, with its headers and the ttl that is left.\n\n\
                  It tries again within --timeout while the server cannot be reached or is busy.",
        examples: &[
            "msgbus pub orders '{\"id\": 7}'",
            "tail -f app.log | msgbus pub --lines logs",
            "msgbusd data dump /var/lib/msgbus | msgbus pub --from-dump",
        ],
        max_arguments: 2,
        takes: "one topic and one message",
        runs_a_command: false,
        exit_codes: &[
            (0, "published"),
            (1, "the server refused the message, or did not answer within --timeout"),
            USAGE,
            (3, "cannot connect, or the connection was lost: the message may be published"),
        ],
    },
    CommandSpec {
        command: Command::Sub,
        name: "sub",
        alias: Some("reg"),
        arguments: "TOPIC... [COMMAND [ARG...]]",
        about: "Follow topics, or run a command for each message",
        details: "In a TOPIC, * stands for one segment, and ** at the end for all that follow: 'orders/**'\n\
                  follows every topic below orders, also those made later. Put patterns in quotes.\n\n\
                  Reconnects and resumes by itself: nothing that the server still has is lost or\n\
                  repeated, and what it no longer has is reported on standard error.\n\n\
                  COMMAND is run once for each message, one at a time, in order, without a shell. It\n\
                  gets the message as JSON on standard input, with -o raw the payload, and in its\n\
                  environment MSGBUS_ID, MSGBUS_TOPIC and, if the payload is UTF-8 text of at most\n\
                  4096 bytes without NUL, MSGBUS_PAYLOAD. A header such as Reply-To is\n\
                  MSGBUS_HEADER_REPLY_TO. Everything after COMMAND belongs to it, dashes included. If\n\
                  it fails, that is reported and the next message follows; with --cursor, msgbus\n\
                  exits instead, and starts with that message the next time.\n\n\
                  COMMAND goes behind --, which may be left out after a single TOPIC if the next\n\
                  argument is a program.",
        examples: &[
            "msgbus sub orders --since all",
            "msgbus sub 'orders/**' invoices",
            "msgbus sub -o raw --cursor place 'orders/**' -- wc -c",
        ],
        max_arguments: usize::MAX,
        takes: "topics",
        runs_a_command: true,
        exit_codes: &[
            (0, "done"),
            (1, "the server refused, a command failed with --cursor, output could not be written"),
            USAGE,
            CONNECT,
            (5, FOLLOWED),
            MISSED,
            SIGNAL,
        ],
    },
    CommandSpec {
        command: Command::Pull,
        name: "pull",
        alias: Some("get"),
        arguments: "TOPIC",
        about: "Take the oldest message that has not been taken",
        details: "If the topic is empty, prints nothing and exits 0 (5 with --fail-empty).\n\
                  With --timeout it waits that long for --count messages.\n\n\
                  With --group, a message is leased, and the group is given it again when the lease\n\
                  is over, unless it is acknowledged before: with --ack, once it is printed; else with\n\
                  msgbus ack TOKEN. The token is the field lease of the JSON; otherwise it is printed\n\
                  on standard error, on a line of its own.",
        examples: &[
            "msgbus pull jobs",
            "msgbus pull --wait 1m -o raw jobs",
            "msgbus pull --group workers --lease 10m jobs",
        ],
        max_arguments: 1,
        takes: "one topic",
        runs_a_command: false,
        exit_codes: &[
            (0, "done"),
            REFUSED,
            USAGE,
            CONNECT,
            (5, "no message (with --fail-empty), or --timeout before --count"),
            SIGNAL,
        ],
    },
    CommandSpec {
        command: Command::Ack,
        name: "ack",
        alias: None,
        arguments: "TOKEN...",
        about: "Acknowledge leased messages: they are done",
        details: TOKENS,
        examples: &[
            "msgbus ack \"$token\"",
            "msgbus pull -g workers --max 50 jobs | tee work | jq -r .lease | msgbus ack -",
        ],
        max_arguments: usize::MAX,
        takes: "tokens",
        runs_a_command: false,
        exit_codes: SETTLED,
    },
    CommandSpec {
        command: Command::Nack,
        name: "nack",
        alias: None,
        arguments: "TOKEN...",
        about: "Give leased messages back: they are redelivered",
        details: TOKENS,
        examples: &[
            "msgbus nack \"$token\"",
            "msgbus nack --delay 1m --reason \"no disk space\" \"$token\"",
        ],
        max_arguments: usize::MAX,
        takes: "tokens",
        runs_a_command: false,
        exit_codes: SETTLED,
    },
    CommandSpec {
        command: Command::Extend,
        name: "extend",
        alias: None,
        arguments: "TOKEN...",
        about: "Extend leases: they begin again now",
        details: TOKENS,
        examples: &["msgbus extend \"$token\"", "msgbus extend --lease 10m \"$token\""],
        max_arguments: usize::MAX,
        takes: "tokens",
        runs_a_command: false,
        exit_codes: SETTLED,
    },
    CommandSpec {
        command: Command::Work,
        name: "work",
        alias: None,
        arguments: "TOPIC COMMAND [ARG...]",
        about: "Run a command for each message of a group",
        details: "--group is required. COMMAND is run once for each message, as by msgbus sub; its\n\
                  environment also has MSGBUS_DELIVERIES, 1 at the first delivery. If it exits with 0,\n\
                  the message is acknowledged. If not, it is redelivered after --retry-delay, with the\n\
                  last line of standard error as the reason, and becomes a dead letter after as many\n\
                  deliveries as the group allows. Leases are extended while commands run.\n\n\
                  Any number of workers can share a group. A message may be delivered more than once:\n\
                  COMMAND should do no harm if it runs again.\n\n\
                  Ctrl-C or SIGTERM lets running commands finish. A second signal kills them and gives\n\
                  their messages back. If the server is lost, running commands go on, and their acks are\n\
                  tried until the lease is over.",
        examples: &[
            "msgbus work jobs --group workers -o raw -- ./resize",
            "msgbus work hooks -g hooks -P 4 -o raw -- curl -fsS --json @- https://example.com/hook",
        ],
        max_arguments: 1,
        takes: "one topic",
        runs_a_command: true,
        exit_codes: &[
            (0, "done; commands that failed do not change it"),
            (1, "the server refused, or the command could not be run"),
            USAGE,
            (3, "cannot connect at the start"),
            SIGNAL,
        ],
    },
    CommandSpec {
        command: Command::Dead,
        name: "dead",
        alias: None,
        arguments: "TOPIC",
        about: "Show the dead letters of a topic",
        details: "Shows messages that were delivered too often and wait to be published again. Their\n\
                  headers say from which topic and group they come, how often they were delivered, and\n\
                  the last reason.",
        examples: &["msgbus dead jobs", "msgbus dead -n 1 -o raw jobs"],
        max_arguments: 1,
        takes: "one topic",
        runs_a_command: false,
        exit_codes: ASKED,
    },
    CommandSpec {
        command: Command::Redrive,
        name: "redrive",
        alias: None,
        arguments: "TOPIC",
        about: "Publish the dead letters of a topic again",
        details: "Publishes each to the topic that it comes from, with its payload and headers, and\n\
                  prints how many. A message that fails again is a new dead letter, left for the next\n\
                  time. If msgbus is killed, a message may be published twice.",
        examples: &["msgbus redrive jobs", "msgbus redrive -n 1 jobs"],
        max_arguments: 1,
        takes: "one topic",
        runs_a_command: false,
        exit_codes: &[
            (0, "done"),
            (1, "the server refused, or there is something else among the dead letters"),
            USAGE,
            CONNECT,
            SIGNAL,
        ],
    },
    CommandSpec {
        command: Command::Group,
        name: "group",
        alias: None,
        arguments: "TOPIC GROUP",
        about: "Show, create, change, move or remove a group",
        details: "Without options, shows the group: its settings and counters, and who holds leases.\n\
                  --max-deliveries, --max-leases and --dead-letters change it, and create it if there is\n\
                  none. --since also moves it: its leases are lost and its counters begin at 0.\n\n\
                  A group need not be created: the first pull does.",
        examples: &["msgbus group jobs workers", "msgbus group jobs workers --since 10m"],
        max_arguments: 2,
        takes: "one topic and one group",
        runs_a_command: false,
        exit_codes: &[
            (0, "done"),
            (1, "there is no such group, or the server refused"),
            USAGE,
            CONNECT,
        ],
    },
    services::REQUEST,
    services::SERVE,
    services::SERVICES,
    CommandSpec {
        command: Command::Tail,
        name: "tail",
        alias: None,
        arguments: "TOPIC...",
        about: "Show the last messages, then follow the topics",
        details: "Like sub, but starts with the last --count messages in the topics.",
        examples: &["msgbus tail orders", "msgbus tail -n 100 -o raw 'logs/**'"],
        max_arguments: usize::MAX,
        takes: "topics",
        runs_a_command: false,
        exit_codes: &[(0, "done"), REFUSED, USAGE, CONNECT, MISSED, SIGNAL],
    },
    CommandSpec {
        command: Command::Topics,
        name: "topics",
        alias: Some("ls"),
        arguments: "[PREFIX]",
        about: "List the topics and what is in them",
        details: "With PREFIX, lists only topics whose names begin with it, or match it if it is a\n\
                  pattern such as 'orders/*'.",
        examples: &["msgbus topics", "msgbus topics --json orders/", "msgbus topics --groups"],
        max_arguments: 1,
        takes: "one prefix",
        runs_a_command: false,
        exit_codes: ASKED,
    },
    CommandSpec {
        command: Command::Info,
        name: "info",
        alias: None,
        arguments: "TOPIC",
        about: "Show the settings, counters, subscribers and groups of a topic",
        details: "LAG is the number of messages a subscriber has not received yet. For groups, it also\n\
                  shows who holds leases, and since when.",
        examples: &["msgbus info orders", "msgbus info --json orders"],
        max_arguments: 1,
        takes: "one topic",
        runs_a_command: false,
        exit_codes: ABOUT_A_TOPIC,
    },
    CommandSpec {
        command: Command::Purge,
        name: "purge",
        alias: None,
        arguments: "TOPIC",
        about: "Take and discard all messages that have not been taken",
        details: "Prints how many. The topic keeps its counters and subscribers, and discarded\n\
                  messages can still be replayed until they expire. rm deletes the topic instead.\n\n\
                  Messages that are published meanwhile may be discarded too.",
        examples: &["msgbus purge jobs", "msgbus purge jobs && msgbus info jobs"],
        max_arguments: 1,
        takes: "one topic",
        runs_a_command: false,
        exit_codes: ASKED,
    },
    CommandSpec {
        command: Command::Rm,
        name: "rm",
        alias: None,
        arguments: "TOPIC",
        about: "Delete a topic with its messages",
        details: "Its subscribers are notified. To discard only messages not yet taken, see purge.",
        examples: &["msgbus rm orders", "msgbus --uri unix:/run/msgbus.sock rm orders/eu"],
        max_arguments: 1,
        takes: "one topic",
        runs_a_command: false,
        exit_codes: ABOUT_A_TOPIC,
    },
    CommandSpec {
        command: Command::Ping,
        name: "ping",
        alias: None,
        arguments: "",
        about: "Check that the server answers",
        details: "Prints the response time. No key is required. With --timeout, waits that long for\n\
                  a server that cannot be reached yet.",
        examples: &["msgbus ping", "msgbus ping -q --timeout 30s && msgbus pub ready yes"],
        max_arguments: 0,
        takes: "no arguments",
        runs_a_command: false,
        exit_codes: ASKED,
    },
    CommandSpec {
        command: Command::Bench,
        name: "bench",
        alias: None,
        arguments: "BENCHMARK",
        about: "Measure a server, and account for every message",
        details: "pub      clients publish\n\
                  pull     clients pull what was published before\n\
                  fanout   subscribers receive what clients publish\n\
                  latency  the same at a rate [1000] that the server can sustain\n\
                  idle     subscribers that receive nothing; --pid shows what they cost\n\
                  sub      subscribers receive what another msgbus bench pub publishes\n\
                  request  clients ask a service, which --responders serve; each is a round trip\n\n\
                  Latency is the time until the response or, with subscribers, until they have the\n\
                  message; with --rate, it counts from the time at which the request was due. bench\n\
                  creates topics and deletes them at the end, unless --topic names one. It uses one\n\
                  thread, and shares the machine with a local server; start several for more load.",
        examples: &[
            "msgbus bench fanout --subs 100",
            "msgbus bench latency --rate 5000 --pid $(pidof msgbusd)",
        ],
        max_arguments: 1,
        takes: "one benchmark",
        runs_a_command: false,
        exit_codes: &[
            (0, "done"),
            (1, "an error, or ended by a signal"),
            USAGE,
            CONNECT,
            (6, "messages were lost, repeated or reordered"),
            SIGNAL,
        ],
    },
    CommandSpec {
        command: Command::Completion,
        name: "completion",
        alias: None,
        arguments: "bash|zsh|fish",
        about: "Print completions for a shell",
        details: "They complete commands, options and topic names, which they get from the server.",
        examples: &[
            "source <(msgbus completion bash)",
            "msgbus completion zsh > \"${fpath[1]}/_msgbus\"",
            "msgbus completion fish > ~/.config/fish/completions/msgbus.fish",
        ],
        max_arguments: 1,
        takes: "one shell",
        runs_a_command: false,
        exit_codes: PRINTED,
    },
    CommandSpec {
        command: Command::Man,
        name: "man",
        alias: None,
        arguments: "",
        about: "Print the manual page",
        details: "Prints it in roff format.",
        examples: &["msgbus man | man -l -", "msgbus man > /usr/local/share/man/man1/msgbus.1"],
        max_arguments: 0,
        takes: "no arguments",
        runs_a_command: false,
        exit_codes: PRINTED,
    },
    CommandSpec {
        command: Command::Version,
        name: "version",
        alias: None,
        arguments: "",
        about: "Print the version",
        details: "Same as --version.",
        examples: &["msgbus version", "msgbus --version"],
        max_arguments: 0,
        takes: "no arguments",
        runs_a_command: false,
        exit_codes: PRINTED,
    },
];

/// Called by completions; not listed in help or the manual.
pub(super) const TOPIC_NAMES: CommandSpec = CommandSpec {
    command: Command::TopicNames,
    name: "__topics",
    alias: None,
    arguments: "[PREFIX]",
    about: "Print topic names for completions",
    details: "Prints nothing if the server does not answer within a second.",
    examples: &[],
    max_arguments: 1,
    takes: "one prefix",
    runs_a_command: false,
    exit_codes: PRINTED,
};

/// The exit codes of all commands.
pub(crate) const EXIT_CODES: [(u8, &str); 10] = [
    (0, "done"),
    (1, "an error: refused, a lease was over, a command failed with --cursor, or cannot write"),
    USAGE,
    CONNECT,
    (5, "no message (with --fail-empty), or --timeout before --count"),
    (6, "messages were missed (with --strict), or lost (bench)"),
    NO_RESPONDER,
    TIMED_OUT,
    FAILED,
    SIGNAL,
];
