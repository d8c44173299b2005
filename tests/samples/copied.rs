//! The parts of the samples that are to be copied, in programs of others.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread;

use super::{Sample, folder};
use crate::support::Scratch;

/// A program around the part to copy: what begins its own part in the sample, and what stands there instead.
struct Program {
    sample: &'static Sample,
    from: &'static str,
    text: &'static str,
}

/// Each asks two things, takes one reply and leaves, and then asks another thing.
const LEAVING: [Program; 4] = [
    Program {
        sample: &super::python::SAMPLE,
        from: "# The program.",
        text: r#"
client = Client("127.0.0.1", PORT, 20)
for reply in client.ask(["WHO", "WHERE"]):
    break
print(*client.ask(["PING"]))
"#,
    },
    Program {
        sample: &super::node::SAMPLE,
        from: "// The program.",
        text: r#"
(async () => {
  const client = new Client('127.0.0.1', PORT, 20000);
  for await (const reply of client.ask(['WHO', 'WHERE'])) break;
  for await (const reply of client.ask(['PING'])) console.log(reply);
  client.close();
})();
"#,
    },
    Program {
        sample: &super::perl::SAMPLE,
        from: "# The program.",
        text: r#"
package main;
my $client = Client->new('127.0.0.1', PORT, 20);
eval { $client->ask(sub { die "enough\n" }, 'WHO', 'WHERE') };
$client->ask(sub { print "$_[1]\n" }, 'PING');
"#,
    },
    Program {
        sample: &super::java::SAMPLE,
        from: "    // The program.",
        text: r#"
    public static void main(String[] arguments) throws Exception {
        Client client = new Client("127.0.0.1", PORT, 20000);
        try {
            client.ask(List.of("WHO", "WHERE"), (request, reply) -> {
                throw new IllegalStateException("enough");
            });
        } catch (IllegalStateException error) {
            client.ask(List.of("PING"), (request, reply) -> System.out.println(reply.text()));
        }
        client.close();
    }
}
"#,
    },
];

/// A server that answers a second request only together with a third one.
fn hesitating() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream = BufReader::new(stream.expect("a client"));
            let mut line = String::new();
            for reply in ["1\n", "", "2\nPONG\n"] {
                line.clear();
                // Of a client that has gone the next one is served.
                if stream.read_line(&mut line).is_ok_and(|read| read > 0) {
                    let reply = if line == "PING\n" && reply == "1\n" {
                        "PONG\n"
                    } else {
                        reply
                    };
                    let _ = stream.get_mut().write_all(reply.as_bytes());
                }
            }
        }
    });
    address
}

#[test]
fn whoever_leaves_early_gets_no_reply_to_what_was_asked_before() {
    for program in LEAVING {
        if !program.sample.is(crate::support::installed_for_part) {
            continue;
        }
        let file = program.sample.file;
        let text = fs::read_to_string(folder().join(file)).expect("it is there");
        let (copied, _) = text.split_once(program.from).expect("its own part");
        let port = hesitating().port().to_string();
        let scratch = Scratch::new();
        let path = scratch.path().join(file);
        fs::write(
            &path,
            copied.to_string() + &program.text.replace("PORT", &port),
        )
        .expect("room");
        let mut command = Command::new(program.sample.run[0]);
        let output = command.arg(path).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "PONG\n",
            "{file}: {said}"
        );
    }
}
