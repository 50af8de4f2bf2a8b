//! The scripts, which Redis runs in one step.

use redis::{Cmd, RedisResult, Value};

/// A script. The server has it under its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    Publish,
    Fetch,
    Settle,
    Group,
    History,
    Open,
    Stats,
    Delete,
    Arrive,
}

const COMMON: &str = include_str!("scripts/common.lua");
const WRITE: &str = include_str!("scripts/common_write.lua");
const GROUP: &str = include_str!("scripts/common_group.lua");
const BEGIN: &str = include_str!("scripts/common_begin.lua");

impl Script {
    pub(crate) const ALL: [Self; 9] = [
        Self::Publish,
        Self::Fetch,
        Self::Settle,
        Self::Group,
        Self::History,
        Self::Open,
        Self::Stats,
        Self::Delete,
        Self::Arrive,
    ];

    /// The command that gives the server the script.
    pub(crate) fn load(self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(self.code());
        command
    }

    fn code(self) -> String {
        // Without memory the server refuses scripts that add, before they begin. It goes on to run the others.
        let (flags, parts): (&str, &[&str]) = match self {
            Self::Publish => ("", &[COMMON, WRITE, include_str!("scripts/publish.lua")]),
            Self::Fetch => (
                "flags=allow-oom",
                &[COMMON, WRITE, GROUP, BEGIN, include_str!("scripts/fetch.lua")],
            ),
            Self::Group => {
                ("flags=allow-oom", &[COMMON, WRITE, BEGIN, include_str!("scripts/group.lua")])
            }
            Self::Settle => {
                ("flags=allow-oom", &[COMMON, GROUP, include_str!("scripts/settle.lua")])
            }
            Self::History => ("flags=no-writes", &[COMMON, include_str!("scripts/history.lua")]),
            Self::Open => ("", &[COMMON, WRITE, include_str!("scripts/open.lua")]),
            Self::Stats => ("flags=allow-oom", &[COMMON, WRITE, include_str!("scripts/stats.lua")]),
            Self::Delete => ("flags=allow-oom", &[include_str!("scripts/delete.lua")]),
            Self::Arrive => ("flags=allow-oom", &[include_str!("scripts/arrive.lua")]),
        };
        format!("#!lua {flags}\n{}", parts.join("\n"))
    }
}

/// Whether nothing was done, because the server does not have the script: somebody has removed all of them.
pub(crate) fn is_missing(answer: &RedisResult<Value>) -> bool {
    matches!(answer, Err(error) if error.code() == Some("NOSCRIPT"))
}
