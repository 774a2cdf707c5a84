//! T10 protection information, from the tenant's driver to the disk and back.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use spec::virtio_scsi::response;
use tests::world::{
    BLOCK, Command, Failure, Lun, MIB, Outcome, POISON, Shape, Tenant, World, read10, write10,
};

/// The guard of 512 bytes of zeros.
const ZEROS: [u8; 2] = [0, 0];

/// RDPROTECT or WRPROTECT.
fn protect(mut cdb: [u8; 10], field: u8) -> [u8; 10] {
    cdb[1] |= field << 5;
    cdb
}

fn tenant(world: &World) -> Tenant {
    let mut tenant = world.tenant_like(Shape {
        t10_pi: true,
        ..Shape::default()
    });
    // POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
    let attention = send(&mut tenant, &Command::new(0, &[0; 6])).good();
    assert!(attention.is_err());
    tenant
}

fn send(tenant: &mut Tenant, command: &Command) -> Outcome {
    tenant.initiator().command(command).unwrap()
}

/// WRITE(10) of blocks of zeros with these tags.
fn write_zeros(lba: u32, field: u8, tags: &[[u8; 8]]) -> Command {
    let mut data = tags.concat();
    let prefix = u32::try_from(data.len()).unwrap();
    data.resize(data.len() + tags.len() * BLOCK, 0);
    let blocks = u16::try_from(tags.len()).unwrap();
    Command::new(0, &protect(write10(lba, blocks), field))
        .data_out(&data)
        .tags(prefix, 0)
}

/// READ(10) of one block with its tag.
fn read_tagged(lba: u32, field: u8) -> Command {
    Command::new(0, &protect(read10(lba, 1), field))
        .data_in(8 + BLOCK)
        .tags(0, 8)
}

/// Key, code and qualifier of sense data, and INFORMATION if it is VALID.
fn sense(outcome: &Outcome) -> ([u8; 3], Option<u32>) {
    let bytes = &outcome.response.sense;
    assert_eq!((outcome.response.status, bytes[0] & 0x7f), (2, 0x70));
    let valid = bytes[0] & 0x80 != 0;
    let information = u32::from_be_bytes([bytes[3], bytes[4], bytes[5], bytes[6]]);
    (
        [bytes[2], bytes[12], bytes[13]],
        valid.then_some(information),
    )
}

#[test]
fn tags_go_to_the_disk_and_come_back_even_from_the_next_appliance() {
    let mut world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(8 * MIB).protected("type1"))
        .start();
    let mut tenant = tenant(&world);

    let capacity = Command::new(0, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]);
    let data = tenant.initiator().run(&capacity.data_in(32)).unwrap();
    assert_eq!(data[12], 0x01, "P_TYPE 0, PROT_EN");
    let inquiry = Command::new(0, &[0x12, 0, 0, 0, 96, 0]).data_in(96);
    assert_eq!(tenant.initiator().run(&inquiry).unwrap()[5] & 1, 1);
    let extended = Command::new(0, &[0x12, 1, 0x86, 0, 64, 0]).data_in(64);
    let data = tenant.initiator().run(&extended).unwrap();
    assert_eq!(data[4], 0x05, "SPT 000b, GRD_CHK, REF_CHK");
    // REPORT SUPPORTED OPERATION CODES: READ(10) and COMPARE AND WRITE have the field.
    for (opcode, usage) in [(0x28, 0xfa), (0x89, 0xfa)] {
        let report = Command::new(0, &[0xa3, 0x0c, 1, opcode, 0, 0, 0, 0, 0, 64, 0, 0]);
        let data = tenant.initiator().run(&report.data_in(64)).unwrap();
        assert_eq!((data[1], data[5]), (3, usage));
    }
    // READ(32), which is for type 2.
    let mut read_32 = [0; 32];
    (read_32[0], read_32[7], read_32[9], read_32[31]) = (0x7f, 0x18, 0x09, 1);
    let read_32 = Command::new(0, &read_32).data_in(BLOCK);
    assert_eq!(sense(&send(&mut tenant, &read_32)), ([5, 0x20, 0], None));

    let tags = [[0, 0, 7, 7, 0, 0, 1, 0], [0, 0, 8, 8, 0, 0, 1, 1]];
    let outcome = send(&mut tenant, &write_zeros(0x100, 1, &tags));
    assert_eq!(outcome.response.residual, 0);
    outcome.good().unwrap();
    for restart in [false, true] {
        if restart {
            world.kill_appliance();
            world.start_appliance();
            let _attention = send(&mut tenant, &Command::new(0, &[0; 6]));
        }
        let outcome = send(&mut tenant, &read_tagged(0x101, 1));
        assert_eq!(outcome.response.residual, 0);
        assert_eq!(outcome.used_len, 108 + 8 + 512);
        let data = outcome.good().unwrap();
        assert_eq!(data[..8], tags[1]);
        assert_eq!(data[8..], [0; BLOCK]);
    }
    // Without the field there are none, in whatever room.
    let plain = Command::new(0, &read10(0x101, 1))
        .data_in(8 + BLOCK)
        .tags(0, 8);
    let data = send(&mut tenant, &plain).good().unwrap();
    assert_eq!(
        (&data[..8], &data[8..]),
        (&[POISON; 8][..], &[0; BLOCK][..])
    );
}

