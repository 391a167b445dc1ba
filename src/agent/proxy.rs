//! The HTTP proxy on the way to the server, as the environment names it.
//!
//! A proxy that is named is used, or it is an error: a device whose only way out is a proxy must not try another way in silence,
//! and ureq by itself passes over a variable that it cannot read, and over SOCKS. The proxy is asked to connect (RFC 9110 section
//! 9.3.6) and sees nothing but TLS: it needs no trust.

use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

use super::config::ConfigError;

/// Where ureq looks for a proxy, in its order.
const VARIABLES: [&str; 6] = ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

/// Host and port of the proxy on the way to `url`, given what ureq took from the environment; `None` where that names none, or excepts
/// that host (`NO_PROXY`).
pub fn on_the_way(found: Option<&Proxy>, url: &str) -> Result<Option<String>, ConfigError> {
    // What the variable holds is not shown: it may have a password in it.
    let unusable = |name: &str, why| ConfigError::new(format!("{name} in the environment: {why}"), "give it as http://HOST:PORT");
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let Some(name) = VARIABLES.into_iter().find(is_set) else { return Ok(None) };
    let Some(proxy) = found else { return Err(unusable(name, "this is no address of a proxy")) };
    if proxy.protocol() != ProxyProtocol::Http {
        return Err(unusable(name, "proxies are used by HTTP alone, not by SOCKS or TLS"));
    }
    let excepted = url.parse::<Uri>().is_ok_and(|url| proxy.is_no_proxy(&url));
    Ok((!excepted).then(|| format!("{}:{}", proxy.host(), proxy.port())))
}
