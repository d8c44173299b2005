//! Parses IP addresses and networks, such as `[fe80::1%eth0]:4242` and `10.1.0.0/16`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;

use ipnet::IpNet;

/// Parses an address with a port; `None` if `text` is not one. A link-local address may name its
/// interface (RFC 4007, section 11); the error says what is wrong with the interface.
pub fn socket_address(text: &str) -> Option<Result<SocketAddr, String>> {
    let parsed = text.parse().ok().map(Ok);
    let Some((host, port)) = text
        .strip_prefix('[')
        .and_then(|text| text.split_once("]:"))
    else {
        return parsed;
    };
    let Some((address, zone)) = host.split_once('%') else {
        return parsed;
    };
    let (address, port): (Ipv6Addr, u16) = (address.parse().ok()?, port.parse().ok()?);
    if !address.is_unicast_link_local() {
        return Some(Err(
            "only a link-local address (fe80::…) names an interface".to_string(),
        ));
    }
    if zone.is_empty() {
        return Some(Err(
            "the interface is missing after %, as in [fe80::1%eth0]:4242".to_string(),
        ));
    }
    if parsed.is_some() {
        return parsed;
    }
    // No DNS request is made: the host is an address.
    let found = (host, port).to_socket_addrs().ok();
    let found = found.and_then(|mut found| found.next());
    Some(found.ok_or_else(|| format!("this machine has no interface {zone}")))
}

/// Network: the addresses that share a prefix. IPv4-mapped IPv6 addresses, as on a dual-stack
/// socket, count as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Returns whether the network contains `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = String;

    /// Parses an address with a prefix length; without one, the network is that address alone.
    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str =
            "not an IP address or a network, such as 192.0.2.7, 10.1.0.0/16 or 2001:db8::/32";
        let text = text.trim();
        let (address, bits) = text.split_once('/').unzip();
        let address: IpAddr = address.unwrap_or(text).parse().map_err(|_| EXPECTED)?;
        let max = IpNet::from(address).max_prefix_len();
        let bits = match bits {
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().map_err(|_| EXPECTED)?
            }
            Some(_) => return Err(EXPECTED.to_string()),
            None => max,
        };
        let network = IpNet::new(address, bits)
            .map_err(|_| format!("{address} has {max} bits, not {bits}"))?;
        if network.trunc() != network {
            return Err(format!(
                "{text} has bits after its prefix: the network is {}",
                network.trunc()
            ));
        }
        // The IPv4-mapped prefix has 96 bits (RFC 4291, section 2.5.5.2).
        match (address.to_canonical(), bits.checked_sub(96)) {
            (mapped @ IpAddr::V4(_), Some(bits)) if address.is_ipv6() => IpNet::new(mapped, bits)
                .map(Network)
                .map_err(|error| error.to_string()),
            _ => Ok(Network(network)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_link_may_name_its_interface() {
        for (text, right) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[::1]:65535", "[::1]:65535"),
            ("[fe80::1%7]:80", "[fe80::1%7]:80"),
            ("[fe80::1%lo]:80", "[fe80::1%1]:80"),
        ] {
            let found = socket_address(text).map(|found| found.map(|found| found.to_string()));
            assert_eq!(found, Some(Ok(right.to_string())), "{text}");
        }
        let unknown = socket_address("[fe80::1%nowhere]:80");
        assert_eq!(
            unknown,
            Some(Err("this machine has no interface nowhere".to_string()))
        );
        for text in ["[::1%lo]:80", "[2001:db8::1%1]:80", "[::1%]:80"] {
            let why = socket_address(text).and_then(Result::err).unwrap();
            assert!(why.starts_with("only a link-local address"), "{why}");
        }
        let why = socket_address("[fe80::1%]:80").and_then(Result::err);
        assert!(why.unwrap().starts_with("the interface is missing"));
        for bad in [
            "",
            "[::1]",
            "[fe80::1%lo]",
            "[fe80::1%lo]:x",
            "[x%lo]:1",
            "fe80::1%lo:80",
            "localhost:80",
        ] {
            assert_eq!(socket_address(bad), None, "{bad}");
        }
    }

    fn network(text: &str) -> Network {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn what_is_in_a_network_and_what_is_beside_it() {
        for (of, within, beside) in [
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("10.1.0.0/16", "10.1.255.255", "10.2.0.0"),
            ("10.1.0.0/16", "::ffff:10.1.0.1", "::ffff:10.2.0.1"),
            ("10.1.2.128/25", "10.1.2.128", "10.1.2.127"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::1", "::1", "::2"),
            ("::ffff:10.0.0.0/104", "10.200.0.1", "11.0.0.1"),
            ("::ffff:0:0/96", "192.0.2.1", "::1"),
        ] {
            assert!(network(of).contains(within.parse().unwrap()), "{of}");
            assert!(!network(of).contains(beside.parse().unwrap()), "{of}");
        }
        assert_eq!(network(" 10.0.0.1/32 "), network("10.0.0.1"));
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_would_be_right() {
        for bad in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "10.0/8",
            "all",
            "10.0.0.1:80",
            "fe80::1%2",
            "10.0.0.0/-1",
            "10.0.0.0/99999999999",
        ] {
            let why = Network::from_str(bad).unwrap_err();
            assert!(why.contains("such as"), "{bad}: {why}");
        }
        let why = |text| Network::from_str(text).unwrap_err();
        assert_eq!(why("10.0.0.0/33"), "10.0.0.0 has 32 bits, not 33");
        assert_eq!(why("::/129"), ":: has 128 bits, not 129");
        assert!(why("10.1.2.3/8").ends_with("network is 10.0.0.0/8"));
        assert!(why("2001:db8::1/64").ends_with("network is 2001:db8::/64"));
    }
}