#[test]
fn a_wrong_tag_is_an_aborted_command_that_names_its_block() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(8 * MIB).protected("type1"))
        .start();
    let mut tenant = tenant(&world);
    let good = |lba: u8| [0, 0, 0, 0, 0, 0, 0, lba];
    let bad_guard = [0, 1, 0, 0, 0, 0, 0, 11];

    let outcome = send(&mut tenant, &write_zeros(10, 1, &[good(10), bad_guard]));
    assert_eq!(sense(&outcome), ([0xb, 0x10, 1], Some(11)));
    let outcome = send(&mut tenant, &write_zeros(10, 1, &[good(10), good(12)]));
    assert_eq!(sense(&outcome), ([0xb, 0x10, 3], Some(11)));

    // Written unchecked, and found by who reads.
    send(&mut tenant, &write_zeros(11, 3, &[bad_guard]))
        .good()
        .unwrap();
    let outcome = send(&mut tenant, &Command::new(0, &read10(10, 2)).data_in(1024));
    assert_eq!(sense(&outcome), ([0xb, 0x10, 1], Some(11)));
    assert_eq!(outcome.data, [POISON; 1024]);
    let data = send(&mut tenant, &read_tagged(11, 3)).good().unwrap();
    assert_eq!(data[..8], bad_guard);
}

#[test]
fn type_3_leaves_the_reference_tag_to_the_tenant() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(8 * MIB).protected("type3"))
        .start();
    let mut tenant = tenant(&world);
    let capacity = Command::new(0, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]);
    let data = tenant.initiator().run(&capacity.data_in(32)).unwrap();
    assert_eq!(data[12], 0x05, "P_TYPE 2, PROT_EN");
    let extended = Command::new(0, &[0x12, 1, 0x86, 0, 64, 0]).data_in(64);
    let data = tenant.initiator().run(&extended).unwrap();
    assert_eq!(data[4], 0x24, "SPT 100b, GRD_CHK");
    let tag = [ZEROS[0], ZEROS[1], 1, 2, 0xca, 0xfe, 0xba, 0xbe];
    send(&mut tenant, &write_zeros(5, 1, &[tag]))
        .good()
        .unwrap();
    let data = send(&mut tenant, &read_tagged(5, 1)).good().unwrap();
    assert_eq!(data[..8], tag);
}

#[test]
fn lengths_that_lie_are_an_overrun_and_nothing_more() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(8 * MIB).protected("type1"))
        .lun(Lun::file(MIB))
        .start();
    let mut tenant = tenant(&world);
    let overrun = Err(Failure::Response(response::OVERRUN));
    let tag = [0, 0, 0, 0, 0, 0, 0, 3];
    for (out, back) in [
        (u32::MAX, 0),
        (0, u32::MAX),
        (u32::MAX, u32::MAX),
        (8 + 512 + 1, 0),
        // No room is left for the data.
        (9, 0),
        (8 + 512, 0),
        // Not a whole tag.
        (7, 0),
    ] {
        let lying = write_zeros(3, 1, &[tag]).tags(out, back);
        assert_eq!(send(&mut tenant, &lying).good().map(drop), overrun, "{out}");
    }
    for (out, back) in [(0, 7), (0, 9), (0, 8 + 512 + 1), (1, 8)] {
        let lying = read_tagged(3, 1).tags(out, back);
        assert_eq!(
            send(&mut tenant, &lying).good().map(drop),
            overrun,
            "{back}"
        );
    }
    send(&mut tenant, &write_zeros(3, 1, &[tag]))
        .good()
        .unwrap();

    // A unit without protection information does not know the field.
    let _attention = send(&mut tenant, &Command::new(1, &[0; 6]));
    let mut other = write_zeros(3, 1, &[tag]);
    other.lun = tests::world::address(1);
    let outcome = send(&mut tenant, &other);
    assert_eq!(sense(&outcome), ([5, 0x24, 0], None));
}

