//! msgbusd with what makes it safe, one thing at a time: each is measured beside the plain one.

use std::{fs, io, path::Path};

use super::servers::Contender::{self, Msgbusd, With};

/// msgbusd with something switched on, and clients that know of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Variant {
    /// What it is called in tables.
    pub(super) name: &'static str,
    /// What it is started with. Files are those of [`write_files`].
    pub(super) flags: &'static [&'static str],
    /// What clients say in `Authorization`.
    pub(super) authorization: Option<&'static str>,
}

/// The plain one, and all others.
pub(super) const BESIDE_PLAIN: &[Contender] = &[
    Msgbusd,
    With(&Variant { name: "msgbusd, keys", flags: &["--keys", KEYS], authorization: Some(KEY) }),
];

const KEY: &str = "Bearer mbk_of-a-server-that-lives-for-seconds";
const KEYS: &str = "keys.toml";

/// What the flags name, and where: the servers are started there.
const FILES: [(&str, &str); 1] = [(
    KEYS,
    "[keys.bench]\n\
     hash = \"sha256:15584a45d917fc513d19b776647258f2c7c5ac75b375641f7afa3a30eb82a483\"\n\
     allow = [\"*:bench-00000000\", \"*:bench/*\"]\n",
)];

/// Writes what the flags name to a folder.
pub(super) fn write_files(folder: &Path) -> io::Result<()> {
    FILES.iter().try_for_each(|(name, text)| fs::write(folder.join(name), text))
}
