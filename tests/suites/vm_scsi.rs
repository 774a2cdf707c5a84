//! The SCSI target as a stock Linux tenant sees it: libiscsi's conformance tests, sg3_utils' reading
//! of its pages, file systems with discard, and LUNs that grow, come, go, or hold a command.

use std::{fs, thread, time::Duration};

use tests::vm::conformance::{Expected, Profile};
use tests::vm::error::FileContext;
use tests::vm::machine::Machine;
use tests::vm::shim::RunningShim;
use tests::vm::storage_vm::RunningStorageVm;
use tests::vm::{
    ApplianceConfig, Disk, Result, Scenario, Shim, StorageVm, TenantVm, disk_at, disk_on,
};

/// A storage VM with `disks` as LUN 1, 2, … of the HBA "tenant1", and a tenant booted from LUN 0.
struct Bench {
    config: ApplianceConfig,
    // Dropped in this order: the tenant goes first.
    tenant: Machine,
    _shim: RunningShim,
    storage: RunningStorageVm,
}

impl Bench {
    fn start(scenario: &Scenario, disks: &[&Disk]) -> Result<Self> {
        Self::start_with(scenario, disks, "")
    }

    /// The same with these lines in the appliance's configuration.
    fn start_with(scenario: &Scenario, disks: &[&Disk], toml: &str) -> Result<Self> {
        let root = Disk::tenant_root(scenario, "t1root")?;
        let all: Vec<_> = std::iter::once(&root)
            .chain(disks.iter().copied())
            .collect();
        let config = ApplianceConfig::new("storage-1")
            .hba("tenant1", &all)
            .with(toml);
        let vm = all
            .into_iter()
            .fold(StorageVm::new(&config), StorageVm::disk);
        let storage = vm.start(scenario)?;
        let shim = Shim::new("tenant1", &config).start(scenario, &storage)?;
        let tenant = TenantVm::new("tenant1").hba(&shim).start(scenario)?;
        Ok(Self {
            config,
            tenant,
            _shim: shim,
            storage,
        })
    }
}

// 1. Conformance.

/// Logical blocks that the NVMe disk writes whole or not at all.
const ATOMIC_BLOCKS: u16 = 256;

/// Bytes of the tests' longest transfer: 65536 blocks.
const LONGEST_TRANSFER: u64 = 65536 * 512;

/// What is different, or must be the same, on a LUN that cannot be written.
const ON_PROTECTED: &[&str] = &[
    "Inquiry",
    "Mandatory",
    "ModeSense6",
    "Read16",
    "ReadCapacity16",
    "ReadOnly",
    "TestUnitReady",
];
/// What physical blocks of several logical ones matter for.
const ON_512E: &[&str] = &[
    "GetLBAStatus",
    "Inquiry",
    "ReadCapacity16",
    "Unmap",
    "WriteSame10",
    "WriteSame16",
];
/// What a capacity beyond 32 bits of blocks matters for.
const ON_HUGE: &[&str] = &[
    "Inquiry",
    "OrWrite",
    "Prefetch16",
    "Read16",
    "ReadCapacity10",
    "ReadCapacity16",
    "Unmap",
    "Verify16",
    "Write16",
    "WriteSame16",
    "WriteVerify16",
];
/// What a second path to the LUN matters for; the other suites use the first only.
const ON_TWO_HBAS: &[&str] = &["Inquiry", "MultipathIO"];
/// What the kind of disk may matter for.
const ON_NVME: &[&str] = &["Inquiry", "Unmap", "WriteAtomic16", "WriteSame16"];

/// The tenant's LUN `lun` as `/dev/sgN`, which can be written to even if the LUN cannot.
fn generic(tenant: &mut Machine, lun: u16) -> Result<String> {
    let disk = disk_at(tenant, lun)?.replace("/dev/", "");
    let name = tenant.sh(&format!(
        "modprobe sg; ls /sys/block/{disk}/device/scsi_generic"
    ))?;
    Ok(format!("/dev/{}", name.trim()))
}

