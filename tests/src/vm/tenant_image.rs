//! The tenant's disk: a Debian that boots under BIOS and UEFI.
//!
//! | LBA | partition |
//! |---|---|
//! | 0 | GRUB's `boot.img`, in the protective MBR |
//! | 34 | BIOS boot: GRUB's `core.img` |
//! | 2048 | EFI system partition: GRUB as `BOOTX64.EFI` |
//! | 34816 | root: ext4 |
//!
//! Everything is written into the image file in place, so no loop device, mount or root is needed,
//! and by tools out of the image's own packages, so the host needs none of them.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::accelerator::KERNEL_OPTIONS;
use super::debian::PackageTree;
use super::error::{Error, FileContext, Result};
use super::process::run;
use super::{progress, store};

const PACKAGES: &[&str] = &[
    // The tenant.
    "base-files",
    "base-passwd",
    "bash",
    "btrfs-progs",
    "busybox-static",
    "coreutils",
    "dash",
    "diffutils",
    "dmsetup",
    "e2fsprogs",
    "findutils",
    "fio",
    "gawk",
    "grep",
    "kexec-tools",
    "kmod",
    "libc-bin",
    "libiscsi-bin",
    // The generic flavour: the cloud flavour has no ALUA handler.
    "linux-image-amd64",
    "login",
    "mount",
    "multipath-tools",
    "pciutils",
    "procps",
    "sed",
    "sg3-utils",
    "udev",
    "util-linux",
    "xfsprogs",
    // The making of its disk.
    "dosfstools",
    "fdisk",
    "grub-common",
    "grub-efi-amd64-bin",
    "grub-pc-bin",
    "mtools",
];
const AGENT: &str = include_str!("../../guest/agent");
const INIT: &str = include_str!("../../guest/tenant-init");
const INITRAMFS_INIT: &str = include_str!("../../guest/initramfs-init");

/// The modules that lead to the root file system, in load order.
const MODULES: &[&str] = &[
    "drivers/scsi/scsi_common",
    "drivers/scsi/scsi_mod",
    "drivers/scsi/virtio_scsi",
    "drivers/scsi/sd_mod",
    "crypto/crc32c_generic",
    "lib/crc16",
    "fs/mbcache",
    "fs/jbd2/jbd2",
    "fs/ext4/ext4",
];

const SECTOR: u64 = 512;
const IMAGE_SECTORS: u64 = 3 << 20; // 1.5 GiB
const CORE: u64 = 34;
const ESP: u64 = 2048;
const ROOT: u64 = 34816;
/// The backup of the partition table ends the disk.
const ROOT_END: u64 = IMAGE_SECTORS - 2048;
const ROOT_UUID: &str = "0f8d5a4e-6c3b-4f6e-9b5a-76636970726f";

/// The disk image; a tenant works on a copy.
pub fn path() -> Result<PathBuf> {
    let source = include_str!("tenant_image.rs");
    let recipe = (source, KERNEL_OPTIONS, AGENT, INIT, INITRAMFS_INIT);
    let directory = store::keep("tenant-image", recipe, |directory| {
        let packages = packages()?;
        let _step = progress::step("building the tenant's disk");
        build(&packages, directory)
    })?;
    Ok(directory.join("tenant.img"))
}

/// The tenant's kernel.
pub fn kernel() -> Result<PathBuf> {
    let boot = packages()?.path("boot");
    Ok(boot.join(format!("vmlinuz-{}", release(&boot)?)))
}

/// What the tenant's disk is made of, and by.
pub(super) fn packages() -> Result<PackageTree> {
    let root = store::keep("tenant-packages", PACKAGES, |root| {
        let _step = progress::step("fetching the tenant's Debian");
        PackageTree::unpack(root, PACKAGES, false).map(drop)
    })?;
    Ok(PackageTree::at(root))
}

/// The kernel's release, from the name of its file.
fn release(boot: &Path) -> Result<String> {
    let names = fs::read_dir(boot).file("list", boot)?.flatten();
    names
        .filter_map(|entry| {
            Some(
                entry
                    .file_name()
                    .to_str()?
                    .strip_prefix("vmlinuz-")?
                    .to_owned(),
            )
        })
        .next()
        .ok_or_else(|| Error::Unexpected {
            what: boot.display().to_string(),
            problem: "holds no kernel; remove target/vm and try again".to_owned(),
        })
}

