//! Random operations against an array of blocks with their tags.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// First block of those that are used, on both sides of the end of a group, and how many.
const FIRST: u64 = 250;
const BLOCKS: usize = 16;

/// The guard, bit by bit (SBC-4 §4.21.4: 18BB7h).
fn guard(data: &[u8]) -> [u8; 2] {
    let mut rest = 0_u16;
    for byte in data {
        rest ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            let carry = rest & 0x8000 != 0;
            rest <<= 1;
            if carry {
                rest ^= 0x8bb7;
            }
        }
    }
    rest.to_be_bytes()
}

/// What a disk should hold.
#[derive(Debug, Clone)]
struct Model {
    protection: Protection,
    blocks: Vec<(Vec<u8>, [u8; 8])>,
}

/// A tag that is sent.
#[derive(Debug, Clone, Copy)]
enum Sent {
    Good,
    BadGuard,
    BadReference,
    /// With an application tag of ones.
    NotToCheck,
    Ones,
}

#[derive(Debug, Clone)]
struct Action {
    what: usize,
    first: usize,
    count: usize,
    /// Byte of the data.
    fill: u8,
    /// Tags go with it; the first blocks have these, the others good ones.
    tags: Option<Vec<Sent>>,
    checks: Checks,
    compares: Checks,
}

fn checks() -> impl Strategy<Value = Checks> {
    any::<(bool, bool)>().prop_map(|(guard, reference)| Checks { guard, reference })
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        6 => Just(Sent::Good),
        1 => Just(Sent::BadGuard),
        1 => Just(Sent::BadReference),
        1 => Just(Sent::NotToCheck),
        1 => Just(Sent::Ones),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let tags = prop::option::of(vec(sent(), 0..4));
    let fill = prop_oneof![Just(0_u8), 1..4_u8];
    let blocks = (0..BLOCKS, 1..6_usize);
    (0..13_usize, blocks, fill, tags, checks(), checks()).prop_map(
        |(what, (first, count), fill, tags, checks, compares)| Action {
            what,
            first,
            count: count.min(BLOCKS - first),
            fill,
            tags,
            checks,
            compares,
        },
    )
}

type Ending = Result<(), DiskError>;

impl Model {
    fn is_unchecked(&self, tag: [u8; 8]) -> bool {
        let all = self.protection == Protection::Type1 || tag[4..] == [0xff; 4];
        tag[2..4] == [0xff; 2] && all
    }

    fn made(&self, data: &[u8], index: usize) -> [u8; 8] {
        let [a, b] = guard(data);
        let lba = u32::try_from(FIRST).unwrap() + u32::try_from(index).unwrap();
        let [e, f, g, h] = match self.protection {
            Protection::Type1 => lba.to_be_bytes(),
            Protection::Type3 => [0xff; 4],
        };
        [a, b, 0, 0, e, f, g, h]
    }

    fn sent(&self, kind: Sent, data: &[u8], index: usize) -> [u8; 8] {
        let mut tag = self.made(data, index);
        (tag[2], tag[3]) = (0x12, 0x34);
        match kind {
            Sent::Good => {}
            Sent::BadGuard => tag[0] ^= 0x40,
            Sent::BadReference => tag[7] ^= 0x40,
            Sent::NotToCheck => (tag[2], tag[3]) = (0xff, 0xff),
            Sent::Ones => tag = [0xff; 8],
        }
        tag
    }

    /// Checks a block of data with its tag; `number` is which it is in the operation.
    fn check(
        &self,
        (data, tag): (&[u8], [u8; 8]),
        (index, number): (usize, usize),
        checks: Checks,
    ) -> Ending {
        let good = self.made(data, index);
        let is_of_lba = self.protection == Protection::Type3 || tag[4..] == good[4..];
        match () {
            () if checks.guard && tag[..2] != good[..2] => Err(wrong(number, BadTag::Guard)),
            () if checks.reference && !is_of_lba => Err(wrong(number, BadTag::Reference)),
            () => Ok(()),
        }
    }

    /// Checks what is there.
    fn check_there(&self, action: &Action, checks: Checks) -> Ending {
        for number in 0..action.count {
            let index = action.first + number;
            let (data, tag) = &self.blocks[index];
            if !self.is_unchecked(*tag) {
                self.check((data, *tag), (index, number), checks)?;
            }
        }
        Ok(())
    }

    fn there(&self, action: &Action) -> Vec<u8> {
        let blocks = &self.blocks[action.first..][..action.count];
        blocks.iter().flat_map(|(data, _)| data.clone()).collect()
    }
}