#[test]
fn conformance_is_as_listed_on_every_kind_of_lun() -> Result<()> {
    let scenario = Scenario::begin("conformance")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    // Smaller than the longest transfer of the tests, which the tenant's kernel refuses to pass on.
    let thin = Disk::blank(&scenario, "thin", 24)?;
    let thin_too = Disk::blank(&scenario, "thin-too", 24)?;
    let protected = Disk::blank(&scenario, "protected", 64)?;
    let physical_4k = Disk::blank(&scenario, "physical4k", 24)?.with_physical_block(4096);
    let huge = Disk::blank(&scenario, "huge", 3 << 20)?;
    let shared = Disk::blank(&scenario, "shared", 256)?;
    let atomic = Disk::blank(&scenario, "atomic", 24)?.with_atomic_writes(ATOMIC_BLOCKS);
    let disks = [
        &root,
        &thin,
        &protected,
        &physical_4k,
        &huge,
        &shared,
        &atomic,
        &thin_too,
    ];
    let config = ApplianceConfig::new("storage-1")
        .hba("tenant1", &disks)
        .hba("second", &[&shared])
        .with_read_only("protected");
    let storage = disks
        .into_iter()
        .fold(StorageVm::new(&config), StorageVm::disk);
    let mut storage = storage.start(&scenario)?;
    assert_eq!(
        storage.sh("cat /sys/block/nvme0n1/queue/atomic_write_unit_max_bytes")?,
        format!("{}\n", u32::from(ATOMIC_BLOCKS) * 512)
    );
    let shim = Shim::new("tenant1", &config).start(&scenario, &storage)?;
    let second = Shim::new("second", &config).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1")
        .hba(&shim)
        .hba(&second)
        .start(&scenario)?;
    let mut lun = |number| disk_at(&mut tenant, number);
    let (thin, physical_4k, huge, atomic) = (lun(1)?, lun(3)?, lun(4)?, lun(6)?);
    let thin_too = lun(7)?;
    let protected = generic(&mut tenant, 2)?;
    let both = [disk_on(&mut tenant, 0, 5)?, disk_on(&mut tenant, 1, 0)?];
    // As expected.toml says of this transfer.
    let limits = tenant.sh(&format!(
        "cd /sys/block/{}/queue && echo $(($(cat max_hw_sectors_kb) * 1024)) && \
         echo $(($(cat max_segments) * $(cat max_segment_size)))",
        huge.replace("/dev/", "")
    ))?;
    for limit in limits.lines() {
        let limit: u64 = limit.parse().expect("a number of bytes");
        assert!(limit < LONGEST_TRANSFER, "no longer refused: {limits}");
    }
    // The first takes longer than the others together.
    let first = Profile::new("thin", &[&thin]).beside(&[&thin_too]);
    let first = first.start(&mut tenant)?;
    let others = [
        Profile::new("protected", &[&protected]).only(ON_PROTECTED),
        Profile::new("512e", &[&physical_4k]).only(ON_512E),
        Profile::new("huge", &[&huge]).only(ON_HUGE),
        Profile::new("two-hbas", &[&both[0], &both[1]]).only(ON_TWO_HBAS),
        Profile::new("atomic", &[&atomic]).only(ON_NVME),
    ];
    let mut results = Vec::new();
    for profile in others {
        results.push(profile.start(&mut tenant)?.finish(scenario.logs())?);
    }
    results.insert(0, first.finish(scenario.logs())?);

    let expected = Expected::list();
    println!("{}", expected.totals(&results));
    let lines = scenario.log("conformance-lines");
    fs::write(&lines, expected.lines_for(&results)).file("write", &lines)?;
    let differences = expected.differences(&results);
    assert!(
        differences.is_empty(),
        "{} differences from tests/conformance/expected.toml; its lines would be those in {}:\n{}",
        differences.len(),
        lines.display(),
        differences.join("\n")
    );
    Ok(())
}

// 2. sg3_utils.

/// What `command` prints in `tenant`; fails unless each of `lines` is one of its lines.
///
/// Runs of blanks count as one, and `command` may end with any status.
fn says(tenant: &mut Machine, command: &str, lines: &[&str]) -> Result<()> {
    let printed = tenant.start_sh(command)?.output(Duration::from_secs(60))?;
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let printed: Vec<_> = printed.text.lines().map(words).collect();
    let missing: Vec<_> = lines
        .iter()
        .filter(|line| !printed.contains(&words(line)))
        .collect();
    assert!(
        missing.is_empty(),
        "`{command}` does not say {missing:#?}, but:\n{}",
        printed.join("\n")
    );
    Ok(())
}

/// The status with which `command` ends in `tenant`.
fn status(tenant: &mut Machine, command: &str) -> Result<i32> {
    let output = tenant.start_sh(command)?.output(Duration::from_secs(60))?;
    println!("{command}: {}", output.text);
    Ok(output.status)
}

/// sg3_utils' status for the sense key MISCOMPARE.
const MISCOMPARE: i32 = 14;
/// sg3_utils' status for the sense key ILLEGAL REQUEST, but for an invalid operation code.
const ILLEGAL_REQUEST: i32 = 5;

