//! The table of options. See [commands](crate::commands).

use crate::commands::Command::{
    self, Ack, Bench, Dead, Extend, Group, Info, Nack, Ping, Pub, Pull, Redrive, Request, Serve,
    Services, Sub, Tail, Topics, Work,
};

/// An option.
pub(crate) struct OptionSpec {
    pub(crate) long: &'static str,
    pub(crate) short: Option<&'static str>,
    /// The name of the value in help; `None` for a switch.
    pub(crate) value: Option<&'static str>,
    /// The permitted values, if they are few.
    pub(crate) values: &'static [&'static str],
    pub(crate) help: &'static str,
    /// The commands that accept it; all of them if empty. An option has several entries if it means
    /// different things to different commands.
    pub(crate) commands: &'static [Command],
}

impl OptionSpec {
    const fn new(long: &'static str, help: &'static str) -> Self {
        Self { long, short: None, value: None, values: &[], help, commands: &[] }
    }

    const fn short(mut self, short: &'static str) -> Self {
        self.short = Some(short);
        self
    }

    const fn value(mut self, name: &'static str) -> Self {
        self.value = Some(name);
        self
    }

    const fn one_of(mut self, values: &'static [&'static str]) -> Self {
        self.values = values;
        self
    }

    const fn only(mut self, commands: &'static [Command]) -> Self {
        self.commands = commands;
        self
    }

    pub(crate) fn belongs_to(&self, command: Command) -> bool {
        self.commands.is_empty() || self.commands.contains(&command)
    }

    /// Whether help lists it with this command rather than with the common options.
    pub(crate) fn is_own_of(&self, command: Command) -> bool {
        self.commands.contains(&command)
    }

    /// The long and the short name.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        [Some(self.long), self.short].into_iter().flatten()
    }
}

