//! Names that a device asks for, against a pattern of a role: three lines, which are the kind, the pattern and the name.

use boundkey::api::names::{Subject, check, check_patterns, first_forbidden};
use boundkey::api::resource::{Allow, Metadata, Role, RoleSpec};
use boundkey::join::message::OutputRequest;

use super::{Told, refused};

pub fn run(data: &[u8]) -> Told {
    let Ok(text) = std::str::from_utf8(data) else { return "refused: no text".into() };
    let mut lines = text.splitn(3, '\n');
    let (Some(kind), Some(pattern), Some(name)) = (lines.next(), lines.next(), lines.next()) else {
        return "refused: not three lines".into();
    };
    let one = |text: &str| vec![text.to_owned()];
    let (mut allow, mut request) = (Allow::default(), OutputRequest::default());
    match kind {
        "dns" => (allow.dns_names, request.dns_names) = (one(pattern), one(name)),
        "ip" => {
            let Ok(ip) = name.parse() else { return "refused: no address".into() };
            (allow.ip_addresses, request.ip_addresses) = (one(pattern), vec![ip]);
        }
        _ => (allow.uris, request.uris) = (one(pattern), one(name)),
    }
    let written = check_patterns(&allow);
    let role = Role { metadata: Metadata::named("r"), spec: RoleSpec { allow, max_ttl: None } };
    let subject = Subject { bot: Some("B"), token: "t", instance: "i" };
    let (well_formed, forbidden) = (check(&request), first_forbidden(&[role], &request, subject));
    if forbidden.is_none() {
        assert_eq!(well_formed, Ok(()), "what is allowed is well formed");
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
        for delimiter in ['?', '#', '@', '[', '\\'] {
            assert!(!name.contains(delimiter) || pattern.contains(delimiter), "{name:?} by {pattern:?}");
        }
    }
    match (written, well_formed) {
        (Err(why), _) | (_, Err(why)) => refused(&why),
        _ => format!("ok: {} {}", request.uris.len(), forbidden.is_none()),
    }
}