/// The commands there are, as `sg_opcodes` lists them: operation code, service action, CDB length.
const OPCODES: &[&str] = &[
    "00 6 Test Unit Ready",
    "03 6 Request Sense",
    "04 6 Format Unit",
    "07 6 Reassign Blocks",
    "08 6 Read(6)",
    "0a 6 Write(6)",
    "12 6 Inquiry",
    "15 6 Mode select(6)",
    "16 6 Reserve(6)",
    "17 6 Release(6)",
    "1a 6 Mode sense(6)",
    "1b 6 Start stop unit",
    "1c 6 Receive diagnostic results",
    "1d 6 Send diagnostic",
    "1e 6 Prevent allow medium removal",
    "25 10 Read capacity(10)",
    "28 10 Read(10)",
    "2a 10 Write(10)",
    "2e 10 Write and verify(10)",
    "2f 10 Verify(10)",
    "34 10 Pre-fetch(10)",
    "35 10 Synchronize cache(10)",
    "37 10 Read defect data(10)",
    "3b 10 Write buffer",
    "3c 10 Read buffer(10)",
    "41 10 Write same(10)",
    "42 10 Unmap",
    "4c 10 Log select",
    "4d 10 Log sense",
    "55 10 Mode select(10)",
    "56 10 Reserve(10)",
    "57 10 Release(10)",
    "5a 10 Mode sense(10)",
    "5e 0 10 Persistent reserve in, read keys",
    "5e 1 10 Persistent reserve in, read reservation",
    "5e 2 10 Persistent reserve in, report capabilities",
    "5e 3 10 Persistent reserve in, read full status",
    "5f 0 10 Persistent reserve out, register",
    "5f 1 10 Persistent reserve out, reserve",
    "5f 2 10 Persistent reserve out, release",
    "5f 3 10 Persistent reserve out, clear",
    "5f 4 10 Persistent reserve out, preempt",
    "5f 5 10 Persistent reserve out, preempt and abort",
    "5f 6 10 Persistent reserve out, register and ignore existing key",
    "5f 7 10 Persistent reserve out, register and move",
    "7f 9 32 Read(32)",
    "7f a 32 Verify(32)",
    "7f b 32 Write(32)",
    "7f c 32 Write and verify(32)",
    "7f d 32 Write same(32)",
    "83 0 16 Extended copy(LID1)",
    "83 1 16 Extended copy",
    "83 10 16 Populate token",
    "83 11 16 Write using token",
    "83 1c 16 Copy operation abort",
    "84 0 16 Receive copy status(LID1)",
    "84 1 16 Receive copy data(LID1)",
    "84 3 16 Receive copy operating parameters",
    "84 4 16 Receive copy failure details(LID1)",
    "84 5 16 Receive copy status",
    "84 6 16 Receive copy data",
    "84 7 16 Receive ROD token information",
    "88 16 Read(16)",
    "89 16 Compare and write",
    "8a 16 Write(16)",
    "8b 16 Orwrite(16)",
    "8e 16 Write and verify(16)",
    "8f 16 Verify(16)",
    "90 16 Pre-fetch(16)",
    "91 16 Synchronize cache(16)",
    "93 16 Write same(16)",
    "9e 10 16 Read capacity(16)",
    "9e 12 16 Get LBA status(16)",
    "a0 12 Report luns",
    "a3 c 12 Report supported operation codes",
    "a3 d 12 Report supported task management functions",
    "a3 f 12 Report timestamp",
    "a4 f 12 Set timestamp",
    "a8 12 Read(12)",
    "aa 12 Write(12)",
    "ae 12 Write and verify(12)",
    "af 12 Verify(12)",
    "b7 12 Read defect data(12)",
];

