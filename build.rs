//! Packs the agent's relocations, 70 kB of its flash: DT_RELR, which loaders know since glibc 2.36 (Debian 12, Yocto scarthgap). As it
//! ships, which is the one profile with opt-level z, it also goes without tables for unwinding.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |name: &str| env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    if (target("ARCH"), target("ENV")) == ("x86_64".into(), "gnu".into()) {
        println!("cargo:rustc-link-arg-bin=boundkey=-Wl,-z,pack-relative-relocs");
        if env::var("OPT_LEVEL").is_ok_and(|level| level == "z") {
            let script = format!("{}/edge.ld", env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
            println!("cargo:rerun-if-changed={script}");
            println!("cargo:rustc-link-arg-bin=boundkey=-Wl,--no-eh-frame-hdr,-T,{script}");
        }
    }
}