fn build(packages: &PackageTree, directory: &Path) -> Result<()> {
    let tree = directory.join("tree");
    populate(packages, &tree)?;
    let image = directory.join("tenant.img");
    let file = File::create(&image).file("create", &image)?;
    file.set_len(IMAGE_SECTORS * SECTOR).file("size", &image)?;
    partition(packages, &image)?;
    let mut mke2fs = packages.command("mke2fs");
    mke2fs.env("MKE2FS_CONFIG", packages.path("etc/mke2fs.conf"));
    mke2fs
        .args([
            "-q", "-F", "-t", "ext4", "-U", ROOT_UUID, "-L", "tenant", "-d",
        ])
        .arg(&tree);
    mke2fs.args(["-E", &format!("offset={},root_owner=0:0", ROOT * SECTOR)]);
    mke2fs
        .arg(&image)
        .arg(format!("{}k", (ROOT_END - ROOT) * SECTOR / 1024));
    run("making the tenant's root file system", &mut mke2fs)?;
    let grub = directory.join("grub.cfg");
    fs::write(&grub, grub_config()).file("write", &grub)?;
    install_bios_grub(packages, directory, &file, &grub)?;
    install_efi_grub(packages, directory, &image, &grub)?;
    file.sync_all().file("write", &image)?;
    fs::remove_dir_all(&tree).file("remove", &tree)
}

/// GRUB runs this without a menu.
fn grub_config() -> String {
    format!(
        "search --fs-uuid --set=root {ROOT_UUID}\n\
         linux /boot/vmlinuz root=UUID={ROOT_UUID} {KERNEL_OPTIONS}\n\
         initrd /boot/initramfs\n\
         boot\n"
    )
}

/// Makes the root file system's tree: the packages without their documentation, and our init.
fn populate(packages: &PackageTree, tree: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"])
        .arg(packages.path(""))
        .arg(tree);
    run("copying the tenant's packages", &mut copy)?;
    for unneeded in [
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/lib/grub",
        // Only xfs_scrub's, which nothing here runs.
        "usr/lib/python3",
        "usr/lib/python3.13",
    ] {
        let unneeded = tree.join(unneeded);
        fs::remove_dir_all(&unneeded).file("remove", &unneeded)?;
    }
    let boot = tree.join("boot");
    let release = release(&boot)?;
    let modules = tree.join("usr/lib/modules").join(&release).join("kernel");
    write_initramfs(tree, &modules, &boot.join("initramfs"))?;
    // What no virtual machine has: most of what there is.
    for unneeded in [
        "sound",
        "drivers/gpu",
        "drivers/media",
        "drivers/net/ethernet",
        "drivers/net/wireless",
    ] {
        let unneeded = modules.join(unneeded);
        fs::remove_dir_all(&unneeded).file("remove", &unneeded)?;
    }
    symlink(format!("vmlinuz-{release}"), boot.join("vmlinuz")).file("link", &boot)?;
    let mut depmod = packages.command("depmod");
    run(
        "depmod",
        depmod.arg("-b").arg(tree.join("usr")).arg(&release),
    )?;
    // Packages that are only unpacked have not made these.
    for (file, text) in [
        (
            "etc/passwd",
            "root::0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
        ),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("etc/hostname", "tenant\n"),
    ] {
        fs::write(tree.join(file), text).file("write", tree.join(file))?;
    }
    store::write_program(&tree.join("usr/sbin/agent"), AGENT)?;
    store::write_program(&tree.join("usr/sbin/init"), INIT)
}

/// Writes an initramfs with busybox and [`MODULES`].
fn write_initramfs(tree: &Path, modules: &Path, initramfs: &Path) -> Result<()> {
    let busybox = tree.join("usr/bin/busybox");
    let root = tree.with_file_name("initramfs");
    for directory in ["bin", "dev", "lib/modules", "proc", "root", "sys"] {
        fs::create_dir_all(root.join(directory)).file("create", &root)?;
    }
    fs::copy(&busybox, root.join("bin/busybox")).file("copy", &busybox)?;
    symlink("busybox", root.join("bin/sh")).file("link", &root)?;
    store::write_program(&root.join("init"), INITRAMFS_INIT)?;
    let mut order = String::new();
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        order += name;
        order.push('\n');
        let packed = modules.join(format!("{module}.ko.xz"));
        let unpacked = root.join(format!("lib/modules/{name}.ko"));
        let file = File::create(&unpacked).file("create", &unpacked)?;
        let mut xzcat = Command::new(&busybox);
        let status = xzcat
            .arg("xzcat")
            .arg(&packed)
            .stdout(file)
            .status()
            .file("run", &busybox)?;
        if !status.success() {
            let command = format!("unpacking {}", packed.display());
            return Err(Error::Command {
                command,
                status,
                output: String::new(),
            });
        }
    }
    let load_order = root.join("lib/modules/load-order");
    fs::write(&load_order, order).file("write", &load_order)?;
    let mut cpio = Command::new("sh");
    cpio.args(["-c", "find . | \"$0\" cpio -o -H newc >\"$1\""])
        .arg(&busybox)
        .arg(initramfs);
    run("packing the tenant's initramfs", cpio.current_dir(&root))?;
    fs::remove_dir_all(&root).file("remove", &root)
}