#[test]
fn sg3_utils_read_what_the_target_is_and_can() -> Result<()> {
    let scenario = Scenario::begin("sg3_utils")?;
    let data = Disk::blank(&scenario, "t1data", 64)?;
    let mut bench = Bench::start(&scenario, &[&data])?;
    let tenant = &mut bench.tenant;
    let disk = disk_at(tenant, 1)?;
    let on_disk = |command: &str| format!("{command} {disk}");

    says(
        tenant,
        &on_disk("sg_inq"),
        &[
            "PQual=0 PDT=0 RMB=0 LU_CONG=0 hot_pluggable=0 version=0x06 [SPC-4]",
            "[RelAdr=0] WBus16=0 Sync=0 [Linked=0] [TranDis=0] CmdQue=1",
            "length=96 (0x60) Peripheral device type: disk",
            "Vendor identification: VHOSTPCI",
        ],
    )?;
    says(
        tenant,
        &on_disk("sg_vpd -a"),
        &[
            "Supported VPD pages [sv]",
            "Unit serial number [sn]",
            "Device identification [di]",
            "Management network addresses [mna]",
            "Extended inquiry data [ei]",
            "Mode page policy [mpp]",
            "SCSI ports [sp]",
            "Third party copy [tpc]",
            "Block limits (SBC) [bl]",
            "Block device characteristics (SBC) [bdc]",
            "Logical block provisioning (SBC) [lbpv]",
            "Referrals (SBC) [ref]",
            "Product serial number: t1data",
            "designator type: NAA, code set: Binary",
            "vendor specific: t1data",
            "Relative target port: 0x1",
            "UASK_SUP=0 GROUP_SUP=0 PRIOR_SUP=0 HEADSUP=0 ORDSUP=0 SIMPSUP=1",
            "Maximum supported sense data length=96",
            "MLUS=0, Policy: shared",
            "Maximum compare and write length: 0xff",
            "Maximum transfer length: 0x10000",
            "Maximum unmap block descriptor count: 0x100",
            "Unmap granularity alignment valid: true",
            "Non-rotating medium (e.g. solid state)",
            "LBPU=1",
            "LBPWS=1",
            "LBPWS10=1",
            "LBPRZ=0x1",
            "Provisioning type: thin provisioned",
        ],
    )?;
    // The column after the length is RWCDLP and CDLP, which none has.
    let opcodes = on_disk("sg_opcodes") + " | sed 's/ 0,0 / /'";
    says(tenant, &opcodes, OPCODES)?;
    let count = format!("{opcodes} | grep -cE '^ [0-9a-f]{{2}} '");
    assert_eq!(tenant.sh(&count)?.trim(), OPCODES.len().to_string());
    says(
        tenant,
        &on_disk("sg_opcodes -t"),
        &[
            "Task Management Functions supported by device:",
            "Abort task",
            "Abort task set",
            "Clear task set",
            "I_T nexus reset",
            "Logical unit reset",
            "Query task",
            "Query task set",
        ],
    )?;
    says(
        tenant,
        &on_disk("sg_modes -a"),
        &[
            "Mode data length=112, medium type=0x00, WP=0, CAPPID=0, DpoFua=1, longlba=0",
            ">> Read-Write error recovery, page_control: current",
            ">> Caching, page_control: current",
            "00 08 12 04 00 00 00 00 00 00 00 00 00 00 00 00 00",
            ">> Control, page_control: current",
            ">> Power condition, page_control: current",
            ">> Informational exceptions control, page_control: current",
        ],
    )?;
    // Of the caching page, one can change WCE.
    says(
        tenant,
        &on_disk("sg_modes -p 8 -c 1"),
        &["00 08 12 04 00 00 00 00 00 00 00 00 00 00 00 00 00"],
    )?;
    let [two, well_known, three] = [
        ("", "Lun list length = 16 which implies 2 lun entries"),
        ("-s 1", "Lun list length = 8 which implies 1 lun entry"),
        ("-s 2", "Lun list length = 24 which implies 3 lun entries"),
    ];
    for (select, length) in [two, well_known, three] {
        says(tenant, &on_disk(&format!("sg_luns -d {select}")), &[length])?;
    }
    says(
        tenant,
        &on_disk("sg_luns -d -s 2"),
        &[
            "REPORT LUNS Well known logical unit",
            "Peripheral device addressing: lun=0",
            "Peripheral device addressing: lun=1",
        ],
    )?;
    says(
        tenant,
        &on_disk("sg_logs -a"),
        &[
            "0x0d Temperature [temp]",
            "0x15 Background scan results [bsr]",
            "0x2f Informational exceptions [ie]",
        ],
    )?;
    says(
        tenant,
        &on_disk("sg_logs -l -l"),
        &["0x19,0x20 Cache memory statistics [cms]"],
    )?;
    says(
        tenant,
        &on_disk("sg_senddiag -l"),
        &["0x00 Supported diagnostic pages"],
    )?;
    says(
        tenant,
        &on_disk("sg_senddiag -t"),
        &["Default self-test returned GOOD status"],
    )?;
    tenant.sh(&on_disk("sg_timestamp --milliseconds=1700000000000"))?;
    says(
        tenant,
        &on_disk("sg_timestamp --origin"),
        &["Device clock initialized by SET TIMESTAMP command"],
    )
}

/// What wipes a unit, mends it, or is written on it, on a LUN for that alone; `/tmp/a` is a block.
fn sg3_utils_look_after_a_unit(tenant: &mut Machine, disk: &str) -> Result<()> {
    let on_disk = |command: &str| format!("{command} {disk}");
    let all_are = |byte: &str| {
        format!("test -z \"$(dd if={disk} bs=1M iflag=direct status=none | tr -d '\\{byte}')\"")
    };
    let fill = on_disk("sg_write_same --16 --lba=0 --num=0 --in=/tmp/a");

    tenant.sh(&format!("printf 'mine!' | {}", on_disk("sg_ident --set")))?;
    says(tenant, &on_disk("sg_ident --ascii"), &["mine!"])?;

    tenant.sh(&on_disk("sg_write_buffer -m 10 -l 512 -I /tmp/a"))?;
    tenant.sh(&format!(
        "{} | cmp - /tmp/a",
        on_disk("sg_read_buffer -m 10 -l 512 --raw")
    ))?;
    let microcode = on_disk("sg_write_buffer -m dmc_save -l 512 -I /tmp/a");
    assert_eq!(status(tenant, &microcode)?, ILLEGAL_REQUEST);

    tenant.sh(&fill)?;
    tenant.sh(&all_are("141"))?;
    tenant.sh(&on_disk("sg_reassign --address=8"))?;
    tenant.sh(&all_are("141"))?;
    tenant.sh(&on_disk("sg_format --format --quick --wait"))?;
    tenant.sh(&all_are("000"))?;

    tenant.sh(&fill)?;
    tenant.sh(&on_disk("sg_sanitize --block --quick --wait"))?;
    tenant.sh(&all_are("000"))?;
    tenant.sh(&format!(
        "printf '\\125' >/tmp/pattern && {}",
        on_disk("sg_sanitize --overwrite --pattern=/tmp/pattern --quick --wait")
    ))?;
    tenant.sh(&all_are("125"))?;
    // In the background, as long as that takes.
    tenant.sh(&on_disk("sg_sanitize --block --quick --early"))?;
    eventually(tenant, &on_disk("sg_turs"))?;
    tenant.sh(&all_are("000"))?;
    tenant.sh(&on_disk("sg_sanitize --fail --quick"))?;

    // Of the others, those that do not need iSCSI have nothing to test, but for BlockErase: it asks
    // which blocks are allocated, which a block device does not tell.
    for test in ["ExitFailureMode", "InvalidServiceAction", "Overwrite"] {
        let tool = "timeout 100 iscsi-test-cu --dataloss --allow-sanitize --test";
        let printed = tenant.sh(&on_disk(&format!("{tool} SCSI.Sanitize.{test}")))?;
        assert!(!printed.contains("[SKIPPED]"), "{printed}");
    }
    Ok(())
}