#[test]
fn a_driver_without_the_feature_is_protected_too_but_moves_no_tags() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(8 * MIB).protected("type1"))
        .start();
    let mut tenant = world.tenant();
    let _attention = send(&mut tenant, &Command::new(0, &[0; 6]));
    let write = Command::new(0, &write10(300, 2)).data_out(&[5; 2 * BLOCK]);
    send(&mut tenant, &write).good().unwrap();
    // The tags of block 300 are 44 entries into the second group's: inverted, twice.
    let at = 4096 + 4096 + 256 * 512 + 44 * 16;
    let entry = world.image(0, at, 16);
    assert_eq!(entry[..8], entry[8..]);
    assert_eq!(entry[2..8], [0xff, 0xff, 0xff, 0xff, 0xfe, 0xd3]);
    let field = Command::new(0, &protect(read10(300, 1), 1)).data_in(8 + BLOCK);
    assert_eq!(sense(&send(&mut tenant, &field)), ([5, 0x24, 0], None));
    let read = Command::new(0, &read10(300, 2)).data_in(2 * BLOCK);
    let data = send(&mut tenant, &read).good().unwrap();
    assert_eq!(data, [5; 2 * BLOCK]);
}

/// Two LUNs, each with protection information or without, in an appliance that keeps state.
fn two(luns: [Lun; 2]) -> (World, Tenant) {
    let [one, other] = luns;
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(one)
        .lun(other)
        .keeping_state()
        .start();
    let mut tenant = tenant(&world);
    let _attention = send(&mut tenant, &Command::new(1, &[0; 6]));
    (world, tenant)
}

fn protected() -> Lun {
    Lun::file(8 * MIB).protected("type1")
}

/// Byte of an image with the data of a block of the first group.
const fn at(lba: u64) -> u64 {
    8192 + lba * BLOCK as u64
}

/// A command with data-out and a tag before it for each block that there is one for.
fn with_tags(cdb: &[u8], tags: &[[u8; 8]], data: &[u8]) -> Command {
    let prefix = u32::try_from(tags.len() * 8).unwrap();
    let data = [tags.concat(), data.to_vec()].concat();
    Command::new(0, cdb).data_out(&data).tags(prefix, 0)
}

/// The tag and the data of a block.
fn tagged(tenant: &mut Tenant, lba: u32) -> ([u8; 8], Vec<u8>) {
    let data = send(tenant, &read_tagged(lba, 1)).good().unwrap();
    (data[..8].try_into().unwrap(), data[8..].to_vec())
}

