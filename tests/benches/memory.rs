//! What it costs to find a tenant's memory: an address, a request, and a whole new table.

use std::hint::black_box;
use std::os::fd::AsFd;
use std::sync::Arc;

use appliance::memory::{Held, Hint, Mapping, Segments, TenantMemory};
use criterion::{BenchmarkId, Criterion};
use spec::session::{MEMORY_SLOTS, MemoryEntry};

/// Bytes of a range; as many follow that are in none.
const RANGE: u64 = 0x1000;

fn mapping() -> Arc<Mapping> {
    let len = RANGE * MEMORY_SLOTS as u64;
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(len).expect("a longer file");
    let len = usize::try_from(len).expect("a few MiB");
    Arc::new(Mapping::new(file.as_fd(), 0, len, None).expect("a mapping"))
}

fn table(ranges: u64) -> Vec<MemoryEntry> {
    (0..ranges)
        .map(|range| MemoryEntry {
            guest_address: 2 * RANGE * range,
            len: RANGE,
            bar_offset: RANGE * (ranges - 1 - range),
        })
        .collect()
}

/// A guest address to an offset in the mapping: found where the last one was, and by a search.
fn translate(criterion: &mut Criterion) {
    let mapping = mapping();
    let mut group = criterion.benchmark_group("translate");
    for ranges in [1, 8, 512] {
        let memory = TenantMemory::new(Arc::clone(&mapping), table(ranges)).expect("a table");
        let mut hint = Hint::default();
        let find = |hint: &mut Hint, address| memory.run(hint, black_box(address), 512);
        let last = 2 * RANGE * (ranges - 1);
        group.bench_function(BenchmarkId::new("hit", ranges), |bencher| {
            bencher.iter(|| find(&mut hint, last));
        });
        if ranges == 1 {
            continue;
        }
        // Every range in an order that a predictor does not learn at once.
        let mut range = 0;
        group.bench_function(BenchmarkId::new("miss", ranges), |bencher| {
            bencher.iter(|| {
                range = (range * 5 + 1) % ranges;
                find(&mut hint, 2 * RANGE * range)
            });
        });
    }
    group.finish();
}

/// A request of the common shape, taken apart as a command is: header, response, data.
fn request(criterion: &mut Criterion) {
    let mapping = mapping();
    let held = Held::new(Arc::clone(&mapping));
    let memory = TenantMemory::new(mapping, table(8)).expect("a table");
    let mut hint = Hint::default();
    criterion.bench_function("request", |bencher| {
        bencher.iter(|| {
            let mut readable = Segments::within(held.clone());
            let mut writable = Segments::within(held.clone());
            let mut find = |buffer: &mut Segments, address, len| {
                let found = memory.append(&mut hint, buffer, black_box(address), len);
                found.expect("in the table");
            };
            find(&mut readable, 0, 51);
            find(&mut writable, 0x100, 108);
            find(&mut writable, 2 * RANGE, 4096);
            let data_out = readable.split_off(51);
            let data_in = writable.split_off(108);
            (readable, data_out, writable, data_in)
        });
    });
}

/// A new table of as many entries as there can be.
fn swap(criterion: &mut Criterion) {
    let mapping = mapping();
    let table = table(MEMORY_SLOTS as u64);
    criterion.bench_function("swap/512", |bencher| {
        bencher.iter(|| TenantMemory::new(Arc::clone(&mapping), table.clone()).expect("a table"));
    });
}

criterion::criterion_group!(benches, translate, request, swap);
criterion::criterion_main!(benches);