#[test]
fn sg3_utils_change_blocks_and_see_it() -> Result<()> {
    let scenario = Scenario::begin("sg3_changes")?;
    let data = Disk::blank(&scenario, "t1data", 64)?;
    let nvme = Disk::blank(&scenario, "t1nvme", 64)?.with_atomic_writes(ATOMIC_BLOCKS);
    let wiped = Disk::blank(&scenario, "t1wiped", 16)?;
    let state = "state = \"/run/state\"";
    let mut bench = Bench::start_with(&scenario, &[&data, &nvme, &wiped], state)?;
    let tenant = &mut bench.tenant;
    let disk = disk_at(tenant, 1)?;
    let nvme = disk_at(tenant, 2)?;
    let wiped = disk_at(tenant, 3)?;
    // /tmp/a is a block of "a", and so on.
    tenant.sh(
        "head -c 512 /dev/zero >/tmp/z; for c in a b; do tr '\\0' $c </tmp/z >/tmp/$c; done; \
         cat /tmp/a /tmp/b >/tmp/ab",
    )?;
    let is_on = |disk: &str, block: u32, file: &str| {
        format!("dd if={disk} skip={block} count=1 iflag=direct status=none | cmp - /tmp/{file}")
    };
    let is = |block: u32, file: &str| is_on(&disk, block, file);

    tenant.sh(&format!(
        "sg_write_same --16 --lba=8 --num=64 --in=/tmp/a {disk}"
    ))?;
    for (block, file) in [(7, "z"), (8, "a"), (71, "a"), (72, "z")] {
        tenant.sh(&is(block, file))?;
    }
    tenant.sh(&format!(
        "sg_write_same --10 --lba=8 --num=1 --in=/tmp/b {disk}"
    ))?;
    tenant.sh(&is(8, "b"))?;
    tenant.sh(&format!(
        "sg_write_same --32 --lba=9 --num=1 --in=/tmp/b {disk}"
    ))?;
    tenant.sh(&is(9, "b"))?;
    // Without a buffer, and with UNMAP.
    tenant.sh(&format!("sg_write_same --16 --ndob --lba=8 --num=1 {disk}"))?;
    tenant.sh(&is(8, "z"))?;
    tenant.sh(&format!(
        "sg_write_same --16 --unmap --lba=9 --num=1 --in=/tmp/z {disk}"
    ))?;
    tenant.sh(&is(9, "z"))?;
    tenant.sh(&format!("sg_unmap --lba=16 --num=8 {disk}"))?;
    for (block, file) in [(15, "a"), (16, "z"), (23, "z"), (24, "a")] {
        tenant.sh(&is(block, file))?;
    }
    // A block device does not tell what it has allocated.
    says(
        tenant,
        &format!("sg_get_lba_status --lba=16 {disk}"),
        &["[1] LBA: 0x10 blocks: 131056 mapped (or unknown); LBA access not reported"],
    )?;

    // a becomes b, once.
    let swap = format!("sg_compare_and_write --in=/tmp/ab --lba=32 --num=1 --xferlen=1024 {disk}");
    tenant.sh(&swap)?;
    tenant.sh(&is(32, "b"))?;
    assert_eq!(status(tenant, &swap)?, MISCOMPARE);
    tenant.sh(&is(32, "b"))?;

    // WRITE ATOMIC(16) of three blocks, for which the disk writes eight at once.
    tenant.sh(&format!(
        "sg_write_same --16 --lba=0 --num=512 --in=/tmp/a {nvme} && \
         cat /tmp/b /tmp/b /tmp/b >/tmp/bbb"
    ))?;
    let atomic = |lba: &str, blocks: &str, len: u32| {
        format!(
            "sg_raw -s {len} -i /tmp/bbb {nvme} 9c 00 00 00 00 00 00 00 {lba} 00 00 00 {blocks} 00 00"
        )
    };
    tenant.sh(&atomic("00 03", "03", 3 * 512))?;
    let written = [
        (0, "a"),
        (2, "a"),
        (3, "b"),
        (5, "b"),
        (6, "a"),
        (7, "a"),
        (8, "a"),
    ];
    for (block, file) in written {
        tenant.sh(&is_on(&nvme, block, file))?;
    }
    // On both sides of a multiple of 256.
    assert_eq!(
        status(tenant, &atomic("00 ff", "02", 2 * 512))?,
        ILLEGAL_REQUEST
    );
    tenant.sh(&is_on(&nvme, 255, "a"))?;
    tenant.sh(&is_on(&nvme, 256, "a"))?;
    sg3_utils_look_after_a_unit(tenant, &wiped)
}