fn partition(packages: &PackageTree, image: &Path) -> Result<()> {
    let script = image.with_extension("sfdisk");
    let table = format!(
        "label: gpt\nfirst-lba: {CORE}\nunit: sectors\n\
         start={CORE}, size={}, type=21686148-6449-6E6F-744E-656564454649\n\
         start={ESP}, size={}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
         start={ROOT}, size={}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n",
        ESP - CORE,
        ROOT - ESP,
        ROOT_END - ROOT,
    );
    fs::write(&script, table).file("write", &script)?;
    let input = File::open(&script).file("read", &script)?;
    let mut sfdisk = packages.command("sfdisk");
    sfdisk
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(image);
    run(
        "partitioning the tenant's disk",
        sfdisk.stdin(Stdio::from(input)),
    )
    .map(drop)
}

/// Makes a GRUB with `modules` beside those that both platforms need.
fn make_grub(
    packages: &PackageTree,
    platform: &str,
    modules: &[&str],
    config: &Path,
    output: &Path,
) -> Result<()> {
    let mut grub = packages.command("grub-mkimage");
    grub.arg("--directory")
        .arg(packages.path("usr/lib/grub").join(platform));
    grub.args(["--format", platform, "--prefix", "/boot/grub", "--config"])
        .arg(config);
    grub.arg("--output")
        .arg(output)
        .args(["part_gpt", "ext2", "search", "search_fs_uuid"]);
    grub.args(["linux", "boot"]).args(modules);
    run("making GRUB", &mut grub).map(drop)
}

/// Puts GRUB where a BIOS looks: `boot.img` loads the first sector of `core.img`, and that loads
/// the rest.
fn install_bios_grub(
    packages: &PackageTree,
    directory: &Path,
    image: &File,
    config: &Path,
) -> Result<()> {
    /// Where `boot.img` notes the LBA of `core.img`.
    const KERNEL_SECTOR: u64 = 0x5c;
    /// Where the first sector of `core.img` notes the LBA of the second.
    const REST: u64 = 0x1f4;
    /// The code before the disk's signature and the partition table.
    const BOOT_CODE: usize = 440;

    let core = directory.join("core.img");
    make_grub(packages, "i386-pc", &["biosdisk"], config, &core)?;
    let core_bytes = fs::read(&core).file("read", &core)?;
    let room = usize::try_from((ESP - CORE) * SECTOR).unwrap_or(usize::MAX);
    if core_bytes.len() > room {
        let problem = format!("is {} bytes long, {room} have room", core_bytes.len());
        return Err(Error::Unexpected {
            what: "GRUB's core.img".to_owned(),
            problem,
        });
    }
    let boot = packages.path("usr/lib/grub/i386-pc/boot.img");
    let boot_bytes = fs::read(&boot).file("read", &boot)?;
    let write = |bytes: &[u8], at: u64| image.write_all_at(bytes, at).file("write", directory);
    write(&boot_bytes[..BOOT_CODE], 0)?;
    write(&CORE.to_le_bytes(), KERNEL_SECTOR)?;
    write(&core_bytes, CORE * SECTOR)?;
    write(&(CORE + 1).to_le_bytes(), CORE * SECTOR + REST)
}

/// Puts GRUB where UEFI looks on a disk that it does not know.
fn install_efi_grub(
    packages: &PackageTree,
    directory: &Path,
    image: &Path,
    config: &Path,
) -> Result<()> {
    let efi = directory.join("BOOTX64.EFI");
    make_grub(packages, "x86_64-efi", &["fat"], config, &efi)?;
    let mut mkfs = packages.command("mkfs.fat");
    mkfs.args(["--offset", &ESP.to_string(), "-F", "16"])
        .arg(image);
    run(
        "making the EFI partition",
        mkfs.arg(((ROOT - ESP) * SECTOR / 1024).to_string()),
    )?;
    let inside = format!("{}@@{}", image.display(), ESP * SECTOR);
    let mut mmd = packages.command("mmd");
    run(
        "filling the EFI partition",
        mmd.args(["-i", &inside, "::EFI", "::EFI/BOOT"]),
    )?;
    let mut mcopy = packages.command("mcopy");
    mcopy
        .args(["-i", &inside])
        .arg(&efi)
        .arg("::EFI/BOOT/BOOTX64.EFI");
    run("filling the EFI partition", &mut mcopy).map(drop)
}
