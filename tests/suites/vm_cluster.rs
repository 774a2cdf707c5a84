//! A LUN that HBAs share, as clusters and multipath use it: with stock tools in stock tenants.

use std::time::Duration;

use tests::vm::machine::Machine;
use tests::vm::{
    ApplianceConfig, Disk, Result, Scenario, Shim, StorageVm, TenantVm, disk_at, disk_on,
};

/// Where the appliance keeps what is to outlive it.
const STATE: &str = "state = \"/etc/vhost-pci/state\"";
/// How long verified I/O may take under TCG on a busy machine.
const FIO: Duration = Duration::from_secs(300);
/// How long a fenced writer may take to notice.
const FENCED: Duration = Duration::from_secs(120);

/// Runs a command of sg3_utils, again while it meets unit attentions.
fn sg(tenant: &mut Machine, command: &str) -> Result<String> {
    tenant.sh(&format!(
        "for try in 1 2 3 4 5; do \
             {command} >/tmp/sg 2>&1; status=$?; [ $status = 6 ] || break; \
         done; cat /tmp/sg; exit $status"
    ))
}

/// Checks that `command` says all of this.
fn says(tenant: &mut Machine, command: &str, expected: &[&str]) -> Result<()> {
    let said = sg(tenant, command)?;
    for expected in expected {
        assert!(said.contains(expected), "no {expected:?} in:\n{said}");
    }
    Ok(())
}

#[test]
fn one_tenant_fences_another_and_reservations_outlive_the_appliance() -> Result<()> {
    let scenario = Scenario::begin("fencing")?;
    let roots = [
        Disk::tenant_root(&scenario, "t1root")?,
        Disk::tenant_root(&scenario, "t2root")?,
    ];
    let shared = Disk::blank(&scenario, "shared", 64)?;
    let config = ApplianceConfig::new("storage-1")
        .hba("tenant1", &[&roots[0], &shared])
        .hba("tenant2", &[&roots[1], &shared])
        .with(STATE);
    let mut storage = roots
        .iter()
        .chain([&shared])
        .fold(StorageVm::new(&config), StorageVm::disk)
        .start(&scenario)?;
    let shims = [
        Shim::new("tenant1", &config).start(&scenario, &storage)?,
        Shim::new("tenant2", &config).start(&scenario, &storage)?,
    ];
    let mut one = TenantVm::new("tenant1").hba(&shims[0]).start(&scenario)?;
    let mut two = TenantVm::new("tenant2").hba(&shims[1]).start(&scenario)?;
    let disks = [disk_at(&mut one, 1)?, disk_at(&mut two, 1)?];

    // Write Exclusive, Registrants Only, as cluster managers take it.
    for (tenant, disk, key) in [(&mut one, &disks[0], "a1"), (&mut two, &disks[1], "a2")] {
        let register = format!("sg_persist --out --register --param-sark={key} --param-aptpl");
        sg(tenant, &format!("{register} {disk}"))?;
    }
    let reserve = "sg_persist --out --reserve --param-rk=a1 --prout-type=5";
    sg(&mut one, &format!("{reserve} {}", disks[0]))?;
    let is_held = |two: &mut Machine| -> Result<()> {
        let disk = &disks[1];
        says(
            two,
            &format!("sg_persist --in -k {disk}"),
            &["0xa1", "0xa2"],
        )?;
        says(
            two,
            &format!("sg_persist --in -r {disk}"),
            &["Key=0xa1", "Write Exclusive, registrants only"],
        )
    };
    is_held(&mut two)?;
    says(
        &mut two,
        &format!("sg_persist --in -c {}", disks[1]),
        &["(SIP_C): 1", "(ATP_C): 1", "(PTPL_C): 1", "(PTPL_A): 1"],
    )?;
    let status = sg(&mut two, &format!("sg_persist --in -s {}", disks[1]))?;
    println!("{status}");
    assert_eq!(
        status.matches("Relative port address").count(),
        2,
        "{status}"
    );

    let appliance = storage.sh("pidof appliance")?;
    storage.sh("kill -9 $(pidof appliance)")?;
    storage.sh(&format!(
        "for try in $(seq 300); do \
             now=$(pidof appliance); [ \"$now\" ] && [ \"$now\" != {} ] && exit; sleep 0.1; \
         done; exit 1",
        appliance.trim()
    ))?;
    is_held(&mut two)?;

    // The other writes all the while, and stops at the first error.
    let writer = two.start_sh(&format!(
        "dd if=/dev/zero bs=1M count=4 status=none | tr '\\0' 2 >/tmp/two; n=0; \
         while dd if=/tmp/two of={} bs=64k oflag=direct conv=notrunc status=none 2>/tmp/error; \
         do n=$((n + 1)); echo $n >/tmp/rounds; done; cat /tmp/error /tmp/rounds",
        disks[1]
    ))?;
    one.sh("dd if=/dev/zero bs=1M count=4 status=none | tr '\\0' 1 >/tmp/one; sleep 5")?;
    assert!(!writer.is_done(), "it was to be fenced while it writes");

    let fence = "sg_persist --out --preempt-abort --param-rk=a1 --param-sark=a2 --prout-type=5";
    let first = &disks[0];
    // The unit attention of the new appliance, which only Linux's own commands take by themselves.
    let keys = format!("sg_persist --in -k {first}");
    one.sh(&format!("{keys} || {keys}"))?;
    one.sh(&format!(
        "{fence} {first} && dd if=/tmp/one of={first} bs=1M oflag=direct conv=notrunc status=none"
    ))?;

    let said = writer.succeed(FENCED)?;
    assert!(said.contains("error"), "{said}");
    one.sh(&format!(
        "dd if={first} bs=1M count=4 iflag=direct status=none | cmp - /tmp/one"
    ))?;
    says(
        &mut one,
        &format!("sg_persist --in -k {first}"),
        &["1 registered"],
    )?;
    two.sh(&format!(
        "! dd if=/tmp/two of={} bs=64k oflag=direct conv=notrunc status=none",
        disks[1]
    ))?;
    Ok(())
}