// 3. File systems, and what is given back.

const MIB: u64 = 1 << 20;

/// Waits until the shell command `condition` succeeds in `machine`.
fn eventually(machine: &mut Machine, condition: &str) -> Result<()> {
    let seconds = 45;
    machine
        .sh(&format!(
            "for try in $(seq {}); do if {condition}; then exit 0; fi; sleep 0.1; done; exit 1",
            10 * seconds
        ))
        .map(drop)
}

/// How to make and to check a file system.
const FILE_SYSTEMS: [(&str, &str, &str); 3] = [
    ("ext4", "mkfs.ext4 -q -F", "e2fsck -fn"),
    ("xfs", "mkfs.xfs -q -f", "xfs_repair -n"),
    ("btrfs", "mkfs.btrfs -q -f", "btrfs check"),
];

#[test]
fn file_systems_give_back_what_they_no_longer_use() -> Result<()> {
    let scenario = Scenario::begin("file_systems")?;
    let data = Disk::blank(&scenario, "t1data", 512)?;
    let mut bench = Bench::start(&scenario, &[&data])?;
    let tenant = &mut bench.tenant;
    let disk = disk_at(tenant, 1)?;
    for (kind, make, check) in FILE_SYSTEMS {
        tenant.sh(&format!(
            "dd if=/dev/zero of={disk} bs=1M count=256 oflag=direct status=none"
        ))?;
        assert!(data.allocated()? >= 256 * MIB, "before {kind}");

        tenant.sh(&format!("{make} {disk}"))?;
        // Of xfs 64 MiB are its log.
        let empty = data.allocated()?;
        assert!(empty <= 100 * MIB, "mkfs of {kind} left {empty} bytes");

        tenant.sh(&format!(
            "mkdir -p /mnt && mount -t {kind} {disk} /mnt && \
             dd if=/dev/urandom of=/mnt/file bs=1M count=64 status=none && \
             sha256sum /mnt/file >/tmp/sum && umount /mnt && {check} {disk} && \
             mount {disk} /mnt && sha256sum -c /tmp/sum"
        ))?;
        let full = data.allocated()?;
        // What mkfs has touched may be used again.
        assert!(full >= empty + 60 * MIB, "{kind}: {empty}, then {full}");

        tenant.sh("rm /mnt/file && sync && fstrim /mnt")?;
        let trimmed = data.allocated()?;
        assert!(
            trimmed + 60 * MIB <= full,
            "fstrim of {kind}: {full}, then {trimmed}"
        );
        tenant.sh(&format!("umount /mnt && {check} {disk}"))?;
    }
    Ok(())
}

#[test]
fn blkdiscard_zeroes_and_gives_back() -> Result<()> {
    let scenario = Scenario::begin("blkdiscard")?;
    let data = Disk::blank(&scenario, "t1data", 64)?;
    let mut bench = Bench::start(&scenario, &[&data])?;
    let tenant = &mut bench.tenant;
    let disk = disk_at(tenant, 1)?;
    let fill = format!("dd if=/dev/urandom of={disk} bs=1M count=32 oflag=direct status=none");
    let is_zero = format!(
        "dd if={disk} bs=1M count=32 iflag=direct status=none | cmp -n {} - /dev/zero",
        32 * MIB
    );
    tenant.sh(&fill)?;
    assert!(data.allocated()? >= 32 * MIB);

    // Linux asks for zeros that stay allocated: WRITE SAME(16) without UNMAP.
    tenant.sh(&format!("blkdiscard -z -l 32M {disk} && {is_zero}"))?;
    assert!(data.allocated()? >= 32 * MIB);

    tenant.sh(&fill)?;
    tenant.sh(&format!("blkdiscard -l 32M {disk} && {is_zero}"))?;
    let left = data.allocated()?;
    assert!(left <= MIB, "blkdiscard left {left} bytes");
    Ok(())
}

// 4. LUNs that change.

