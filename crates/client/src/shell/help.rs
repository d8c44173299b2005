//! Table of commands that `help` shows at a terminal: every command of this server with its
//! arguments and summary.

use shared::dial::Reply;

use crate::failure::Failure;
use crate::link::Link;

/// Help on the keys of the editor.
const KEYS: &str = "\
Tab completes a command, the arrows up and down go through what was typed before, ^R searches it.
^C abandons the line; exit, quit or ^D leaves.
";

/// Returns the names in a reply to `HELP`.
pub fn names(reply: &Reply) -> Vec<&str> {
    match reply {
        Reply::Value(names) => names.split_ascii_whitespace().collect(),
        Reply::Refused(_) => Vec::new(),
    }
}

/// Requests the help on all commands, and returns the table.
pub fn ask(link: &mut Link) -> Result<String, Failure> {
    let list = link.ask(b"HELP")?;
    if let Reply::Refused(_) = list {
        return Ok(format!("{list}\n"));
    }
    let requests: Vec<String> = names(&list)
        .iter()
        .map(|name| format!("HELP {name}"))
        .collect();
    let requests: Vec<&[u8]> = requests.iter().map(String::as_bytes).collect();
    let replies = match requests.is_empty() {
        true => Vec::new(),
        false => link.ask_all(&requests)?,
    };
    Ok(table(&replies) + "\n" + KEYS)
}

/// Formats replies to `HELP` with a name, in two columns.
fn table(replies: &[Reply]) -> String {
    let lines: Vec<String> = replies.iter().map(Reply::to_string).collect();
    let rows: Vec<(&str, &str)> = lines
        .iter()
        .map(|line| line.split_once(": ").unwrap_or((line, "")))
        .collect();
    let width = rows.iter().map(|(usage, _)| usage.len()).max().unwrap_or(0);
    let row = |(usage, summary): &(&str, &str)| {
        let row = format!("{usage:width$}  {summary}");
        format!("{}\n", row.trim_end())
    };
    rows.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_two_columns() {
        let replies = ["WHY: the answer", "ADD NUMBER...: the sum: of all", "odd"];
        let replies = replies.map(|line| Reply::Value(line.to_string()));
        let expected = "WHY            the answer\nADD NUMBER...  the sum: of all\nodd\n";
        assert_eq!(table(&replies), expected);
        assert_eq!(table(&[]), "");
    }
}