impl Action {
    /// The tags of these blocks, of which each is checked; `same` if only that of the first is sent.
    fn tags(&self, model: &Model, data: &[u8], same: bool) -> Option<(Vec<[u8; 8]>, Ending)> {
        let kinds = self.tags.as_ref()?;
        let kind = |number: usize| *kinds.get(number).unwrap_or(&Sent::Good);
        let block = |number: usize| &data[number * BLOCK..][..BLOCK];
        let first = model.sent(kind(0), block(0), self.first);
        let tag = |number: usize| {
            if !same {
                return model.sent(kind(number), block(number), self.first + number);
            }
            let mut next = first;
            if first != [0xff; 8] && model.protection == Protection::Type1 {
                let [.., e, f, g, h] = first;
                let reference = u32::from_be_bytes([e, f, g, h]);
                let number = u32::try_from(number).unwrap();
                next[4..].copy_from_slice(&reference.wrapping_add(number).to_be_bytes());
            }
            next
        };
        let tags: Vec<_> = (0..self.count).map(tag).collect();
        let checked = (0..self.count).try_for_each(|number| {
            let place = (self.first + number, number);
            model.check((block(number), tags[number]), place, self.checks)
        });
        Some((tags, checked))
    }

    fn put(&self, model: &mut Model, data: &[u8], tags: Option<&[[u8; 8]]>) {
        for number in 0..self.count {
            let (index, block) = (self.first + number, &data[number * BLOCK..][..BLOCK]);
            let tag = tags.map_or_else(|| model.made(block, index), |tags| tags[number]);
            model.blocks[index] = (block.to_vec(), tag);
        }
    }

    fn erase(&self, model: &mut Model) {
        self.put(
            model,
            &vec![0; self.count * BLOCK],
            Some(&vec![[0xff; 8]; self.count]),
        );
    }

    /// Does it to both; how it ends on the disk, and how it should.
    fn apply(&self, bench: &mut Bench, model: &mut Model) -> (Ending, Ending) {
        let (lba, len) = (FIRST + self.first as u64, self.count * BLOCK);
        let (offset, long) = (at(lba), len as u64);
        let data = vec![self.fill; len];
        let fua = false;
        let mut run = |op, prefix: &[[u8; 8]], data: &[u8], unchecked| {
            let buffer = [prefix.concat(), data.to_vec()].concat();
            let op = Protected {
                checks: self.checks,
                compares: self.compares,
                prefix: prefix.len() * 8,
                unchecked,
                ..Protected::new(op)
            };
            bench.carry_out(op, &buffer)
        };
        let same = matches!(self.what, 3 | 5);
        let (tags, checked) = match self.tags(model, &data, same) {
            Some((tags, checked)) => (Some(tags), checked),
            None => (None, Ok(())),
        };
        let prefix = tags.as_deref().unwrap_or_default();
        let one = &prefix[..prefix.len().min(1)];
        match self.what {
            0 => {
                let room = vec![[0; 8]; self.count];
                let read = run(read(lba, len), &room, &data, false);
                let expected = model.check_there(self, self.checks);
                let told = read.map(|told| {
                    let blocks = &model.blocks[self.first..][..self.count];
                    let tags: Vec<_> = blocks.iter().map(|(_, tag)| *tag).collect();
                    assert_eq!(told, [tags.concat(), model.there(self)].concat());
                });
                (told, expected)
            }
            1 | 2 => {
                let op = if self.what == 1 {
                    write(lba, len)
                } else {
                    Op::WriteVerify { offset, len }
                };
                let told = run(op, prefix, &data, false).map(drop);
                if checked.is_ok() {
                    self.put(model, &data, tags.as_deref());
                }
                (told, checked)
            }
            3 => {
                let op = Op::WriteSame {
                    offset,
                    len: long,
                    fua,
                };
                let told = run(op, one, &data[..BLOCK], false).map(drop);
                // The tag that is sent is that of the first block, and the others follow it.
                if checked.is_ok() {
                    self.put(model, &data, tags.as_deref());
                }
                (told, checked)
            }
            4 | 5 => {
                let op = Op::Compare {
                    offset,
                    len: long,
                    same,
                };
                let told = if same {
                    run(op, one, &data[..BLOCK], false)
                } else {
                    run(op, prefix, &data, false)
                };
                (told.map(drop), self.compare(model, &data, tags, checked))
            }
            6 => {
                // What is there, so that it matches, or not.
                let mut compare = model.there(self);
                if self.fill == 3 {
                    compare[0] ^= 1;
                }
                let op = Op::CompareAndWrite { offset, len, fua };
                // The tags of the compare instance are not looked at.
                let unused = vec![[0x55; 8]; prefix.len()];
                let both = [compare.clone(), data.clone()].concat();
                let told = run(op, &[&unused, prefix].concat(), &both, false).map(drop);
                let expected = model.check_there(self, Checks::ALL).and(if self.fill == 3 {
                    Err(DiskError::Miscompare { at: 0 })
                } else {
                    checked
                });
                if expected.is_ok() {
                    self.put(model, &data, tags.as_deref());
                }
                (told, expected)
            }
            7 => {
                let op = Op::Or { offset, len, fua };
                let told = run(op, prefix, &data, false).map(drop);
                let expected = checked.and_then(|()| model.check_there(self, self.checks));
                if expected.is_ok() {
                    let mut ored = model.there(self);
                    ored.iter_mut().for_each(|byte| *byte |= self.fill);
                    self.put(model, &ored, None);
                }
                (told, expected)
            }
            8 | 9 => {
                let unmap = self.what == 9;
                let op = Op::Zero {
                    offset,
                    len: long,
                    unmap,
                    fua,
                };
                let unchecked = self.fill == 0;
                let told = run(op, &[], &[], unchecked).map(drop);
                if unmap || unchecked {
                    self.erase(model);
                } else {
                    self.put(model, &vec![0; len], None);
                }
                (told, Ok(()))
            }
            10 => {
                let ranges = [(offset, long)].into();
                let told = run(Op::Unmap { ranges, fua }, &[], &[], false).map(drop);
                self.erase(model);
                (told, Ok(()))
            }
            11 => {
                let op = Op::Check { offset, len: long };
                let told = run(op, &[], &[], false).map(drop);
                (told, model.check_there(self, self.checks))
            }
            _ => {
                // A disk that changes what it holds.
                bench.damage(lba);
                let byte = &mut model.blocks[self.first].0[100];
                *byte = !*byte;
                (Ok(()), Ok(()))
            }
        }
    }

