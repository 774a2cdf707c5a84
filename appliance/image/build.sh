#!/bin/bash
# Builds the storage VM: a Debian kernel and an initramfs holding the appliance.
#
#   appliance/image/build.sh --appliance BINARY --out DIR [--mirror URL] [--cache DIR] [--add TREE]
#       [--modules "NAME..."]
#
# BINARY is the appliance, statically linked. DIR receives `vmlinuz` and `initramfs.cpio`.
# Packages are only unpacked, never installed, so neither root nor a chroot is needed.
# --cache keeps the unpacked packages, for quick rebuilds with another BINARY; --add puts more
# files in (programs in /etc/start.d are started at boot), --modules more of the kernel's modules.
# From the same packages and program come the same bytes.
set -euo pipefail

suite=trixie
mirror=http://deb.debian.org/debian
# What the appliance needs and the kernel does not have built in. Dependencies are added below.
modules=(virtio_blk virtio_console virtio_rng nvme qemu_fw_cfg i6300esb button evdev vfio_iommu_type1
    vfio_pci)
here=$(dirname "$(readlink -f "$0")")

die() { echo "build.sh: $*" >&2; exit 1; }
usage() { sed -n '2,11s/^# \?//p' "$0" >&2; exit 2; }

appliance='' out='' cache='' add='' more=''
while (($#)); do
    case $1 in
        --appliance) appliance=${2-} ;;
        --out) out=${2-} ;;
        --mirror) mirror=${2-} ;;
        --cache) cache=${2-} ;;
        --add) add=${2-} ;;
        --modules) more=${2-} ;;
        *) usage ;;
    esac
    shift 2 || usage
done
[[ $appliance && $out ]] || usage
[[ -x $appliance ]] || die "$appliance: no such program; build it with cargo, see README.md"
! LC_ALL=C grep -qa '/ld-linux-x86-64\.so\.2' "$appliance" ||
    die "$appliance is linked dynamically; build it with RUSTFLAGS='-C target-feature=+crt-static'"
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing; run: apt-get install mmdebstrap"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# 1. The packages, unpacked.
include=linux-image-cloud-amd64,busybox-static
packages=${cache:-$work/packages}
if [[ $(cat "$packages/.include" 2>/dev/null) != "$suite $include" ]]; then
    unpacked=$(mktemp -d "$packages.XXXXXX")
    mmdebstrap --quiet --variant=extract --include="$include" "$suite" - "deb $mirror $suite main" |
        tar -x -C "$unpacked" --no-same-owner --exclude='./dev/*'
    chmod 755 "$unpacked"
    echo "$suite $include" >"$unpacked/.include"
    rm -rf "$packages"
    mv -T "$unpacked" "$packages"
fi
busybox=$packages/usr/bin/busybox
kernels=("$packages"/boot/vmlinuz-*)
release=${kernels[0]##*/vmlinuz-}
tree=$packages/usr/lib/modules/$release
[[ -d $tree ]] || die "$packages holds no kernel modules; remove it and try again"

# 2. The tree of the initramfs.
root=$work/root
mkdir -p "$root"/{bin,dev,etc/acpi/PWRF,etc/vhost-pci,lib/modules,proc,run,sys,tmp}
cp "$busybox" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
install -m 755 "$appliance" "$root/bin/appliance"
# For busybox's pidof, a symbolic link would have the name of its target.
ln "$root/bin/appliance" "$root/bin/appliance-console"
install -m 755 "$here/terminal" "$root/bin/terminal"
install -m 755 "$here/power-off" "$root/bin/power-off"
# Where busybox's acpid looks for what the power button does.
ln -s /bin/power-off "$root/etc/acpi/PWRF/00000080"
install -m 755 "$here/init" "$root/init"
[[ ! $add ]] || cp -r "$add/." "$root/"

# Unpacks module $1, after those it depends on, and notes it in load order.
add_module() {
    local name=${1//-/_} file dependency
    [[ ! -e $root/lib/modules/$name.ko ]] || return 0
    file=$(find "$tree" -name "${name//_/[-_]}.ko.xz")
    if [[ ! $file ]]; then
        grep -q "/${name//_/[-_]}\.ko$" "$tree/modules.builtin" ||
            die "kernel $release has no module $name"
        return 0
    fi
    "$busybox" xzcat "$file" >"$root/lib/modules/$name.ko"
    for dependency in $("$busybox" strings "$root/lib/modules/$name.ko" |
        sed -n 's/^depends=//p' | tr ',' ' '); do
        add_module "$dependency"
    done
    echo "$name" >>"$root/lib/modules/load-order"
}
for module in "${modules[@]}" $more; do add_module "$module"; done

# 3. The results, each put in place whole. When, where and by whom they were built is not in them.
mkdir -p "$out"
chmod -R u=rwX,go=rX "$root"
find "$root" -exec "$busybox" touch -h -d @0 {} +
(cd "$root" && find . | LC_ALL=C sort |
    "$busybox" cpio -o -H newc -R 0:0 --ignore-devno --renumber-inodes) \
    >"$out/initramfs.cpio.new" 2>"$work/cpio.log" || die "cpio: $(cat "$work/cpio.log")"
cp "${kernels[0]}" "$out/vmlinuz.new"
mv "$out/vmlinuz.new" "$out/vmlinuz"
mv "$out/initramfs.cpio.new" "$out/initramfs.cpio"
