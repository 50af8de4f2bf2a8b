//! Parses callgrind's output: how often each instruction was executed.
//! <https://valgrind.org/docs/manual/cl-format.html>

use std::collections::BTreeMap;

/// How often each instruction was executed.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Profile {
    /// All instructions.
    pub(super) total: u64,
    /// By object file, then by address in it.
    pub(super) objects: BTreeMap<String, BTreeMap<u64, u64>>,
}

impl Profile {
    /// Parses an uncompressed profile by instructions, without line numbers.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut profile = Self::default();
        let mut object = "";
        // The line after a call is the inclusive cost of the called function, which has lines of its own.
        let mut is_call = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("ob=") {
                object = name;
            } else if let Some(total) = line.strip_prefix("summary: ") {
                profile.total = total.trim().parse().ok()?;
            } else if line.starts_with("calls=") {
                is_call = true;
            } else if let Some(line) = line.strip_prefix("0x")
                && !std::mem::take(&mut is_call)
            {
                profile.add(object, line)?;
            }
        }
        Some(profile)
    }

    /// Adds an instruction: its address, and how often it was executed.
    fn add(&mut self, object: &str, line: &str) -> Option<()> {
        let (address, times) = line.split_once(' ')?;
        let address = u64::from_str_radix(address, 16).ok()?;
        if !self.objects.contains_key(object) {
            self.objects.insert(object.to_owned(), BTreeMap::new());
        }
        *self.objects.get_mut(object)?.entry(address).or_default() +=
            times.trim().parse::<u64>().ok()?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_counts_where_it_was_executed_and_not_where_it_was_called() {
        let text = "positions: instr\nevents: Ir\nsummary: 31\n\nob=/bin/a\nfl=a.c\nfn=main\n\
            0x1060 20\ncob=/lib/b\ncfn=f\ncalls=10 0x10 \n0x1060 5\n0x1064 1\n\n\
            ob=/lib/b\nfn=f\n0x10 5\n\nfn=g\n0x10 5\n";
        let profile = Profile::parse(text).unwrap();
        assert_eq!(profile.total, 31);
        assert_eq!(profile.objects["/bin/a"], BTreeMap::from([(0x1060, 20), (0x1064, 1)]));
        assert_eq!(profile.objects["/lib/b"], BTreeMap::from([(0x10, 10)]));
    }
}