pub(crate) const OPTIONS: [OptionSpec; 83] = [
    OptionSpec::new("--count", "exit after N messages").short("-n").value("N").only(&[Sub, Work]),
    OptionSpec::new("--count", "take N messages, then exit [1]")
        .short("-n")
        .value("N")
        .only(&[Pull]),
    OptionSpec::new("--count", "start with the last N messages [10]")
        .short("-n")
        .value("N")
        .only(&[Tail]),
    OptionSpec::new("--count", "show at most N messages [100]")
        .short("-n")
        .value("N")
        .only(&[Dead]),
    OptionSpec::new("--count", "publish at most N messages again")
        .short("-n")
        .value("N")
        .only(&[Redrive]),
    OptionSpec::new("--timeout", "give up after this time, as in 10s [30s]")
        .value("DURATION")
        .only(&[Pub, Ack, Nack, Extend, Redrive]),
    OptionSpec::new("--timeout", "wait this long for the reply, up to 1m [5s]")
        .value("DURATION")
        .only(&[Request]),
    OptionSpec::new("--timeout", "exit after this time, as in 30s")
        .value("DURATION")
        .only(&[Sub, Tail]),
    OptionSpec::new("--timeout", "wait this long for --count messages, as in 30s")
        .value("DURATION")
        .only(&[Pull]),
    OptionSpec::new("--timeout", "wait this long for a server that cannot be reached, as in 30s")
        .value("DURATION")
        .only(&[Ping]),
    OptionSpec::new("--output", "json, raw (the payload) or pretty [terminal: pretty, else json]")
        .short("-o")
        .value("FORMAT")
        .one_of(&["json", "raw", "pretty"])
        .only(&[Sub, Pull, Tail, Dead]),
    OptionSpec::new("--output", "what the command gets: json or raw (the payload) [json]")
        .short("-o")
        .value("FORMAT")
        .one_of(&["json", "raw"])
        .only(&[Work]),
    OptionSpec::new("--no-newline", "print no newline after a raw payload")
        .short("-N")
        .only(&[Sub, Pull, Tail, Dead]),
    OptionSpec::new("--group", "take for this group, with a lease")
        .short("-g")
        .value("GROUP")
        .only(&[Pull]),
    OptionSpec::new("--group", "the group to take from, the same for all its workers")
        .short("-g")
        .value("GROUP")
        .only(&[Work]),
    OptionSpec::new("--ack", "acknowledge messages of a group once they are printed").only(&[Pull]),
    OptionSpec::new("--lease", "lease messages of a group for this long [30s]")
        .value("DURATION")
        .only(&[Pull]),
    OptionSpec::new("--lease", "redeliver this long after msgbus was killed, as in 10m [30s]")
        .value("DURATION")
        .only(&[Work]),
    OptionSpec::new("--lease", "the length of the new lease, as in 10m [30s]")
        .value("DURATION")
        .only(&[Extend]),
    OptionSpec::new("--parallel", "run up to N commands at the same time [1]")
        .short("-P")
        .value("N")
        .only(&[Work]),
    OptionSpec::new("--parallel", "answer up to N requests at the same time [1; with --to: 16]")
        .short("-P")
        .value("N")
        .only(&[Serve]),
    OptionSpec::new("--to", "forward requests to this HTTP server: http(s)://HOST:PORT/PATH")
        .value("URI")
        .only(&[Serve]),
    OptionSpec::new("--to-ca-file", "certificates (PEM) to trust for --to instead of the system's")
        .value("FILE")
        .only(&[Serve]),
    OptionSpec::new("--retry", "if a responder leaves, ask another; it may be served twice")
        .only(&[Request]),
    OptionSpec::new("--retry-delay", "redeliver a message this long after its command failed [5s]")
        .value("DURATION")
        .only(&[Work]),
    OptionSpec::new("--delay", "redeliver the message after this time, as in 10s [0]")
        .value("DURATION")
        .only(&[Nack]),
    OptionSpec::new("--reason", "why; a dead letter has the last reason as a header")
        .value("TEXT")
        .only(&[Nack]),
    OptionSpec::new("--wait", "wait this long for a message if there is none, as in 20s")
        .value("DURATION")
        .only(&[Pull]),
    OptionSpec::new("--max", "take up to N messages in one response").value("N").only(&[Pull]),
    OptionSpec::new("--peek", "show the messages without taking them").only(&[Pull]),
    OptionSpec::new("--fail-empty", "exit with 5 if there is no message").only(&[Pull]),
    OptionSpec::new("--since", "start at all, new, an id, <epoch>-<id>, 10m ago or a time [new]")
        .value("POSITION")
        .only(&[Sub]),
    OptionSpec::new("--since", "where to start if the group is new, as for sub [all]")
        .value("POSITION")
        .only(&[Pull, Work]),
    OptionSpec::new("--since", "start here, as for sub; an existing group starts anew")
        .value("POSITION")
        .only(&[Group]),
    OptionSpec::new("--max-deliveries", "dead letter after N deliveries; 0 is without limit [10]")
        .value("N")
        .only(&[Group]),
    OptionSpec::new("--max-leases", "up to N leases at the same time [1024]")
        .value("N")
        .only(&[Group]),
    OptionSpec::new("--dead-letters", "where dead letters go [TOPIC/dead-letters]")
        .value("TOPIC")
        .only(&[Group]),
    OptionSpec::new("--dead-letters", "where they are [where the groups of TOPIC send them]")
        .value("TOPIC")
        .only(&[Dead, Redrive]),
    OptionSpec::new("--remove", "remove the group; the messages stay in the topic").only(&[Group]),
    OptionSpec::new("--all", "same as --since all").only(&[Sub]),
    OptionSpec::new("--new", "start with new messages; overrides --cursor").only(&[Sub]),
    OptionSpec::new("--poll", "exit after the existing messages; implies --since all").only(&[Sub]),
    OptionSpec::new("--follow", "accepted for compatibility; always on")
        .short("-f")
        .only(&[Sub, Tail]),
    OptionSpec::new("--strict", "exit with 6 if messages were missed").only(&[Sub, Tail]),
    OptionSpec::new("--cursor", "keep the positions in FILE, and resume from them the next time")
        .value("FILE")
        .only(&[Sub]),
    OptionSpec::new("--lines", "publish each line of standard input as a message")
        .short("-l")
        .only(&[Pub]),
    OptionSpec::new("--split", "like --lines, in batches that are published all or none")
        .only(&[Pub]),
    OptionSpec::new(
        "--from-dump",
        "publish messages that msgbusd data dump or sub -o json printed",
    )
    .only(&[Pub]),
    OptionSpec::new("--ttl", "time to live, if shorter than the topic's, as in 10m")
        .value("DURATION")
        .only(&[Pub]),
    OptionSpec::new("--content-type", "the media type of the message, as in text/plain")
        .short("-t")
        .value("TYPE")
        .only(&[Pub, Request]),
    OptionSpec::new("--content-type", "the media type of what COMMAND prints, as in text/plain")
        .short("-t")
        .value("TYPE")
        .only(&[Serve]),
    OptionSpec::new("--content-encoding", "how the message is compressed, as in gzip")
        .value("CODING")
        .only(&[Pub, Request, Serve]),
    OptionSpec::new("--header", "a header, as in 'Reply-To: answers'; may be repeated")
        .short("-H")
        .value("HEADER")
        .only(&[Pub, Request]),
    OptionSpec::new("--header", "a header of each reply of COMMAND; may be repeated")
        .short("-H")
        .value("HEADER")
        .only(&[Serve]),
    OptionSpec::new("--wait", "accepted for compatibility; has no effect").short("-w").only(&[Pub]),
    OptionSpec::new("--groups", "show their groups too, with a request for each topic")
        .only(&[Topics]),
    OptionSpec::new("--json", "print one JSON object per line")
        .only(&[Topics, Services, Info, Group, Bench]),
    OptionSpec::new("--csv", "print a header line and a line of values").only(&[Bench]),
    OptionSpec::new("--clients", "connections that publish, pull or ask [16; fanout, latency: 1]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--subs", "subscribers [fanout: 100, idle: 1000, otherwise 1]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--responders", "connections that serve what bench request asks [4]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--msgs", "messages in all [100000; pull: 50000; fanout, request: 10000]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--size", "payload size in bytes [128]").value("BYTES").only(&[Bench]),
    OptionSpec::new("--rate", "messages per second in total [as many as the server takes]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--duration", "exit after this time [latency: 5s, idle: 1s]")
        .value("DURATION")
        .only(&[Bench]),
    OptionSpec::new("--topics", "number of topics to spread the messages over [1]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--topic", "the topic, or the name prefix with --topics")
        .value("TOPIC")
        .only(&[Bench]),
    OptionSpec::new("--pipeline", "requests in flight on each connection [1]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--batch", "messages in each request, with ?split=lines [1]")
        .value("N")
        .only(&[Bench]),
    OptionSpec::new("--v1", "publish or pull over msgbus.v1; --batch is per frame [16]")
        .only(&[Bench]),
    OptionSpec::new("--raw", "subscribe to payloads instead of JSON").only(&[Bench]),
    OptionSpec::new("--pid", "the server's process, to measure its CPU and memory (Linux)")
        .value("PID")
        .only(&[Bench]),
    OptionSpec::new("--no-progress", "show no progress on a terminal").only(&[Bench]),
    OptionSpec::new("--color", "auto, always or never [auto]")
        .value("WHEN")
        .one_of(&["auto", "always", "never"])
        .only(&[Sub, Pull, Tail, Dead]),
    OptionSpec::new("--uri", "http(s)://HOST:PORT, unix:/PATH or @NAME [http://localhost:8000]")
        .short("-u")
        .value("URI"),
    OptionSpec::new("--key", "the key to send; other users can see it in the process list")
        .value("KEY"),
    OptionSpec::new("--key-file", "a file that contains only the key").value("FILE"),
    OptionSpec::new("--ca-file", "certificates (PEM) to trust for https instead of the system's")
        .value("FILE"),
    OptionSpec::new("--config", "a file with defaults and named servers [~/.msgbus.yaml]")
        .value("FILE"),
    OptionSpec::new("--quiet", "suppress connection notices, warnings about keys and topic names")
        .short("-q"),
    OptionSpec::new("--debug", "report what happens").short("-d"),
    OptionSpec::new("--version", "print the version").short("-v"),
    OptionSpec::new("--help", "print help").short("-h"),
];

pub(crate) const ENVIRONMENT: [(&str, &str); 5] = [
    ("MSGBUS_URI", "the server, unless --uri names it"),
    ("MSGBUS_KEY", "the key, unless --key or --key-file gives one"),
    ("MSGBUS_KEY_FILE", "a file that contains the key, instead of MSGBUS_KEY"),
    ("MSGBUS_CA_FILE", "certificates to trust, unless --ca-file names them"),
    ("MSGBUS_DEBUG", "1 or true: same as --debug"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::COMMANDS;

    #[test]
    fn the_tables_are_whole() {
        for command in COMMANDS {
            assert_eq!(command.command.spec().name, command.name);
            assert!(command.examples.len() >= 2, "{}", command.name);
            let options = OPTIONS.iter().filter(|option| option.belongs_to(command.command));
            let mut names: Vec<&str> = options.flat_map(OptionSpec::names).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "each name once in {}", command.name);
        }
    }
}
