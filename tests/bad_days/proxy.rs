//! The way out is an HTTP proxy.

use super::foreign_server;
use super::support::connect_proxy::{ConnectProxy, Mood};
use super::support::imposter::Imposter;
use super::support::port::Port;
use super::support::said::{Said, said};
use super::support::{Device, Server, run};

/// A server, a proxy, and a device that finds this variable in its environment.
fn behind(mood: Mood) -> (Server, ConnectProxy, Device) {
    let server = Server::start();
    let device = server.device("gw", 1);
    (server, ConnectProxy::new(mood), device)
}

/// One join with these variables, which is refused.
fn refused(device: &Device, env: &[(&str, &str)]) -> Said {
    said(&run(device.command(&["start", "--oneshot"]).envs(env.iter().copied())))
}

fn joins(device: &Device, env: &[(&str, &str)]) {
    let output = run(device.command(&["start", "--oneshot"]).envs(env.iter().copied()));
    assert!(output.status.success(), "{env:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_device_joins_through_a_proxy() {
    let (server, proxy, device) = behind(Mood::Connects);
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"] {
        joins(&device, &[(name, &format!("http://{}", proxy.addr))]);
        let requests = proxy.take_requests();
        assert_eq!(requests.len(), 1, "{name}: one connection a join: {requests:?}");
        assert!(requests[0].starts_with(&format!("CONNECT {} HTTP/1.1\r\n", server.addr)), "{requests:?}");
        assert!(!requests[0].contains("Proxy-Authorization"), "{requests:?}");
    }
    // The scheme may be left out, and a name and password given; `user:p@ss`.
    joins(&device, &[("HTTPS_PROXY", &format!("user:p%40ss@{}", proxy.addr))]);
    let requests = proxy.take_requests();
    assert!(requests[0].contains("\r\nProxy-Authorization: Basic dXNlcjpwQHNz\r\n"), "{requests:?}");
    // Exceptions, and variables that are empty.
    for (name, value) in [("NO_PROXY", "example.com,127.0.0.1"), ("no_proxy", "127.*"), ("NO_PROXY", "*")] {
        joins(&device, &[("HTTPS_PROXY", &format!("http://{}", proxy.addr)), (name, value)]);
    }
    joins(&device, &[("HTTPS_PROXY", ""), ("ALL_PROXY", "")]);
    assert_eq!(proxy.take_requests(), [""; 0]);
    assert_eq!(server.status("gw")["recovery_count"], 1);
}

/// The proxy is named: that is how a person knows where to look. Nothing is lost, whatever it did.
#[test]
fn a_proxy_that_does_not_connect_is_named() {
    let (server, proxy, device) = behind(Mood::Hangs);
    let https = format!("http://user:geheim@{}", proxy.addr);
    let env = [("HTTPS_PROXY", &*https)];
    let through = format!("no connection through proxy {}: ", proxy.addr);
    let advice = "check the proxy that the environment names (HTTPS_PROXY)";
    for (says, error) in [
        ("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n", "407"),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n", "502"),
        ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 6\r\n\r\nsorry\n", "503"),
        ("", "proxy server did not respond"),
    ] {
        proxy.set(Mood::Says(says));
        let said = refused(&device, &env);
        assert_eq!(said.code, 3, "{said:?}");
        assert!(said.error.starts_with(&through) && said.error.contains(error) && said.advice.contains(advice), "{said:?}");
        assert_eq!(device.status()["last_error"]["type"], "unreachable");
        assert!(!said.error.contains("geheim") && !said.advice.contains("geheim"), "{said:?}");
    }
    for garbage in ["SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\n\r\n220 mail.example ESMTP\r\n"] {
        proxy.set(Mood::Says(garbage));
        let said = refused(&device, &env);
        assert_eq!(said.code, 3, "{said:?}");
        assert!(said.error.contains("what answers is not an auth endpoint"), "{said:?}");
        assert!(said.advice.contains("if a proxy or another version"), "{said:?}");
    }
    // One that leads elsewhere is found out as anybody else would be.
    let (pem, _) = foreign_server("127.0.0.1");
    let imposter = Imposter::with_tls(&pem, |_| Vec::new());
    proxy.set(Mood::ConnectsTo(imposter.addr.clone()));
    assert!(refused(&device, &env).error.contains("another CA than the pinned one"));

    let nobody = Port::any();
    let gone = format!("127.0.0.1:{}", nobody.number);
    let said = refused(&device, &[("HTTPS_PROXY", &format!("http://{gone}"))]);
    assert!(said.error.contains(&format!("no connection through proxy {gone}: Connection refused")), "{said:?}");
    let said = refused(&device, &[("HTTPS_PROXY", "http://proxy.invalid:3128")]);
    assert!(said.error.contains("no connection through proxy proxy.invalid:3128: "), "{said:?}");
    assert_eq!(said.code, 3);

    proxy.set(Mood::Connects);
    joins(&device, &env);
    assert_eq!(server.events("gw"), ["join.first"], "none of that reached the server");
}

/// It gives up within its time to connect, and not after all of a request's.
#[test]
fn a_proxy_that_never_answers_is_given_up() {
    let (server, proxy, device) = behind(Mood::Hangs);
    let env = [("HTTPS_PROXY", &*format!("http://{}", proxy.addr))];
    let said = refused(&device, &env);
    assert_eq!((said.code, &*said.error), (3, "the server did not answer in time"), "{said:?}");
    proxy.set(Mood::Connects);
    joins(&device, &env);
    assert_eq!(server.events("gw"), ["join.first"]);
}

/// A device whose only way out is a proxy must not try another way in silence.
#[test]
fn a_proxy_that_cannot_be_used_is_an_error_and_nothing_goes_round_it() {
    let (server, _, device) = behind(Mood::Connects);
    for proxy in
        ["socks5://127.0.0.1:1080", "socks4://127.0.0.1:1080", "https://127.0.0.1:8443", "http://", "ftp://127.0.0.1", "a b"]
    {
        for name in ["HTTPS_PROXY", "ALL_PROXY"] {
            let said = refused(&device, &[(name, proxy)]);
            assert_eq!(said.code, 2, "{proxy}: {said:?}");
            assert!(said.error.starts_with(&format!("{name} in the environment: ")), "{said:?}");
            assert_eq!(said.advice, "give it as http://HOST:PORT");
        }
    }
    assert_eq!(server.events("gw"), [""; 0]);
}
