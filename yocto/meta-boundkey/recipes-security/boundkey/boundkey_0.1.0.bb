SUMMARY = "Agent that gives a device an identity bound to its own key"
DESCRIPTION = "Holds one long-lived key in a file, a TPM 2.0 or a PKCS#11 token, proves it to an auth endpoint, and keeps short-lived X.509 certificates fresh."
HOMEPAGE = "https://github.com/boundkey/boundkey"
BUGTRACKER = "https://github.com/boundkey/boundkey/issues"
SECTION = "net"
CVE_PRODUCT = "boundkey"
# blacksail wants SPDX's words, and releases before it do not know them.
LICENSE = "Apache-2.0 ${@'OR' if 'blacksail' in d.getVar('LAYERSERIES_CORENAMES').split() else '|'} MIT"
LIC_FILES_CHKSUM = "\
    file://LICENSE-APACHE;md5=3b83ef96387f14655fc854ddc3c6bd57 \
    file://LICENSE-MIT;md5=2d6256e9f984059c0a01b536f3bb4d00 \
"

# A package of a later commit is a later package: the plus sign brings the commit into its version, and where there is a PR
# service, a number that grows before it.
PV .= "+git"

# The checkout that this layer lies in, at its HEAD: one commit names the recipe and what it builds.
# The README has the ways to build from elsewhere.
BOUNDKEY_CHECKOUT = "${@os.path.realpath(d.expand('${THISDIR}/../../../..'))}"
BOUNDKEY_GIT ?= "git://${BOUNDKEY_CHECKOUT};protocol=file;usehead=1;nobranch=1"
# destsuffix: where S is by default, before and after UNPACKDIR came.
SRC_URI = "\
    ${BOUNDKEY_GIT};destsuffix=${BP} \
    file://60-boundkey-tpm.rules \
    file://boundkey.init \
    file://boundkey.yaml \
"
# nooelint: oelint.vars.autorev - not a server's newest, but the commit that is checked out
SRCREV ?= "${AUTOREV}"
# Where these files are: scarthgap has no UNPACKDIR.
BOUNDKEY_FILES = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}"

inherit cargo cargo-update-recipe-crates pkgconfig systemd update-rc.d useradd

require ${BPN}-crates.inc

# rust-version of Cargo.toml.
BOUNDKEY_RUST_MINIMUM = "1.89"

# nooelint: oelint.task.noanonpython - what cannot be built is told before the build, not after an hour of it
python () {
    have = (d.getVar("RUSTVERSION") or "").rstrip("%")
    need = d.getVar("BOUNDKEY_RUST_MINIMUM")
    if have and bb.utils.vercmp_string_op(have, need, "<"):
        raise bb.parse.SkipRecipe(
            f"needs Rust {need}, and this build has {have}: add meta-lts-mixins, or a newer state of it (see the layer's README)")
    checkout = d.getVar("BOUNDKEY_CHECKOUT")
    if not d.getVar("EXTERNALSRC") and checkout in d.getVar("BOUNDKEY_GIT") and not os.path.exists(os.path.join(checkout, ".git")):
        raise bb.parse.SkipRecipe(
            f"{checkout} is not a git checkout of boundkey: set BOUNDKEY_GIT and SRCREV (see the layer's README)")
}

PACKAGECONFIG ??= "pkcs11 ${@bb.utils.contains('DISTRO_FEATURES', 'tpm2', 'tpm', '', d)}"
# The options of configure are left out: the names are the cargo features, and scarthgap's class does not pass them on.
# The tss library opens libtss2-tcti-device by itself, so no dependency is seen in the program.
PACKAGECONFIG[tpm] = ",,tpm2-tss,libtss2-tcti-device"
PACKAGECONFIG[pkcs11] = ""

# tss-esapi-sys has bindings for these alone.
COMPATIBLE_HOST = "${@bb.utils.contains('PACKAGECONFIG', 'tpm', '(arm|aarch64|x86_64).*-linux', '.*-linux', d)}"

# The profile of Cargo.toml that is made for small flash. blacksail has CARGO_PROFILE, releases before it the other two.
CARGO_PROFILE = "edge"
BUILD_MODE = "--profile ${CARGO_PROFILE}"
BUILD_DIR = "${CARGO_PROFILE}"
BOUNDKEY_FEATURES = "${@','.join(['agent'] + bb.utils.filter('PACKAGECONFIG', 'tpm pkcs11', d).split())}"
CARGO_BUILD_FLAGS:append = " --bin boundkey --no-default-features --features ${BOUNDKEY_FEATURES}"
# The package's own step strips, and keeps what it takes away for the -dbg package.
export CARGO_PROFILE_EDGE_STRIP = "none"

# The configuration of the fleet. Without a pin there is no server to trust: then none is installed, and the service waits.
BOUNDKEY_AUTH_SERVER ?= "auth.example.com:3025"
BOUNDKEY_CA_PIN ?= ""
BOUNDKEY_KEYSTORE ?= "${@bb.utils.contains('PACKAGECONFIG', 'tpm', 'tpm', 'file', d)}"

do_install() {
    install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/boundkey ${D}${bindir}/boundkey
    install -D -m 0644 ${S}/cross/dist/boundkey.service ${D}${systemd_system_unitdir}/boundkey.service
    install -D -m 0644 ${S}/cross/dist/boundkey.tmpfiles ${D}${nonarch_libdir}/tmpfiles.d/boundkey.conf
    install -D -m 0644 ${S}/cross/dist/boundkey.yaml ${D}${datadir}/boundkey/boundkey.yaml
    install -D -m 0755 ${BOUNDKEY_FILES}/boundkey.init ${D}${INIT_D_DIR}/boundkey
    if ${@bb.utils.contains('PACKAGECONFIG', 'tpm', 'true', 'false', d)}; then
        install -D -m 0644 ${BOUNDKEY_FILES}/60-boundkey-tpm.rules ${D}${nonarch_base_libdir}/udev/rules.d/60-boundkey-tpm.rules
    fi
    if [ -n "${BOUNDKEY_CA_PIN}" ]; then
        install -d ${D}${sysconfdir}
        sed -e 's|^auth_server:.*|auth_server: ${BOUNDKEY_AUTH_SERVER}|' \
            -e 's|^ca_pins:.*|ca_pins: ["${BOUNDKEY_CA_PIN}"]|' \
            -e 's|^keystore:.*|keystore: {type: ${BOUNDKEY_KEYSTORE}}|' \
            ${BOUNDKEY_FILES}/boundkey.yaml >${D}${sysconfdir}/boundkey.yaml
    fi
}

FILES:${PN} += "${nonarch_base_libdir}/udev/rules.d ${nonarch_libdir}/tmpfiles.d ${systemd_system_unitdir}"
CONFFILES:${PN} = "${@'${sysconfdir}/boundkey.yaml' if d.getVar('BOUNDKEY_CA_PIN') else ''}"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system tss; --system boundkey"
USERADD_PARAM:${PN} = "\
    --system --no-create-home --home-dir ${localstatedir}/lib/boundkey --shell /sbin/nologin \
    --gid boundkey --groups tss boundkey \
"

SYSTEMD_SERVICE:${PN} = "boundkey.service"

INITSCRIPT_NAME = "boundkey"
INITSCRIPT_PARAMS = "defaults 80 20"