    /// How a comparison should end.
    fn compare(
        &self,
        model: &Model,
        data: &[u8],
        tags: Option<Vec<[u8; 8]>>,
        checked: Ending,
    ) -> Ending {
        let there = model.there(self);
        let differs = there.iter().zip(data).position(|(a, b)| a != b);
        let miscompare = differs.map_or(Ok(()), |at| Err(DiskError::Miscompare { at: at as u64 }));
        let Some(tags) = tags else {
            return model.check_there(self, self.checks).and(miscompare);
        };
        checked.and(miscompare)?;
        for (number, sent) in tags.into_iter().enumerate() {
            let (_, there) = model.blocks[self.first + number];
            if model.is_unchecked(there) || model.is_unchecked(sent) {
                continue;
            }
            let is_type_1 = model.protection == Protection::Type1;
            let other_reference = is_type_1 && there[4..] != sent[4..];
            let bad = match () {
                () if self.compares.guard && there[..2] != sent[..2] => BadTag::Guard,
                () if self.compares.reference && other_reference => BadTag::Reference,
                () => continue,
            };
            let at = (number * BLOCK) as u64;
            return Err(DiskError::TagMiscompare { at, bad });
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn operations_do_to_a_disk_what_they_do_to_an_array_of_blocks_with_tags(
        type_1: bool,
        actions in vec(action(), 1..24),
    ) {
        let protection = if type_1 { Protection::Type1 } else { Protection::Type3 };
        let mut bench = Bench::new(protection);
        let mut model = Model {
            protection,
            blocks: vec![(vec![0; BLOCK], [0xff; 8]); BLOCKS],
        };
        for action in &actions {
            let (told, expected) = action.apply(&mut bench, &mut model);
            prop_assert_eq!(told, expected, "{:?}", action);
            let room = BLOCKS * 8;
            let all = bench.run(
                read(FIRST, BLOCKS * BLOCK),
                Checks::default(),
                room,
                &vec![0; room + BLOCKS * BLOCK],
            );
            let all = all.unwrap();
            for (number, (data, tag)) in model.blocks.iter().enumerate() {
                prop_assert_eq!(&all[number * 8..][..8], tag, "tag {} {:?}", number, action);
                let there = &all[room + number * BLOCK..][..BLOCK];
                prop_assert!(there == data.as_slice(), "block {} {:?}", number, action);
            }
        }
    }
}
