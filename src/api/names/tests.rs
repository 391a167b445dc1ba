use std::net::IpAddr;

use iri_string::types::UriStr;

use super::*;
use crate::resource::{Metadata, RoleSpec};
use boundkey_join::message::SshHostRequest;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
const SUBJECT: Subject<'_> = Subject { bot: Some("gw"), token: "gw-1", instance: "i" };

fn own(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn role(allow: Allow) -> Role {
    Role { metadata: Metadata::named("r"), spec: RoleSpec { allow, max_ttl: None } }
}

/// Whether a role with this pattern allows `name` to `subject`, and a certificate may have it at all.
fn uri_allowed(pattern: &str, name: &str, subject: Subject<'_>) -> bool {
    let role = role(Allow { uris: own(&[pattern]), ..Allow::default() });
    let request = OutputRequest { uris: own(&[name]), ..OutputRequest::default() };
    let allowed = first_forbidden(&[role], &request, subject).is_none();
    assert!(!allowed || check(&request).is_ok(), "what is allowed is well formed: {name}");
    allowed
}

fn dns_allowed(pattern: &str, name: &str, subject: Subject<'_>) -> bool {
    let role = role(Allow { dns_names: own(&[pattern]), ..Allow::default() });
    let request = OutputRequest { dns_names: own(&[name]), ..OutputRequest::default() };
    let allowed = first_forbidden(&[role], &request, subject).is_none();
    assert!(!allowed || check(&request).is_ok(), "what is allowed is well formed: {name}");
    allowed
}

#[test]
fn patterns_allow_what_they_say_and_no_more() {
    let role = [role(Allow {
        dns_names: own(&["{{token.name}}.fleet.example", "*.lab.example"]),
        uris: own(&["urn:x:{{bot.name}}/*"]),
        ip_addresses: own(&["10.1.0.0/16", "::1"]),
        ssh_principals: vec![],
    })];
    let asks = |dns: &str, uri: &str, ip: &str| OutputRequest {
        dns_names: own(&[dns]),
        uris: own(&[uri]),
        ip_addresses: vec![ip.parse().unwrap()],
        ..OutputRequest::default()
    };
    assert_eq!(first_forbidden(&role, &asks("GW-1.fleet.example", "urn:x:gw/a", "10.1.2.3"), SUBJECT), None);
    assert_eq!(first_forbidden(&role, &asks("a.lab.example", "urn:x:gw/b", "::1"), SUBJECT), None);
    for (dns, uri, ip, first) in [
        ("gw-2.fleet.example", "urn:x:gw/a", "::1", "gw-2.fleet.example"),
        ("a.b.lab.example", "urn:x:gw/a", "::1", "a.b.lab.example"),
        ("a.lab.example.org", "urn:x:gw/a", "::1", "a.lab.example.org"),
        ("a.lab.example", "urn:x:gw/a/b", "::1", "urn:x:gw/a/b"),
        ("a.lab.example", "urn:x:gw/", "::1", "urn:x:gw/"),
        ("a.lab.example", "urn:x:gw/a", "10.2.0.1", "10.2.0.1"),
        ("a.lab.example", "urn:x:gw/a", "::ffff:10.1.0.1", "::ffff:10.1.0.1"),
    ] {
        assert_eq!(first_forbidden(&role, &asks(dns, uri, ip), SUBJECT).as_deref(), Some(first));
    }
}

/// A bot `gw` had the SPIFFE ID of a bot `GW`: case was ignored in the whole of a URI.
#[test]
fn case_makes_a_difference_in_paths_and_none_in_scheme_and_host() {
    let other = Subject { bot: Some("GW"), ..SUBJECT };
    assert!(uri_allowed("spiffe://fleet/{{bot.name}}", "spiffe://fleet/gw", SUBJECT));
    assert!(!uri_allowed("spiffe://fleet/{{bot.name}}", "spiffe://fleet/GW", SUBJECT));
    assert!(uri_allowed("spiffe://fleet/{{bot.name}}", "spiffe://fleet/GW", other));
    assert!(uri_allowed("https://fleet.example/{{bot.name}}", "HTTPS://Fleet.Example/gw", SUBJECT));
    assert!(uri_allowed("HTTPS://Fleet.Example/{{bot.name}}", "https://fleet.example/gw", SUBJECT));
    assert!(!uri_allowed("https://fleet.example/{{bot.name}}", "https://fleet.example/Gw", SUBJECT));
    assert!(uri_allowed("https://{{bot.name}}.fleet.example/", "https://Gw.fleet.example/", other));
    assert!(!uri_allowed("urn:fleet:a", "urn:fleet:A", SUBJECT));
}

/// `https://*.example.com/` allowed a URI of another host: the star stood for `evil.org#`.
#[test]
fn no_star_stands_for_a_delimiter() {
    let pattern = "https://*.example.com/";
    assert!(uri_allowed(pattern, "https://a-1_b.example.com/", SUBJECT));
    assert!(uri_allowed(pattern, "https://a.example.com:443/", SUBJECT), "the scheme's own port");
    for name in [
        "https://evil.org#.example.com/",
        "https://evil.org?.example.com/",
        "https://user@evil.org:1#.example.com/",
        "https://user@.example.com/",
        "https://user@a.example.com/",
        "https://evil.org:1.example.com/",
        "https://evil.org%2f.example.com/",
        "https://evil.org%23.example.com/",
        "https://evil.org\\.example.com/",
        "https://[::1].example.com/",
        "https://a.b.example.com/",
        "https://.example.com/",
        "https://a.example.com./",
        "https://a.example.com:8443/",
        "https://a.example.com/?q",
        "https://a.example.com/?",
        "https://a.example.com/#f",
        "https://a.example.com/x",
        "https:a.example.com/",
        "//a.example.com/",
    ] {
        assert!(!uri_allowed(pattern, name, SUBJECT), "{name}");
    }
    let pattern = "https://h.example/{{bot.name}}/*";
    for name in ["https://h.example/gw/A.b-c_d~1", "https://h.example/%67w/%61"] {
        assert!(uri_allowed(pattern, name, SUBJECT), "{name}");
    }
    for name in [
        "https://h.example/gw/",
        "https://h.example/gw/a/b",
        "https://h.example/gw/a%2fb",
        "https://h.example/gw/a;x=1",
        "https://h.example/gw/a:b",
        "https://h.example/gw/a%00",
        "https://h.example/gw/a?b",
        "https://h.example/gw/a#b",
        "https://h.example/gw/..",
        "https://h.example/gw/%2e%2E",
        "https://h.example/x/../gw/a",
        "https://h.example/gw/*",
    ] {
        assert!(!uri_allowed(pattern, name, SUBJECT), "{name}");
    }
    assert!(uri_allowed("https://h.example/a?b={{bot.name}}#c", "https://h.example/a?b=gw#c", SUBJECT));
    assert!(!uri_allowed("https://h.example/a?b={{bot.name}}#c", "https://h.example/a?b=gw#C", SUBJECT));
    assert!(uri_allowed("https://10.0.0.1:8443/*", "https://10.0.0.1:8443/a", SUBJECT));
    assert!(uri_allowed("https://[fd00::1]/*", "https://[FD00:0::1]/a", SUBJECT), "one address, written in two ways");
    assert!(!uri_allowed("https://*.*.*.*/", "https://10.0.0.1/", SUBJECT), "no star stands for a part of an address");
}

#[test]
fn what_is_not_a_uri_of_a_certificate_is_told_by_name() {
    for name in [
        "",
        "x",
        "/path",
        "fleet.example/x",
        "https://fleet.example.com/50%off",
        "https://fleet.example.com/a b",
        "https://fleet.example.com/\u{e4}",
        "https://fleet.example.com/\0",
        "https://fleet_\u{e4}.example.com/",
        "https://user:pass@fleet.example.com/",
        "https://fleet.example.com:99999/",
        "https://fleet..example.com/",
        "https:///x",
        "https://fleet%2eexample.com/",
        "https://10.0%2E0.1/",
        "https://[::ffff:10.0.0.1]/",
        "https://[v1.x]/",
        "https://[fe80::1%25eth0]/",
        "https://10.1/",
        "https://0x7f.1/",
        "https://2130706433/",
        "boundkey://fleet/token/t",
        "BOUNDKEY:x",
        "spiffe://fleet",
        "spiffe://fleet/",
        "spiffe://fleet/a/",
        "spiffe://fleet//a",
        "spiffe://fleet/a/./b",
        "spiffe://fleet/a%41",
        "spiffe://fleet/a~",
        "spiffe://fleet/a?b",
        "spiffe://fleet/a#b",
        "spiffe://fleet:1/a",
        "spiffe://u@fleet/a",
        "spiffe://Fleet/a",
        "SPIFFE://fleet/a",
        "spiffe:fleet/a",
        "spiffe://[::1]/a",
    ] {
        let why = check_uri(name).unwrap_err();
        assert!(why.starts_with(&format!("{name:?} ")), "{why}");
    }
    assert!(check_uri(&format!("https://h.example/{}", "x".repeat(2048))).is_err());
    for name in
        ["https://h.example", "urn:dev:mac:0024beffff804ff1", "spiffe://a_b.1/A.b-c_d", "mailto:ops@fleet.example", "tag:h,1:x"]
    {
        assert_eq!(check_uri(name), Ok(()));
    }
    let two = OutputRequest { uris: own(&["urn:a:b", "spiffe://fleet/a"]), ..OutputRequest::default() };
    assert!(check(&two).unwrap_err().contains("no other URI"));
}

#[test]
fn what_is_not_a_dns_name_of_a_certificate_is_told_by_name() {
    let long = ["a".repeat(64), format!("{}a", "a.".repeat(127))];
    for name in
        ["", ".", "a.", ".a", "a..b", "*.a", "a*", "-a.b", "a-.b", "a b", "a\0b", "b\u{fc}cher.example", "a@b", "a:1", "10.0.0.1"]
            .into_iter()
            .chain(["a.10", "a.0x1F", "0x", "42"])
            .chain(long.iter().map(String::as_str))
    {
        assert!(check_dns_name(name).unwrap_err().starts_with(&format!("{name:?} is not a DNS name")), "{name}");
        assert!(!dns_allowed("*", name, SUBJECT) && !dns_allowed("*.*", name, SUBJECT), "{name}");
    }
    for name in ["localhost", "_sip.a", "A-1.b", "1a.2", "xn--bcher-kva.example"] {
        assert_eq!(check_dns_name(name).is_ok(), name != "1a.2", "{name}");
    }
    assert!(dns_allowed("gw-*.*.example", "GW-x.lab.Example", SUBJECT));
    assert!(!dns_allowed("gw-*.example", "gw-.example", SUBJECT), "a star stands for something");
    assert!(!dns_allowed("gw*.example", "gw.example", SUBJECT));
}

/// What a placeholder stands for is a name as operators give it, and means nothing but itself.
#[test]
fn values_of_placeholders_are_literal() {
    for bot in ["*", "a*", "a/b", "a@evil.org", "a%2fb", "a?b", "a#b", "{{token.name}}", "", "\u{e4}"] {
        let subject = Subject { bot: Some(bot), ..SUBJECT };
        for name in
            ["https://h.example/x", "https://h.example/gw-1", "https://h.example/a/b", &format!("https://h.example/{bot}")]
        {
            assert!(!uri_allowed("https://h.example/{{bot.name}}", name, subject), "{bot} {name}");
        }
        assert!(
            !dns_allowed("{{bot.name}}.example", "x.example", subject) && !dns_allowed("{{bot.name}}", bot, subject),
            "{bot}"
        );
    }
    for dots in [".", ".."] {
        let subject = Subject { token: dots, ..SUBJECT };
        assert!(!uri_allowed("https://h.example/a/{{token.name}}", "https://h.example/a/..", subject));
        assert!(!uri_allowed("https://h.example/a/{{token.name}}", "https://h.example/", subject));
    }
    let host = Subject { bot: None, ..SUBJECT };
    assert!(!dns_allowed("{{bot.name}}.example", ".example", host) && !dns_allowed("a{{bot.name}}.example", "a.example", host));
}

#[test]
fn principals_of_ssh_have_patterns_of_their_own() {
    let patterns = ["{{token.name}}.fleet.example", "{{bot.name}}", "*.lab", "10.0.0.1", "fd00::1", "*.*.*.*"];
    let role = role(Allow { ssh_principals: own(&patterns), dns_names: own(&["*.fleet.example"]), ..Allow::default() });
    let roles = std::slice::from_ref(&role);
    let asks = |principal: &str| OutputRequest {
        ssh_host: Some(SshHostRequest { key: KEY.parse().unwrap(), principals: own(&[principal]) }),
        ..OutputRequest::default()
    };
    let host = Subject { bot: None, ..SUBJECT };
    for principal in ["gw-1.fleet.example", "a.lab", "A.LAB", "10.0.0.1", "FD00:0::1"] {
        assert_eq!(first_forbidden(roles, &asks(principal), host), None, "{principal}");
    }
    for principal in
        ["gw-2.fleet.example", "gw", "", "a.b.lab", "10.0.0.2", "fd00::2", "*.lab", "a?.lab", "a,b.lab", "[10.0.0.1]:22"]
    {
        assert_eq!(first_forbidden(roles, &asks(principal), host).as_deref(), Some(principal));
    }
    assert_eq!(first_forbidden(roles, &asks("gw"), SUBJECT), None);
}

#[test]
fn stars_stand_for_at_least_one_character() {
    let any = |byte: u8| byte != b'.';
    for (pattern, name, expected) in [
        ("", "", true),
        ("", "a", false),
        ("*", "", false),
        ("*", "*", true),
        ("a*", "a", false),
        ("a*", "ab", true),
        ("*a*b*", "xaxxbx", true),
        ("*a*b*", "xbxxax", false),
        ("*ab", "aab", true),
        ("*.*", "a.b", true),
        ("*.*", "a.b.c", false),
        ("*", "a.b", false),
    ] {
        assert_eq!(pattern::fits(pattern, name, any), expected, "{pattern:?} {name:?}");
    }
    // Each way to share the name out among the stars, tried one after another, would take years.
    assert!(!pattern::fits("*-*-*-*-*-*-*-*-end", &"-".repeat(60_000), any));
}

#[test]
fn patterns_that_are_wrong_are_refused_when_they_are_written() {
    let dns = |pattern: &str| Allow { dns_names: own(&[pattern]), ..Allow::default() };
    let uri = |pattern: &str| Allow { uris: own(&[pattern]), ..Allow::default() };
    let ssh = |pattern: &str| Allow { ssh_principals: own(&[pattern]), ..Allow::default() };
    let ip = |pattern: &str| Allow { ip_addresses: own(&[pattern]), ..Allow::default() };
    for right in
        [dns("{{bot.name}}.x"), dns("*"), dns("gw-*.x"), uri("urn:x:*"), uri("https://*.x/{{instance.id}}/*")].into_iter().chain(
            [uri("https://h.x/a?b#c"), ssh("*"), ssh("10.0.0.1"), ip("10.0.0.0/8"), ip("::1"), ip("fd00::/8"), ip("0.0.0.0/0")],
        )
    {
        assert_eq!(check_patterns(&right), Ok(()), "{right:?}");
    }
    for wrong in [dns("{{device}}.x"), dns("**.x"), dns("x."), dns("x/y"), dns("\u{e4}*"), dns(""), dns("*.1"), dns("10.0.0.1")]
        .into_iter()
        .chain([
            uri("x"),
            uri("*://h.x/"),
            uri("{{bot.name}}:x"),
            uri("https://h.x:*/"),
            uri("https://h.x/?a=*"),
            uri("https://h.x/#*"),
        ])
        .chain([uri("https://u@h.x/"), uri("https://h.x/../a"), uri("https://h.x/**"), uri("https://h.x/50%")])
        .chain([
            uri("boundkey://x/*"),
            uri("spiffe://Fleet/a"),
            uri("spiffe://fleet"),
            uri("spiffe://fleet/a/"),
            uri("spiffe://f/a?b"),
        ])
        .chain([ssh("a?"), ssh("a b"), ssh("")])
        .chain([
            ip("10.0.0.0/33"),
            ip("10.0.0.1/8"),
            ip("10.0.0.0/+8"),
            ip("10.0.0.0/"),
            ip("::ffff:10.0.0.0/104"),
            ip("x"),
            ip("10.0.0.0/8/8"),
        ])
    {
        let why = check_patterns(&wrong).expect_err(&format!("{wrong:?}"));
        assert!(why.starts_with("spec.allow."), "{why}");
    }
}

#[test]
fn a_certificate_has_so_many_names_and_no_more() {
    let asks = |dns: usize| OutputRequest {
        dns_names: vec!["a.example".into(); dns],
        ip_addresses: vec![[10, 0, 0, 1].into(); 50],
        ..OutputRequest::default()
    };
    assert_eq!(check(&asks(50)), Ok(()));
    assert!(check(&asks(51)).unwrap_err().starts_with("more than 100 names"));
}

#[test]
fn networks_hold_their_own_addresses() {
    for (network, ip, expected) in [
        ("10.1.0.0/16", "10.1.255.255", true),
        ("10.1.0.0/16", "10.2.0.0", false),
        ("10.1.2.3", "10.1.2.3", true),
        ("0.0.0.0/0", "255.255.255.255", true),
        ("0.0.0.0/0", "::1", false),
        ("::/0", "fe80::1", true),
        ("::/0", "10.1.2.3", false),
        ("::/0", "::ffff:10.1.2.3", false),
        ("fd00::/8", "fdff::1", true),
        ("fd00::/8", "fe00::", false),
    ] {
        let network: Network = network.parse().unwrap();
        assert_eq!(network.contains(ip.parse().unwrap()), expected, "{network:?} {ip}");
    }
}

/// Numbers that look random and are the same each time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

/// A name that is nearly what `pattern` allows: its stars filled, and then a few pieces put in, taken out or changed.
fn name_like(pattern: &str, numbers: &mut Numbers) -> String {
    const FILLINGS: [&str; 8] = ["a", "gw", "A-1", "x.y", "evil.org#", "u@evil.org:1", "%61", "a/b"];
    const PIECES: [&str; 32] = [
        "/", "//", ":", "@", "?", "#", ".", "..", "%", "%2f", "%2E", "%41", "%00", "[", "]", "[::1]", "*", "\\", "A", "z", "0",
        "-", "_", "~", ";", "=", "&", "evil.org", "10.0.0.1", "%", " ", "\u{e4}",
    ];
    let mut name = String::new();
    for part in pattern.split_inclusive('*') {
        name.push_str(part.trim_end_matches('*'));
        if part.ends_with('*') {
            let filling = if numbers.below(4) > 0 { numbers.below(3) } else { numbers.below(FILLINGS.len()) };
            name.push_str(FILLINGS[filling]);
        }
    }
    for _ in 0..numbers.below(3) {
        let places: Vec<_> = name.char_indices().map(|(at, _)| at).chain([name.len()]).collect();
        let at = places[numbers.below(places.len())];
        match numbers.below(3) {
            0 => name.insert_str(at, numbers.of(&PIECES)),
            1 if at < name.len() => drop(name.remove(at)),
            _ => {
                let rest = name.split_off(at);
                name.push_str(numbers.of(&PIECES));
                name.extend(rest.chars().skip(1));
            }
        }
    }
    name
}

/// The plain meaning of a star, by trying every length.
fn plainly_fits(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (1..=name.len()).any(|length| plainly_fits(rest, &name[length..])),
        Some((byte, rest)) => name.first() == Some(byte) && plainly_fits(rest, &name[1..]),
    }
}