/// Writes `device` at random places for a while, and reads it back with crc32c.
fn verified_fio(device: &str) -> String {
    format!(
        "fio --name=verify --filename={device} --direct=1 --ioengine=libaio --iodepth=16 \
         --rw=randwrite --bs=16k --verify=crc32c --verify_fatal=1 --end_fsync=1"
    )
}
/// How long verified I/O may take under TCG on a busy machine.
const FIO: Duration = Duration::from_secs(300);

#[test]
fn lun_grows_under_a_mounted_file_system() -> Result<()> {
    let scenario = Scenario::begin("resize")?;
    let data = Disk::blank(&scenario, "t1data", 64)?;
    let mut bench = Bench::start(&scenario, &[&data])?;
    let tenant = &mut bench.tenant;
    let disk = disk_at(tenant, 1)?;
    tenant.sh(&format!(
        "mkfs.ext4 -q -F {disk} && mkdir -p /mnt && mount {disk} /mnt && echo old >/mnt/old"
    ))?;

    bench.storage.resize(&data, 256 * MIB)?;

    // Nobody asks the tenant to look.
    eventually(
        tenant,
        &format!("test $(blockdev --getsize64 {disk}) = {}", 256 * MIB),
    )?;
    tenant.sh(&format!(
        "resize2fs {disk} && dd if=/dev/urandom of=/mnt/file bs=1M count=128 status=none && \
         sha256sum /mnt/file >/tmp/sum && umount /mnt && e2fsck -fn {disk} && \
         mount {disk} /mnt && sha256sum -c /tmp/sum && grep old /mnt/old"
    ))?;
    Ok(())
}

#[test]
fn lun_comes_and_goes_while_anothers_verified_io_runs() -> Result<()> {
    let scenario = Scenario::begin("lun_comes_and_goes")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let data = Disk::blank(&scenario, "t1data", 256)?;
    let spare = Disk::blank(&scenario, "t1spare", 64)?;
    let config = ApplianceConfig::new("storage-1").hba("tenant1", &[&root, &data]);
    let disks = [&root, &data, &spare].into_iter();
    let vm = disks.fold(StorageVm::new(&config), StorageVm::disk);
    let mut storage = vm.start(&scenario)?;
    let shim = Shim::new("tenant1", &config).start(&scenario, &storage)?;
    let mut tenant = TenantVm::new("tenant1").hba(&shim).start(&scenario)?;
    let disk = disk_at(&mut tenant, 1)?;
    let appliance = storage.sh("pidof appliance")?;
    let fio = tenant.start_sh(&verified_fio(&disk))?;
    let is_there = "lsblk -dno HCTL | grep -q ':0:9$'";

    for _ in 0..2 {
        storage.reconfigure(&config.clone().with_lun("tenant1", 9, &spare))?;
        eventually(&mut tenant, is_there)?;
        let came = disk_at(&mut tenant, 9)?;
        tenant.sh(&format!(
            "dd if=/dev/urandom of=/tmp/data bs=1M count=4 status=none && \
             dd if=/tmp/data of={came} bs=1M oflag=direct status=none && \
             dd if={came} bs=1M count=4 iflag=direct status=none | cmp - /tmp/data"
        ))?;
        storage.reconfigure(&config)?;
        eventually(&mut tenant, &format!("! {is_there}"))?;
    }

    assert!(!fio.is_done(), "too quick to show anything");
    fio.succeed(FIO)?;
    assert_eq!(storage.sh("pidof appliance")?, appliance);
    Ok(())
}

// 5. A disk that holds a command.

/// How long a held command may take to end after a reset; the disk would hold it for a minute.
const AFTER_RESET: Duration = Duration::from_secs(25);

