//! Recovery codes, as an operator types them.

use boundkey::join::RecoveryCode;

use super::{Told, refused};

pub fn run(data: &[u8]) -> Told {
    let Ok(text) = std::str::from_utf8(data) else { return "refused: no text".into() };
    match text.parse::<RecoveryCode>() {
        Ok(code) => {
            assert_eq!(code.to_string().parse(), Ok(code.clone()), "what is written can be read");
            assert_eq!(code.to_string().len(), 19);
            "ok".into()
        }
        Err(e) => {
            assert!(e.to_string().len() < 200, "a refusal is short whatever is refused");
            assert!(!e.to_string().contains(char::is_control), "and acts on no terminal");
            refused(&e)
        }
    }
}
