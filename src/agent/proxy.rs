//! The HTTP proxy on the way to the server, as the environment names it.
//!
//! A proxy that is named is used, or it is an error: a device whose only way out is a proxy must not try another way in silence,
//! and ureq by itself passes over a variable that it cannot read, and over SOCKS. The proxy is asked to connect (RFC 9110 section
//! 9.3.6) and sees nothing but TLS: it needs no trust.

use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

use super::config::ConfigError;

/// The first of these that is set counts.
const VARIABLES: [&str; 6] = ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

/// The proxy for requests to `url`; `None` where the environment names none, or excepts that host (`NO_PROXY`).
pub fn from_env(url: &str) -> Result<Option<Proxy>, ConfigError> {
    let read = |name| std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| (name, value));
    let Some((name, value)) = VARIABLES.into_iter().find_map(read) else { return Ok(None) };
    // What it holds is not shown: it may have a password in it.
    let unusable = |why: &str| ConfigError::new(format!("{name} in the environment: {why}"), "give it as http://HOST:PORT");
    let named = Proxy::new(&value).map_err(|_| unusable("this is no address of a proxy"))?;
    if named.protocol() != ProxyProtocol::Http {
        return Err(unusable("proxies are used by HTTP alone, not by SOCKS or TLS"));
    }
    // The same variable, with the exceptions.
    let proxy = Proxy::try_from_env();
    let excepted = |proxy: &Proxy| url.parse::<Uri>().is_ok_and(|url| proxy.is_no_proxy(&url));
    Ok(proxy.filter(|proxy| !excepted(proxy)))
}