#[test]
fn compare_and_write_orwrite_and_verify_move_tags() {
    let world = World::new().lun(protected()).start();
    let mut tenant = tenant(&world);
    let zeros = [0; BLOCK];
    let tag = [0, 0, 1, 2, 0, 0, 0, 9];
    let bad = [0, 1, 1, 2, 0, 0, 0, 9];
    let not_looked_at = [0x55; 8];
    send(&mut tenant, &write_zeros(9, 1, &[tag]))
        .good()
        .unwrap();

    // COMPARE AND WRITE with WRPROTECT 001b: the tags of the compare instance are of no use.
    let compare_and_write = [0x89, 0x20, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0];
    let twice = [zeros, zeros].concat();
    let good = with_tags(
        &compare_and_write,
        &[not_looked_at, [0, 0, 3, 4, 0, 0, 0, 9]],
        &twice,
    );
    send(&mut tenant, &good).good().unwrap();
    assert_eq!(tagged(&mut tenant, 9).0, [0, 0, 3, 4, 0, 0, 0, 9]);
    let refused = with_tags(&compare_and_write, &[tag, bad], &twice);
    let outcome = send(&mut tenant, &refused);
    assert_eq!(sense(&outcome), ([0xb, 0x10, 1], Some(9)));
    let ones = [[0xff; BLOCK], zeros].concat();
    let differs = with_tags(&compare_and_write, &[tag, bad], &ones);
    assert_eq!(
        sense(&send(&mut tenant, &differs)),
        ([0xe, 0x1d, 0], Some(0))
    );

    // ORWRITE(16) with ORPROTECT 001b: new tags are made.
    let or = [0x8b, 0x20, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0];
    let outcome = send(&mut tenant, &with_tags(&or, &[bad], &zeros));
    assert_eq!(sense(&outcome), ([0xb, 0x10, 1], Some(9)));
    send(&mut tenant, &with_tags(&or, &[tag], &zeros))
        .good()
        .unwrap();
    assert_eq!(tagged(&mut tenant, 9).0, [0, 0, 0, 0, 0, 0, 0, 9]);

    // VERIFY(16) with BYTCHK 01b: 001b checks what is sent; 011b only compares.
    let verify = |field: u8| {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[9], cdb[13]) = (0x8f, field << 5 | 0x02, 9, 1);
        cdb
    };
    send(&mut tenant, &with_tags(&verify(1), &[tag], &zeros))
        .good()
        .unwrap();
    let outcome = send(&mut tenant, &with_tags(&verify(1), &[bad], &zeros));
    assert_eq!(sense(&outcome), ([0xb, 0x10, 1], Some(9)));
    let outcome = send(&mut tenant, &with_tags(&verify(3), &[bad], &zeros));
    assert_eq!(sense(&outcome), ([0xe, 0x10, 1], Some(9)), "MISCOMPARE");
    let other = [0, 0, 1, 2, 0, 0, 0, 8];
    let outcome = send(&mut tenant, &with_tags(&verify(3), &[other], &zeros));
    assert_eq!(sense(&outcome), ([0xe, 0x10, 3], Some(9)));
    // The comparison of the reference tag is what 101b leaves out.
    let outcome = send(&mut tenant, &with_tags(&verify(5), &[other], &zeros));
    assert_eq!(
        sense(&outcome),
        ([0xb, 0x10, 3], Some(9)),
        "but not the check"
    );
}

#[test]
fn what_is_given_back_reads_as_zeros_with_tags_of_ones() {
    let world = World::new().lun(protected()).start();
    let mut tenant = tenant(&world);
    let blank = ([0xff; 8], vec![0; BLOCK]);
    let fill = Command::new(0, &write10(0, 64)).data_out(&[5; 64 * BLOCK]);

    // UNMAP of 8 blocks, WRITE SAME(16) with UNMAP, and with NDOB, of 8 each.
    let mut list = [0; 24];
    (list[1], list[3], list[15], list[19]) = (22, 16, 8, 8);
    let unmap = Command::new(0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]).data_out(&list);
    let same = |flags, lba| [0x93, flags, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, 8, 0, 0];
    let zeros = Command::new(0, &same(0x08, 24)).data_out(&[0; BLOCK]);
    let no_data = Command::new(0, &same(0x01, 40));
    send(&mut tenant, &fill).good().unwrap();
    for command in [unmap, zeros, no_data] {
        send(&mut tenant, &command).good().unwrap();
    }

    for lba in [8, 15, 24, 31, 40, 47] {
        assert_eq!(tagged(&mut tenant, lba), blank, "{lba}");
    }
    for lba in [7, 16, 23, 32, 39, 48] {
        let (tag, data) = tagged(&mut tenant, lba);
        assert_eq!(
            (tag[4..].to_vec(), data),
            (lba.to_be_bytes().to_vec(), vec![5; BLOCK])
        );
    }
    // Without a tag in the way, a change is not found out; beside them, it is.
    world.damage(0, at(8));
    tagged(&mut tenant, 8);
    world.damage(0, at(7));
    let outcome = send(&mut tenant, &read_tagged(7, 1));
    assert_eq!(sense(&outcome), ([0xb, 0x10, 1], Some(7)));
}