/// Another parser of RFC 3986, by other people, agrees with what was allowed: scheme, host label by label, path segment by segment.
#[test]
fn what_is_allowed_is_so_by_another_parser_too() {
    const PATTERNS: [&str; 7] = [
        "https://*.example.com/",
        "https://gw-*.*.example.com/a/*",
        "spiffe://fleet.example/*/x",
        "urn:x:gw/*",
        "https://h.example:8443/*?q=1",
        "https://10.0.0.1/*",
        "https://[fd00::1]/*#f",
    ];
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut allowed = 0;
    for _ in 0..40_000 {
        let pattern = numbers.of(&PATTERNS);
        let name = name_like(pattern, &mut numbers);
        if !uri_allowed(pattern, &name, SUBJECT) {
            continue;
        }
        allowed += 1;
        let parsed = UriStr::new(&name).unwrap_or_else(|_| panic!("{name} is a URI"));
        let meant = UriStr::new(pattern).expect("a pattern of the list is a URI");
        assert!(parsed.scheme_str().eq_ignore_ascii_case(meant.scheme_str()), "{name}");
        match (parsed.authority_components(), meant.authority_components()) {
            (None, None) => {}
            (Some(own), Some(meant)) => {
                assert_eq!(own.userinfo(), None, "{name}");
                let (host, wanted) = (own.host().to_ascii_lowercase(), meant.host());
                match (host.trim_matches(['[', ']']).parse::<IpAddr>(), wanted.trim_matches(['[', ']']).parse::<IpAddr>()) {
                    (Ok(ip), Ok(wanted)) => assert_eq!(ip, wanted, "{name}"),
                    (Err(_), Err(_)) => assert_parts(&name, &host, wanted, '.'),
                    _ => panic!("{name}: an address for a name"),
                }
                let port = own.port().filter(|port| !port.is_empty() && *port != "443");
                assert_eq!(port, meant.port(), "{name}");
            }
            _ => panic!("{name}: an authority for none"),
        }
        let path = ["%61=a", "%41=A", "%2E=.", "%2e=."]
            .iter()
            .fold(parsed.path_str().to_owned(), |path, pair| path.replace(&pair[..3], &pair[4..]));
        assert!(!path.contains('%') && !path.split('/').any(|segment| matches!(segment, "." | "..")), "{name}");
        assert_parts(&name, &path, meant.path_str(), '/');
        assert_eq!(parsed.query_str(), meant.query_str(), "{name}");
        assert_eq!(parsed.fragment().map(ToString::to_string), meant.fragment().map(ToString::to_string), "{name}");
    }
    assert!(allowed > 5_000, "the test tries what is allowed too: {allowed}");
}

/// As many parts as in the pattern, and each is as the pattern's.
fn assert_parts(name: &str, text: &str, pattern: &str, delimiter: char) {
    let (own, wanted): (Vec<_>, Vec<_>) = (text.split(delimiter).collect(), pattern.split(delimiter).collect());
    assert_eq!(own.len(), wanted.len(), "{name}");
    for (part, wanted) in own.iter().zip(wanted) {
        assert!(plainly_fits(wanted.as_bytes(), part.as_bytes()), "{name}: {part} for {wanted}");
    }
}
