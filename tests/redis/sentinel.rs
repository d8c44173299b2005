//! What the Sentinels say is the Redis that takes writes, whatever the one before takes still.

use std::time::Instant;

use super::HEARTBEAT;
use crate::clusters::{
    all_say_for, client, cut_off_by, figure, file, server, wait_for, wait_until_connected,
};
use crate::support::backends::{Redis, Sentinel};
use crate::support::certificates::Authority;
use crate::support::{Scratch, free_port};

/// Theirs may be another than that of Redis, or the same, or none.
#[test]
fn sentinels_may_have_a_user_and_a_password_of_their_own() {
    needs!("redis-server", "redis-sentinel");
    let redis = Redis::start("--requirepass of-redis");
    let files = Scratch::new();
    let of_redis = file(&files, "redis", "of-redis\n");
    let own = file(&files, "own", "of-the-sentinels\n");
    let user = file(&files, "user", "watcher\n");
    let password = format!("--cluster-password-file {of_redis}");
    let apart = format!("{password} --cluster-sentinel-password-file {own}");
    let as_user = format!("{apart} --cluster-sentinel-user-file {user}");
    let watcher = "user default off\nuser watcher on >of-the-sentinels allchannels +@all";
    for (lines, arguments, is_let_in) in [
        ("requirepass of-the-sentinels", &apart, true),
        (watcher, &as_user, true),
        ("requirepass of-redis", &password, true),
        ("", &password, true),
        ("", &as_user, true),
        ("requirepass of-the-sentinels", &password, false),
    ] {
        let sentinel = Sentinel::start(redis.address(), lines);
        let url = format!("redis-sentinel://{}/main", sentinel.address);
        let server = server(&url, arguments);
        if is_let_in {
            wait_until_connected(&server);
        } else {
            let line = server.log().wait_for("WRONGPASS");
            assert!(line.contains("--cluster-sentinel-password-file"), "{line}");
        }
    }
}

#[test]
fn tls_may_be_spoken_by_the_sentinels_alone_or_by_redis_alone() {
    needs!("redis-server", "redis-sentinel", "openssl");
    let authority = Authority::new();
    authority.certify("server", "/CN=server");
    let files = ["server.crt", "server.key", "ca.crt"].map(|file| authority.path(file));
    let [certificate, key, ca] = &files;
    let ports = [free_port(), free_port()];
    let [flags, lines] = [("--", " "), ("", "\n")].map(|(before, after)| {
        format!(
            "{before}tls-auth-clients no{after}{before}tls-cert-file {certificate}{after}\
             {before}tls-key-file {key}{after}{before}tls-ca-cert-file {ca}{after}{before}tls-port "
        )
    });
    let redis = Redis::start(&format!("{flags}{}", ports[0]));
    let lines = format!("{lines}{}", ports[1]);
    let to_tls = Sentinel::start((redis.place.ip, ports[0]).into(), "");
    let to_plain = Sentinel::start(redis.address(), &lines);
    for (scheme, port, is_fine) in [
        ("redis-sentinel+rediss", to_tls.address.port(), true),
        ("rediss-sentinel+redis", ports[1], true),
        ("redis-sentinel", to_plain.address.port(), true),
        ("redis-sentinel", to_tls.address.port(), false),
        ("rediss-sentinel", ports[1], false),
    ] {
        let url = format!("{scheme}://127.0.0.1:{port}/main");
        let server = server(&url, &format!("--cluster-ca-file {ca}"));
        if is_fine {
            wait_until_connected(&server);
        } else {
            cut_off_by(&server, "");
            assert_eq!(figure(&server, "connected"), 0.0, "{scheme}");
        }
    }
}

#[test]
fn a_redis_that_is_no_master_any_more_and_lives_is_left() {
    needs!("redis-server", "redis-sentinel");
    let (old, new) = (Redis::start(""), Redis::start(""));
    let sentinels = [(); 2].map(|()| Sentinel::start(old.address(), ""));
    let [asked, other] = sentinels.each_ref().map(|sentinel| sentinel.address);
    let url = format!("redis-sentinel://{asked},{other}/main");
    let servers = [(); 2].map(|()| server(&url, ""));
    let mut clients = servers.each_ref().map(client);
    wait_for(&mut clients, 2);
    old.wait_for_servers(2);
    // The other never hears of it.
    sentinels[0].choose(&new);
    let chosen = Instant::now();
    new.wait_for_servers(2);
    let moved = chosen.elapsed();
    assert!(moved < HEARTBEAT * 4, "{moved:?}");
    old.wait_for_servers(0);
    // And what is in the new one is enough.
    all_say_for(HEARTBEAT * 5, &mut clients, 2);
}