/// Starts udev and multipathd, which makes /dev/dm-0 of a disk that has two ways.
///
/// By their port groups, not by their priorities: those are equal for a moment when the groups
/// switch, and Linux's handler makes every way of a group that it uses active, on its own account.
fn start_multipathd(tenant: &mut Machine) -> Result<()> {
    tenant.sh(
        "modprobe dm-multipath && modprobe scsi_dh_alua && mkdir -p /run/lock && \
         cat >/etc/multipath.conf <<'END'\n\
         defaults {\n\
             find_multipaths yes\n\
             polling_interval 1\n\
             max_polling_interval 1\n\
             path_grouping_policy group_by_tpg\n\
             prio alua\n\
             failback immediate\n\
             no_path_retry queue\n\
         }\n\
         END\n\
         /usr/lib/systemd/systemd-udevd --daemon && udevadm trigger && udevadm settle && \
         multipathd",
    )?;
    tenant
        .sh("for try in $(seq 300); do \
             multipathd show maps raw format '%n' 2>/dev/null | grep -q . && break; sleep 0.1; \
         done; multipathd show topology; dmsetup ls --target multipath")
        .map(|said| println!("{said}"))
}

#[test]
fn multipath_switches_ways_under_verified_io() -> Result<()> {
    let scenario = Scenario::begin("multipath")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let shared = Disk::blank(&scenario, "shared", 256)?;
    let config = ApplianceConfig::new("storage-1")
        .hba("first", &[&root, &shared])
        .hba("second", &[&shared])
        .with_access("second", "standby");
    let mut storage = [&root, &shared]
        .into_iter()
        .fold(StorageVm::new(&config), StorageVm::disk)
        .start(&scenario)?;
    let first = Shim::new("first", &config).start(&scenario, &storage)?;
    let second = Shim::new("second", &config).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1")
        .hba(&first)
        .hba(&second)
        .start(&scenario)?;
    let ways = [disk_on(&mut tenant, 0, 1)?, disk_on(&mut tenant, 1, 0)?];
    let states = |tenant: &mut Machine, disk: &str| {
        let states = "grep 'asymmetric access state' | sed 's/.*(//'";
        sg(tenant, &format!("sg_rtpg -d {disk} | {states}"))
    };
    let apart = "active/optimized)\nstandby)\n";
    assert_eq!(states(&mut tenant, &ways[0])?, apart);
    assert_eq!(states(&mut tenant, &ways[1])?, apart);
    says(
        &mut tenant,
        &format!("sg_vpd -p di {}", ways[1]),
        &["Relative target port: 0x101", "Target port group: 0x2"],
    )?;

    // Linux attached its ALUA handler to both, and multipathd makes one disk of them: a group of
    // ways for each port group, the better one in use.
    start_multipathd(&mut tenant)?;
    let names = ways
        .each_ref()
        .map(|way| way.trim_start_matches("/dev/").to_owned());
    for name in &names {
        let handler = format!("cat /sys/block/{name}/device/dh_state");
        assert_eq!(tenant.sh(&handler)?, "alua\n");
    }
    assert!(
        tenant
            .sh("dmsetup table --target multipath")?
            .contains(" 1 alua ")
    );
    let is_used = |tenant: &mut Machine, name: &str| {
        tenant.sh(&format!(
            "for try in $(seq 300); do \
                 dmsetup status --target multipath | \
                     grep -q \"A 0 [0-9]* [0-9]* $(cat /sys/block/{name}/dev) A\" && exit; \
                 sleep 0.1; \
             done; dmsetup status; multipathd show topology; exit 1"
        ))
    };
    let fio = tenant.start_sh(
        "fio --name=verify --filename=/dev/dm-0 --direct=1 --ioengine=libaio --iodepth=16 \
         --rw=randwrite --bs=16k --verify=crc32c --verify_fatal=1 --end_fsync=1",
    )?;
    // A group is chosen when there is something to send.
    is_used(&mut tenant, &names[0])?;
    // Each time the way in use goes to standby, and the other one becomes active.
    for round in 0..4 {
        let (from, to) = (round % 2, 1 - round % 2);
        let set = format!(
            "sg_stpg --tp={},{} --state=0,2 {}",
            to + 1,
            from + 1,
            ways[from]
        );
        sg(&mut tenant, &set)?;
        is_used(&mut tenant, &names[to])?;
    }
    assert!(!fio.is_done(), "too quick to show anything");
    // The operator has the last word.
    storage.reconfigure(&config.clone().with_access("second", "active-non-optimized"))?;
    tenant.sh(&format!(
        "for try in $(seq 300); do \
             sg_rtpg -d {} 2>/dev/null | grep -q 'active/non optimized' && exit; sleep 0.1; \
         done; exit 1",
        ways[0]
    ))?;
    fio.succeed(FIO)?;
    Ok(())
}
