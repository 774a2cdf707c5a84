//! READ CAPACITY and READ DEFECT DATA.

use super::*;

const CAPACITY_16: [u8; 16] = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];

#[test]
fn capacity_is_the_last_block() {
    let small = target(GEOMETRY);
    let capacity_10 = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let capacity_16 = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
    assert_eq!(data(&small, &capacity_10), [0, 0, 0x0f, 0xff, 0, 0, 2, 0]);
    let long = data(&small, &capacity_16);
    assert_eq!(
        long[..16],
        [0, 0, 0, 0, 0, 0, 0x0f, 0xff, 0, 0, 2, 0, 0, 3, 0, 0]
    );
    assert_eq!(long.len(), 32);

    let large = target(Geometry {
        blocks: 0x1_0000_0001,
        block_size: 4096,
        ..GEOMETRY
    });
    assert_eq!(
        data(&large, &capacity_10),
        [0xff, 0xff, 0xff, 0xff, 0, 0, 0x10, 0]
    );
    assert_eq!(
        data(&large, &capacity_16)[..14],
        [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0]
    );
}

#[test]
fn a_thin_unit_says_that_it_is_managed_and_reads_as_zeros() {
    let thin = data(&target_with(GEOMETRY, ABLE), &CAPACITY_16);
    // P_TYPE, PROT_EN; exponents; LBPME, LBPRZ, lowest aligned LBA.
    assert_eq!(thin[12..16], [0, 3, 0xc0, 0]);
    assert_eq!(thin[16..], [0; 16]);
    assert_eq!(data(&target(GEOMETRY), &CAPACITY_16)[12..16], [0, 3, 0, 0]);
}

#[test]
fn capacity_is_cut_at_the_allocation_length() {
    let target = target(GEOMETRY);
    for allocation in 0..32 {
        let mut cdb = CAPACITY_16;
        cdb[13] = allocation;
        assert_eq!(data(&target, &cdb).len(), usize::from(allocation));
    }
}

#[test]
fn capacity_of_blocks_behind_one_is_asked_for_with_pmi_alone() {
    let target = target(GEOMETRY);
    let without = [0x25, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    assert_eq!(refused(&target, &without, &[]), invalid_field(2, 7));
    assert_eq!(data(&target, &[0x25, 0, 0, 0, 0, 1, 0, 0, 1, 0]).len(), 8);
    let mut long = CAPACITY_16;
    long[9] = 1;
    assert_eq!(refused(&target, &long, &[]), invalid_field(2, 7));
}

#[test]
fn defect_lists_are_empty_in_every_format() {
    let target = target(GEOMETRY);
    for format in 0..=5 {
        let wanted = 0x18 | format;
        let short = data(&target, &[0x37, 0, wanted, 0, 0, 0, 0, 0, 32, 0]);
        assert_eq!(short, [0, wanted, 0, 0]);
        let long = data(&target, &[0xb7, wanted, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]);
        assert_eq!(long, [0, wanted, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(
        data(&target, &[0x37, 0, 0, 0, 0, 0, 0, 0, 32, 0]),
        [0, 0, 0, 0]
    );
    assert_eq!(
        data(&target, &[0xb7, 0x08, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]),
        [0, 8]
    );
}

#[test]
fn defect_list_formats_that_are_not_defined_are_invalid_fields() {
    let target = target(GEOMETRY);
    for format in [6, 7] {
        let short = [0x37, 0, format, 0, 0, 0, 0, 0, 32, 0];
        assert_eq!(refused(&target, &short, &[]), invalid_field(2, 2));
        let long = [0xb7, format, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
        assert_eq!(refused(&target, &long, &[]), invalid_field(1, 2));
    }
}
