//! The sets of commands that a server offers, as `--commands` names them.

use std::fmt;
use std::str::FromStr;

use super::{CommandSet, SETS};

/// The mandatory set: administrators and the cluster depend on its commands.
const REQUIRED_SET: &str = "server";

/// Names of sets of commands, in the order in which `HELP` lists their commands.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandSets(Vec<&'static str>);

impl CommandSets {
    /// Returns the sets.
    pub fn sets(&self) -> Vec<CommandSet> {
        let named = |name: &&str| SETS.iter().find(|(known, _)| known == name);
        self.0
            .iter()
            .filter_map(named)
            .map(|(_, set)| *set)
            .collect()
    }

    /// Returns whether the set of this name is among them.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(&name)
    }

    /// Returns the text of `--help`, which lists all sets.
    pub fn help() -> String {
        let sets = SETS.iter().map(|(name, set)| {
            let commands: Vec<_> = set.iter().map(|entry| entry.name).collect();
            format!("{name} ({})", commands.join(", "))
        });
        format!(
            "What may be asked: sets of commands, separated by commas, {REQUIRED_SET} among them. There are {}",
            join_with_and(&sets.collect::<Vec<_>>())
        )
    }
}

/// Joins the names with commas, and with "and" before the last.
fn join_with_and(names: &[String]) -> String {
    match names {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => names.concat(),
    }
}

impl FromStr for CommandSets {
    type Err = String;

    /// Parses names of sets, separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut names = Vec::new();
        for given in text.split(',').map(str::trim) {
            let Some((name, _)) = SETS.iter().find(|(name, _)| *name == given) else {
                let known: Vec<_> = SETS.iter().map(|(name, _)| name.to_string()).collect();
                return Err(format!(
                    "there is no set of commands {given:?}; there are {}",
                    join_with_and(&known)
                ));
            };
            if names.contains(name) {
                return Err(format!("{name} is named twice"));
            }
            names.push(*name);
        }
        if !names.contains(&REQUIRED_SET) {
            return Err(format!(
                "{REQUIRED_SET} must be among them, such as {REQUIRED_SET},{text}"
            ));
        }
        Ok(CommandSets(names))
    }
}

impl fmt::Debug for CommandSets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::command::{MAX_COMMANDS, sets};

    #[test]
    fn sets_are_offered_by_their_names() {
        let offer = |text: &str| text.parse::<CommandSets>();
        let names = |text: &str| -> Vec<&str> {
            let sets = offer(text).unwrap().sets();
            sets.into_iter().map(|set| set[0].name).collect()
        };
        assert_eq!(names("server"), ["WHO"]);
        assert_eq!(names("calc, server"), ["ADD", "WHO"]);
        for bad in [
            "",
            "calc",
            "server,",
            "server,server",
            "SERVER",
            "server,chess",
        ] {
            assert!(offer(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn any_number_of_sets_can_be_listed() {
        let names = ["calc", "dice", "server"].map(str::to_string);
        assert_eq!(join_with_and(&names), "calc, dice and server");
        assert_eq!(join_with_and(&names[1..]), "dice and server");
        assert_eq!(join_with_and(&names[2..]), "server");
    }

    #[test]
    fn all_sets_together_have_room_and_no_name_twice() {
        let names: Vec<_> = sets::all().map(|entry| entry.name).collect();
        assert!(names.len() <= MAX_COMMANDS);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        for name in names {
            assert_eq!(name, name.to_uppercase());
        }
    }
}
