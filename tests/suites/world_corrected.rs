//! What tests of iscsi-test-cu would show, were it not for a mistake of theirs or a limit of the
//! tenant's kernel: `disputed` in `conformance/expected.toml`.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use tests::world::{BLOCK, Command, Failure, Initiator, Lun, MIB, Shape, Tenant, World};

/// ILLEGAL REQUEST, INVALID FIELD IN CDB.
const INVALID_FIELD: Failure = Failure::Sense {
    key: 5,
    asc: 0x24,
    ascq: 0,
};

fn one_lun() -> (World, Tenant) {
    let world = World::new().lun(Lun::file(MIB)).start();
    let mut tenant = world.tenant();
    tenant.initiator().ready(0).unwrap();
    (world, tenant)
}

// --- ReportSupportedOpcodes.OneCommand: a CDB may have 32 bytes ------------------------------

/// REPORT SUPPORTED OPERATION CODES with these REPORTING OPTIONS (SPC-4 §6.35).
fn report(
    initiator: &mut Initiator,
    options: u8,
    opcode: u8,
    service_action: [u8; 2],
) -> Result<Vec<u8>, Failure> {
    let [high, low] = service_action;
    let cdb = [
        0xa3, 0x0c, options, opcode, high, low, 0, 0, 0xff, 0xff, 0, 0,
    ];
    initiator.run(&Command::new(0, &cdb).data_in(0xffff))
}

#[test]
fn every_command_that_is_listed_is_described_if_it_is_asked_for_as_it_is_listed() {
    let (_world, mut tenant) = one_lun();
    let initiator = tenant.initiator();
    let all = report(initiator, 0, 0, [0, 0]).unwrap();
    let len = u32::from_be_bytes(all[..4].try_into().unwrap()) as usize;
    let descriptors: Vec<_> = all[4..4 + len].chunks(8).collect();
    assert!(descriptors.iter().any(|descriptor| descriptor[0] == 0x7f));
    for descriptor in descriptors {
        let opcode = descriptor[0];
        let service_action = [descriptor[2], descriptor[3]];
        let has_actions = descriptor[5] & 1 == 1;
        let (right, wrong) = if has_actions { (2, 1) } else { (1, 2) };
        let refused = report(initiator, wrong, opcode, service_action);
        assert_eq!(refused, Err(INVALID_FIELD), "{descriptor:x?}");

        let one = report(initiator, right, opcode, service_action).unwrap();
        assert_eq!(one[..2], [0, 3], "supported: {descriptor:x?}");
        assert_eq!(one[2..4], descriptor[6..8], "CDB SIZE of {descriptor:x?}");
        assert_eq!(one[4], opcode);
        // A 32-byte CDB has its service action at another place (SPC-4 §4.2.4).
        let at = if opcode == 0x7f { 8 } else { 0 };
        if at != 0 {
            assert_eq!(one[4 + at..4 + at + 2], service_action);
            assert_eq!(one[2..4], [0, 32]);
        } else if has_actions {
            assert_eq!(one[5] & 0x1f, service_action[1]);
        }
    }
}

// --- WriteSame10.UnmapUntilEnd: only zeros are given back, since that is what is read then ----

#[test]
fn write_same_10_of_zeros_with_unmap_and_no_number_of_blocks_goes_on_to_the_end() {
    let (world, mut tenant) = one_lun();
    let all = usize::try_from(MIB).unwrap() / BLOCK;
    for blocks in [1, 2, 7, 8, 9, 255, 256] {
        let lba = all - blocks;
        let first = u32::try_from(lba).unwrap();
        for (block, unmap) in [(0, 0x08), (0xff, 0x08), (0, 0)] {
            // One block before them, which stays.
            let filled = vec![0xee; (blocks + 1) * BLOCK];
            tenant.initiator().write(0, first - 1, &filled).unwrap();
            let mut cdb = [0x41, unmap, 0, 0, 0, 0, 0, 0, 0, 0];
            cdb[2..6].copy_from_slice(&first.to_be_bytes());
            let same = Command::new(0, &cdb).data_out(&[block; BLOCK]);
            tenant.initiator().run(&same).unwrap();
            let start = (lba - 1) * BLOCK;
            let image = world.image(0, start as u64, filled.len());
            assert_eq!(image[..BLOCK], [0xee; BLOCK]);
            assert!(
                image[BLOCK..].iter().all(|&byte| byte == block),
                "{blocks} blocks of {block:#x}"
            );
        }
    }
}

