//! Operators' documents in YAML, and resources in JSON as the operator's socket carries them.

use boundkey::api::names::{Subject, first_forbidden};
use boundkey::api::resource::{HIDDEN_SECRET, Kind, Resource};
use boundkey::ctl::document;
use boundkey::join::message::OutputRequest;

use super::{Told, refused, said};

pub fn run(data: &[u8]) -> Told {
    let Ok(text) = std::str::from_utf8(data) else { return "refused: no text".into() };
    let json = serde_json::from_str::<Resource>(text);
    if let Ok(resource) = json {
        let written = serde_json::to_string(&resource).expect("resources can be written");
        assert_eq!(serde_json::from_str::<Resource>(&written).ok().as_ref(), Some(&resource), "{written}");
        // What a person may write has further rules.
        if resource.kind() == Kind::BotInstance || resource.validate().is_err() {
            return format!("ok: JSON {}", resource.kind());
        }
        there_and_back(std::slice::from_ref(&resource));
        return format!("ok: JSON {}", resource.kind());
    }
    match document::read("f", text) {
        Ok(resources) => {
            there_and_back(&resources);
            let kinds: Vec<_> = resources.iter().take(3).map(Resource::kind).collect();
            format!("ok: {kinds:?} {:?}", resources.iter().find_map(forbids))
        }
        Err(e) => {
            said(&e.what, &e.advice);
            refused(&e.what)
        }
    }
}

/// What is printed can be applied again, and says the same.
fn there_and_back(resources: &[Resource]) {
    let yaml = document::write(resources).expect("what was read can be printed");
    let again = document::read("printed", &yaml).unwrap_or_else(|e| panic!("{}\n{yaml}", e.what));
    assert_eq!(again, resources, "{yaml}");
    for resource in resources {
        let json = serde_json::to_string(resource).expect("it is stored so");
        assert_eq!(serde_json::from_str::<Resource>(&json).ok().as_ref(), Some(resource), "{json}");
        if let Resource::Token(token) = resource.clone().without_secrets() {
            let secrets =
                [token.spec.bound_keypair.onboarding.registration_secret, token.status.bound_keypair.registration_secret];
            assert!(secrets.iter().flatten().all(|secret| secret == HIDDEN_SECRET));
        }
    }
}

/// Whether a role forbids the names that its own patterns spell, and an address of each family.
fn forbids(resource: &Resource) -> Option<bool> {
    let Resource::Role(role) = resource else { return None };
    let names = OutputRequest {
        dns_names: role.spec.allow.dns_names.clone(),
        uris: role.spec.allow.uris.clone(),
        ..OutputRequest::default()
    };
    let ip_addresses = ["10.1.2.3", "::1"].map(|ip| ip.parse().expect("an address")).to_vec();
    let addresses = OutputRequest { ip_addresses, ..OutputRequest::default() };
    let subject = Subject { bot: Some("b"), token: "t", instance: "i" };
    let forbidden = |request| first_forbidden(std::slice::from_ref(role), request, subject).is_some();
    Some(forbidden(&names) | forbidden(&addresses))
}
