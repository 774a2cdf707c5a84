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
    // REPORT SUPPORTED OPERATION CODES: READ(10) has the field, COMPARE AND WRITE has not.
    for (opcode, usage) in [(0x28, 0xfa), (0x89, 0x1a)] {
        let report = Command::new(0, &[0xa3, 0x0c, 1, opcode, 0, 0, 0, 0, 0, 64, 0, 0]);
        let data = tenant.initiator().run(&report.data_in(64)).unwrap();
        assert_eq!((data[1], data[5]), (3, usage));
    }
    // UNMAP.
    let unmap = Command::new(0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(sense(&send(&mut tenant, &unmap)), ([5, 0x20, 0], None));

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

#[test]
fn nothing_gets_past_the_tags_neither_copies_nor_erasure_nor_a_self_test() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(8 * MIB).protected("type1"))
        .lun(Lun::file(MIB))
        .keeping_state()
        .start();
    let mut tenant = tenant(&world);
    let _attention = send(&mut tenant, &Command::new(1, &[0; 6]));
    send(
        &mut tenant,
        &Command::new(0, &write10(0, 1)).data_out(&[5; BLOCK]),
    )
    .good()
    .unwrap();

    // FORMAT UNIT, REASSIGN BLOCKS, SANITIZE (BLOCK ERASE), EXTENDED COPY, RECEIVE COPY RESULTS.
    for cdb in [[0x04, 0], [0x07, 0], [0x48, 0x82], [0x83, 0], [0x84, 0]] {
        let mut whole = [0; 16];
        whole[..2].copy_from_slice(&cdb);
        let outcome = send(&mut tenant, &Command::new(0, &whole));
        assert_eq!(sense(&outcome), ([5, 0x20, 0], None), "{cdb:02x?}");
    }
    // SEND DIAGNOSTIC with SELFTEST.
    send(&mut tenant, &Command::new(0, &[0x1d, 0x04, 0, 0, 0, 0]))
        .good()
        .unwrap();

    // EXTENDED COPY at the other unit, by the designator of each: from it and to it.
    let cscd = |tenant: &mut Tenant, lun: u16| {
        let inquiry = Command::new(lun, &[0x12, 1, 0x83, 0, 64, 0]).data_in(64);
        let page = send(tenant, &inquiry).good().unwrap();
        let mut cscd = vec![0xe4, 0, 0, 0];
        cscd.extend(&page[4..16]);
        cscd.resize(28, 0);
        cscd.extend([0, 0, 2, 0]);
        cscd
    };
    let cscds = [cscd(&mut tenant, 0), cscd(&mut tenant, 1)].concat();
    for (from, to) in [(0, 1), (1, 0)] {
        let mut list = vec![9, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0];
        list.extend(&cscds);
        list.extend([0x0a, 0, 0, 0x1c, 0, from, 0, to, 0, 0, 2, 0]);
        list.extend([0; 20]);
        let mut cdb = [0; 16];
        (cdb[0], cdb[13]) = (0x83, u8::try_from(list.len()).unwrap());
        let outcome = send(&mut tenant, &Command::new(1, &cdb).data_out(&list));
        let bytes = &outcome.response.sense;
        // COPY ABORTED, COPY TARGET DEVICE NOT REACHABLE.
        let told = [bytes[2] & 0x0f, bytes[12], bytes[13]];
        assert_eq!(told, [0x0a, 0x0d, 0x02], "{from} to {to}");
    }

    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    assert_eq!(send(&mut tenant, &read).good().unwrap(), [5; BLOCK]);
    assert_eq!(world.image(1, 0, BLOCK), [0; BLOCK]);
}