// --- GetLBAStatus.UnmapSingle: the first descriptor is about the LBA that was asked for -------

/// GET LBA STATUS of the blocks from `lba` on: the LBA and the state of the first descriptor.
fn lba_status(initiator: &mut Initiator, lba: u8) -> (u64, u8) {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[9], cdb[13]) = (0x9e, 0x12, lba, 24);
    let data = initiator.run(&Command::new(0, &cdb).data_in(24)).unwrap();
    let told = u64::from_be_bytes(data[8..16].try_into().unwrap());
    (told, data[20])
}

/// UNMAP of one range.
fn unmap(initiator: &mut Initiator, lba: u8, blocks: u8) {
    let mut list = [0; 24];
    (list[1], list[3], list[15], list[19]) = (22, 16, lba, blocks);
    let unmap = Command::new(0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
    initiator.run(&unmap.data_out(&list)).unwrap();
}

/// Logical blocks of a physical one.
const PHYSICAL: u8 = 8;
const MAPPED: u8 = 0;
const DEALLOCATED: u8 = 1;

#[test]
fn physical_blocks_that_were_unmapped_are_deallocated_and_those_behind_them_mapped() {
    let (_world, mut tenant) = one_lun();
    let initiator = tenant.initiator();
    for blocks in (PHYSICAL..=240).step_by(PHYSICAL.into()) {
        initiator.write(0, 0, &[b'A'; 264 * BLOCK]).unwrap();
        unmap(initiator, 0, blocks);
        for lba in [0, 1, blocks - 1] {
            assert_eq!(lba_status(initiator, lba), (lba.into(), DEALLOCATED));
        }
        for lba in [blocks, blocks + 1] {
            assert_eq!(lba_status(initiator, lba), (lba.into(), MAPPED));
        }
    }
}

// --- WriteSame16.Unmap: more blocks than a tenant's kernel reads with one command -------------

#[test]
fn write_same_16_with_unmap_takes_a_number_of_blocks_of_more_than_two_bytes() {
    const BLOCKS: u32 = 0x1_0000;
    const PIECE: usize = 1 << 20;
    let len = BLOCKS as usize * BLOCK;
    let world = World::new().lun(Lun::file(33 * MIB)).start();
    let mut tenant = world.tenant_like(Shape {
        memory: vec![(0, 128 * MIB)],
        ..Shape::default()
    });
    let initiator = tenant.initiator();
    initiator.ready(0).unwrap();
    initiator.indirect = true;
    let cdb = |opcode, flags| {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (opcode, flags);
        cdb[10..14].copy_from_slice(&BLOCKS.to_be_bytes());
        cdb
    };
    let write = Command::new(0, &cdb(0x8a, 0)).data_out(&vec![0xff; len]);
    initiator.run(&write.pieces(PIECE)).unwrap();
    initiator.write(0, BLOCKS, &[0xff; BLOCK]).unwrap();

    let same = Command::new(0, &cdb(0x93, 0x08)).data_out(&[0; BLOCK]);
    initiator.run(&same).unwrap();

    let read = Command::new(0, &cdb(0x88, 0)).data_in(len);
    let data = initiator.run(&read.pieces(PIECE)).unwrap();
    assert!(data.iter().all(|&byte| byte == 0));
    assert_eq!(initiator.read(0, BLOCKS, 1).unwrap(), [0xff; BLOCK]);
}
