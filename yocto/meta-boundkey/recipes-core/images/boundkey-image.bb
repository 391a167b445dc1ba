SUMMARY = "Small image for a device with a TPM 2.0"
DESCRIPTION = "boundkey and tpm2-tss on a root that is never written; the agent's storage on a partition of its own."
# blacksail wants SPDX's words, and releases before it do not know them.
LICENSE = "Apache-2.0 ${@'OR' if 'blacksail' in d.getVar('LAYERSERIES_CORENAMES').split() else '|'} MIT"

inherit core-image features_check

# systemd: sysvinit lays memory over /var/lib on a read-only root after it has mounted fstab, so it would hide the data partition.
REQUIRED_DISTRO_FEATURES = "systemd tpm2"

IMAGE_FEATURES += "read-only-rootfs"
# tpm2-tss: the udev rule and the user of its own package. e2fsck: the data partition is checked after a power cut.
IMAGE_INSTALL = "\
    boundkey \
    e2fsprogs-e2fsck \
    libtss2-tcti-device \
    packagegroup-core-boot \
    tpm2-tss \
    ${CORE_IMAGE_EXTRA_INSTALL} \
"

# Beside this file, for the layer's folder of such files is another one since wrynose. A board with a boot loader on the disk
# brings a wks file of its own; only the label of the data partition counts.
IMAGE_FSTYPES = "wic"
WKS_FILE ?= "boundkey-image.wks"

BOUNDKEY_DATA_LABEL ?= "boundkey-data"

# Not below /var/lib as it is on a read-only root: that is in memory, and lost at each boot. systemd mounts the partition after
# it has laid its memory over /var/lib; otherwise the partition would be hidden, and a device spend a recovery at each boot.
# nofail: without the partition the device comes up all the same, to be reached and mended. The agent does not start then, for
# its StateDirectory makes its unit require this mount. It drops the order before local-fs.target, which comes back: what
# tmpfiles.d says of the directory is for the partition's.
BOUNDKEY_DATA_OPTIONS = "nosuid,nodev,noexec,nofail,x-systemd.device-timeout=30s,\
x-systemd.after=var-volatile-lib.service,x-systemd.before=local-fs.target"

boundkey_data_partition() {
    install -d -m 0700 ${IMAGE_ROOTFS}${localstatedir}/lib/boundkey
    printf '%s\n' "LABEL=${BOUNDKEY_DATA_LABEL} ${localstatedir}/lib/boundkey ext4 ${BOUNDKEY_DATA_OPTIONS} 0 2" \
        >>${IMAGE_ROOTFS}${sysconfdir}/fstab
}
ROOTFS_POSTPROCESS_COMMAND += "boundkey_data_partition"