#[test]
fn lun_reset_ends_what_a_slow_disk_holds() -> Result<()> {
    let scenario = Scenario::begin("slow_disk")?;
    let root = Disk::tenant_root(&scenario, "t1root")?;
    let data = Disk::blank(&scenario, "t1data", 64)?;
    // An HBA of its own: what the tenant's programs read of themselves is no part of this.
    let config = ApplianceConfig::new("storage-1")
        .hba("boot", &[&root])
        .hba("work", &[&data]);
    let vm = StorageVm::new(&config).disk(&root).disk(&data);
    let mut storage = vm.start(&scenario)?;
    let boot = Shim::new("boot", &config).start(&scenario, &storage)?;
    let work = Shim::new("work", &config).start(&scenario, &storage)?;
    let vm = TenantVm::new("tenant1").hba(&boot).hba(&work);
    let tenant = &mut vm.start(&scenario)?;
    let disk = disk_on(tenant, 1, 0)?;
    tenant.sh(&format!(
        "dd if=/dev/urandom of=/tmp/data bs=1M count=2 status=none && \
         dd if=/tmp/data of={disk} bs=1M oflag=direct status=none"
    ))?;
    let read = format!("dd if={disk} bs=1M count=2 iflag=direct status=none | cmp - /tmp/data");
    // READ(10) of 1024 blocks; a command of SG_IO is not repeated.
    let raw_read =
        format!("sg_raw --timeout=60 -r 524288 -o /dev/null {disk} 28 00 00 00 00 00 00 04 00 00");
    let is_held = format!("grep -q ' [1-9][0-9]* ' /sys/block/{}/inflight", &disk[5..]);
    storage.throttle(&data, 32 << 10)?;
    let repeated = tenant.start_sh(&read)?;
    eventually(tenant, &is_held)?;
    // Once the second command was not held, and the cause was not found: it is tried again, aloud.
    let mut given_back = tenant.start_sh(&raw_read)?;
    thread::sleep(Duration::from_secs(2));
    for _ in 0..3 {
        if given_back.is_done() {
            println!("not held: {:?}", given_back.output(AFTER_RESET)?);
            given_back = tenant.start_sh(&raw_read)?;
            thread::sleep(Duration::from_secs(2));
        }
    }
    assert!(
        !repeated.is_done() && !given_back.is_done(),
        "nothing is held"
    );

    tenant
        .start_sh(&format!("sg_reset -d {disk}"))?
        .succeed(AFTER_RESET)?;

    let given_back = given_back.output(AFTER_RESET)?;
    assert_ne!(given_back.status, 0, "{}", given_back.text);
    assert!(!repeated.is_done());
    eventually(
        tenant,
        "dmesg | sed '1,/: device reset$/d' | grep 'Power-on or device reset occurred'",
    )?;
    // Linux's driver has no reset of a target, and asks the device nothing.
    let target = tenant
        .start_sh(&format!("sg_reset -N -t {disk}"))?
        .output(AFTER_RESET)?;
    assert!(target.text.contains("may not be available"), "{target:?}");
    storage.throttle(&data, 0)?;
    repeated.succeed(FIO).map(drop)
}

// 6. A disk whose room runs out.

#[test]
fn full_disk_warns_and_then_refuses_writes_until_something_is_given_back() -> Result<()> {
    let scenario = Scenario::begin("full_disk")?;
    let mut bench = Bench::start(&scenario, &[])?;
    let (storage, tenant) = (&mut bench.storage, &mut bench.tenant);
    storage.sh(
        "mkdir /run/small && mount -t tmpfs -o size=16m small /run/small && truncate -s 64M /run/small/lun",
    )?;
    let config = bench.config.clone();
    // At 75 % of 16 MiB, 4 MiB are left.
    let config = config
        .with_file_lun("tenant1", 1, "small", "/run/small/lun")
        .with_threshold("small", 75);
    storage.reconfigure(&config)?;
    eventually(tenant, "lsblk -dno HCTL | grep -q ':0:1$'")?;
    let disk = disk_at(tenant, 1)?;
    let write = |mebibytes: u32| {
        format!("dd if=/tmp/data of={disk} bs=1M count={mebibytes} oflag=direct status=none")
    };
    tenant.sh("dd if=/dev/urandom of=/tmp/data bs=1M count=32 status=none")?;
    tenant.sh(&write(8))?;

    // THRESHOLD EXPONENT 0bh; it unmaps by all commands, and is thin.
    says(
        tenant,
        &format!("sg_vpd -p lbpv -H {disk}"),
        &["00 00 b2 00 04 0b e4 02 00"],
    )?;
    // ENABLED, on the available resources, at four sets of 2^11 blocks.
    says(
        tenant,
        &format!("sg_modes -p 0x1c,2 {disk}"),
        &[
            "00 5c 02 00 14 00 00 00 00 00 00 00 00 00 00 00 00",
            "10 80 01 00 00 00 00 00 04",
        ],
    )?;
    // The kernel says so of 38h/07h, which comes in place of some command.
    let is_warned = format!(
        "{{ dd if={disk} of=/dev/null count=1 iflag=direct status=none; \
         dmesg | grep -q 'reached a thin provisioning soft threshold'; }}"
    );
    thread::sleep(Duration::from_secs(2));
    tenant.sh(&format!("! {is_warned}"))?;
    tenant.sh(&format!("{} seek=8", write(6)))?;
    eventually(tenant, &is_warned)?;

    let refused = tenant.start_sh(&write(32))?.output(FIO)?;
    assert!(
        refused.text.contains("No space left on device"),
        "{refused:?}"
    );
    let sense = tenant
        .start_sh(&format!(
            "sg_raw -s 512 -i /tmp/data {disk} 2a 00 00 01 f0 00 00 00 01 00"
        ))?
        .output(FIO)?;
    assert!(
        sense.text.contains("Data Protect")
            && sense.text.contains("Space allocation failed write protect"),
        "{sense:?}"
    );
    let head = "iflag=direct status=none | cmp -n 8388608 - /tmp/data";
    tenant.sh(&format!("dd if={disk} bs=1M count=8 {head}"))?;

    tenant.sh(&format!("blkdiscard {disk}"))?;
    tenant.sh(&write(8))?;
    tenant.sh(&format!("dd if={disk} bs=1M count=8 {head}"))?;
    Ok(())
}