#[test]
fn formatting_and_sanitizing_leave_no_data_and_tags_of_ones() {
    let (world, mut tenant) = two([protected(), Lun::file(8 * MIB).protected("type3")]);
    let fill = |lun| {
        let ones = Command::new(lun, &[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        ones.data_out(&[0xff; BLOCK])
    };
    // FMTPINFO 10b for type 1, 11b with PROTECTION FIELD USAGE 001b for type 3; and the other way
    // round, or without: to another type, which only the configuration can make of it.
    let format = |lun, flags: u8, usage| {
        Command::new(lun, &[0x04, 0x10 | flags, 0, 0, 0, 0]).data_out(&[usage, 0, 0, 0])
    };
    for (lun, flags) in [(0, 0x00), (0, 0xc0), (1, 0x00), (1, 0x80)] {
        let outcome = send(&mut tenant, &format(lun, flags, 0));
        assert_eq!(sense(&outcome).0, [5, 0x24, 0], "{lun} {flags:02x}");
    }
    for (lun, flags, usage) in [(0, 0x80, 0), (1, 0xc0, 1)] {
        send(&mut tenant, &fill(lun)).good().unwrap();
        send(&mut tenant, &format(lun, flags, usage))
            .good()
            .unwrap();
        let mut read = read_tagged(300, 1);
        read.lun = tests::world::address(lun);
        let data = send(&mut tenant, &read).good().unwrap();
        assert_eq!(data, [vec![0xff; 8], vec![0; BLOCK]].concat(), "{lun}");
        let index = usize::from(lun);
        let image = world.image(index, 4096, 7 << 20);
        assert!(
            image.iter().all(|&byte| byte == 0),
            "tags and data of {lun}"
        );
    }

    // SANITIZE, OVERWRITE and BLOCK ERASE.
    send(&mut tenant, &fill(0)).good().unwrap();
    let overwrite = Command::new(0, &[0x48, 0x01, 0, 0, 0, 0, 0, 0, 5, 0]);
    let pattern = overwrite.data_out(&[0x01, 0, 0, 1, 0x5a]);
    send(&mut tenant, &pattern).good().unwrap();
    assert_eq!(tagged(&mut tenant, 300), ([0xff; 8], vec![0x5a; BLOCK]));
    let erase = Command::new(0, &[0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0]);
    send(&mut tenant, &erase).good().unwrap();
    assert_eq!(tagged(&mut tenant, 300), ([0xff; 8], vec![0; BLOCK]));
    // And what is written from now on has its tag.
    let write = Command::new(0, &write10(300, 1)).data_out(&[0; BLOCK]);
    send(&mut tenant, &write).good().unwrap();
    assert_eq!(tagged(&mut tenant, 300).0, [0, 0, 0, 0, 0, 0, 1, 0x2c]);
    // SEND DIAGNOSTIC with SELFTEST reads a block.
    send(&mut tenant, &Command::new(0, &[0x1d, 0x04, 0, 0, 0, 0]))
        .good()
        .unwrap();
    // REASSIGN BLOCKS: what can be read stays as it is.
    let reassign = Command::new(0, &[0x07, 0, 0, 0, 0, 0]);
    let block = reassign.data_out(&[0, 0, 0, 4, 0, 0, 1, 0x2c]);
    send(&mut tenant, &block).good().unwrap();
    assert_eq!(tagged(&mut tenant, 300).0, [0, 0, 0, 0, 0, 0, 1, 0x2c]);
}

/// EXTENDED COPY of 1024 blocks (512 KiB) from LBA 0 of one LUN to LBA 600 of another, sent to
/// LUN 1.
fn copy(tenant: &mut Tenant, from: u8, to: u8) -> Outcome {
    let cscd = |tenant: &mut Tenant, lun: u16| {
        let inquiry = Command::new(lun, &[0x12, 1, 0x83, 0, 64, 0]).data_in(64);
        let page = send(tenant, &inquiry).good().unwrap();
        let mut cscd = vec![0xe4, 0, 0, 0];
        cscd.extend(&page[4..16]);
        cscd.resize(28, 0);
        cscd.extend([0, 0, 2, 0]);
        cscd
    };
    let mut list = vec![9, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0];
    list.extend([cscd(tenant, 0), cscd(tenant, 1)].concat());
    list.extend([0x0a, 0, 0, 0x1c, 0, from, 0, to]);
    list.extend((1024 * 512_u32).to_be_bytes());
    list.extend(0_u64.to_be_bytes());
    list.extend(600_u64.to_be_bytes());
    list.extend([0; 4]);
    let mut cdb = [0; 16];
    (cdb[0], cdb[13]) = (0x83, u8::try_from(list.len()).unwrap());
    send(tenant, &Command::new(1, &cdb).data_out(&list))
}

/// Writes 1024 blocks from LBA 0 on; each has a byte of its own.
fn fill(tenant: &mut Tenant, lun: u16) -> Vec<u8> {
    let blocks = (0..1024_usize).map(|number| [u8::try_from(number % 251).unwrap(); BLOCK]);
    let data: Vec<u8> = blocks.flatten().collect();
    let write = Command::new(lun, &write10(0, 1024)).data_out(&data);
    send(tenant, &write).good().unwrap();
    data
}

/// The blocks that were copied.
fn copied(tenant: &mut Tenant, lun: u16) -> Vec<u8> {
    let read = Command::new(lun, &read10(600, 1024)).data_in(1024 * BLOCK);
    send(tenant, &read).good().unwrap()
}

#[test]
fn copies_between_luns_with_and_without_tags_are_checked_and_tagged() {
    for (luns, from, to) in [
        ([protected(), Lun::file(MIB)], 0, 1),
        ([protected(), Lun::file(MIB)], 1, 0),
        ([protected(), protected()], 0, 1),
        ([protected(), protected()], 0, 0),
    ] {
        let (_world, mut tenant) = two(luns);
        let data = fill(&mut tenant, from.into());
        // Behind its source on the same disk, it is copied from the end.
        copy(&mut tenant, from, to).good().unwrap();
        assert!(copied(&mut tenant, to.into()) == data, "{from} to {to}");
        if to == 0 {
            let (tag, block) = tagged(&mut tenant, 601);
            assert_eq!(block, [1; BLOCK]);
            assert_eq!(tag[2..], [0, 0, 0, 0, 0x02, 0x59], "tag of LBA 601");
        }
    }
}

#[test]
fn what_a_disk_has_changed_ends_a_copy_and_does_not_spread() {
    let (world, mut tenant) = two([protected(), Lun::file(MIB)]);
    fill(&mut tenant, 0);
    world.damage(0, at(10));

    let outcome = copy(&mut tenant, 0, 1);
    let bytes = &outcome.response.sense;
    // COPY ABORTED, THIRD PARTY DEVICE FAILURE.
    assert_eq!([bytes[2] & 0x0f, bytes[12], bytes[13]], [0x0a, 0x0d, 0x01]);
    assert_eq!(world.image(1, 0, 1 << 20), [0; 1 << 20]);

    // By a token: POPULATE TOKEN of the block, RECEIVE ROD TOKEN INFORMATION, WRITE USING TOKEN.
    let mut list = [0; 32];
    (list[1], list[15], list[23], list[27]) = (30, 16, 10, 1);
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[9], cdb[13]) = (0x83, 0x10, 1, 32);
    send(&mut tenant, &Command::new(0, &cdb).data_out(&list))
        .good()
        .unwrap();
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[5], cdb[12]) = (0x84, 0x07, 1, 0x04);
    let information = Command::new(0, &cdb).data_in(1024);
    let token = send(&mut tenant, &information).good().unwrap()[38..550].to_vec();
    let mut list = vec![0; 536];
    list[16..528].copy_from_slice(&token);
    list.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    (list[0], list[1], list[535]) = (0x02, 0x26, 16);
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[9], cdb[12], cdb[13]) = (0x83, 0x11, 2, 0x02, 0x28);
    let outcome = send(&mut tenant, &Command::new(1, &cdb).data_out(&list));
    let bytes = &outcome.response.sense;
    assert_eq!([bytes[2] & 0x0f, bytes[12], bytes[13]], [0x0a, 0x0d, 0x01]);
    assert_eq!(world.image(1, 0, 1 << 20), [0; 1 << 20]);
}
