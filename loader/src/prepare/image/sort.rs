//! Sorts tables in place, as Linux does. Records refer to addresses by distances from the record, so moving a record
//! changes these distances. Linux uses a heapsort, which is not stable, and one of the comparisons is not even
//! consistent: the same order among equal records requires the same sequence of comparisons.

use crate::elf::error::ObjectError;
use crate::prepare::error::PrepareError;
use modload_edit::{Addr, Code, EditOrigin, Engine, RecordTable, wide, write};

/// Sorts `order`, which contains indices, as Linux's `sort` does: bottom-up heapsort. `not_less(a, b)` returns whether
/// a goes behind b or is equal: the comparison's `>= 0`.
fn heapsort(order: &mut [usize], mut not_less: impl FnMut(usize, usize) -> bool) {
    let mut heap_from = order.len() / 2;
    let mut heap_to = order.len();
    if heap_from == 0 {
        return;
    }
    loop {
        if heap_from != 0 {
            heap_from -= 1;
        } else {
            heap_to -= 1;
            if heap_to == 0 {
                return;
            }
            order.swap(0, heap_to);
        }
        // Down to a leaf, by the larger child.
        let mut at = heap_from;
        while 2 * at + 2 < heap_to {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            at = if not_less(order[left], order[right]) { left } else { right };
        }
        if 2 * at + 2 == heap_to {
            at = 2 * at + 1;
        }
        // Back up to where the element belongs.
        while at != heap_from && not_less(order[heap_from], order[at]) {
            at = (at - 1) / 2;
        }
        let place = at;
        while at != heap_from {
            at = (at - 1) / 2;
            order.swap(at, place);
        }
    }
}

/// Returns the records of `SIZE` bytes.
fn records<const SIZE: usize>(table: &RecordTable, code: &impl Code) -> Vec<[u8; SIZE]> {
    (0..table.len(wide(SIZE))).map_while(|number| table.record::<SIZE>(code, number).map(|(_, bytes)| bytes)).collect()
}

fn rewrite<const SIZE: usize>(
    table: &RecordTable,
    records: impl IntoIterator<Item = [u8; SIZE]>,
    code: &mut impl Code,
) -> Result<(), PrepareError> {
    for (record, bytes) in (0..).zip(records) {
        let why = EditOrigin { engine: Engine::Sort, section: table.section, record };
        write(code, table.at + wide(SIZE) * u64::from(record), &bytes, why)
            .map_err(|error| PrepareError::Rewrite { section: "a sorted table", error: error.into() })?;
    }
    Ok(())
}

fn distance(record: &[u8], at: usize) -> i32 {
    let mut field = [0; 4];
    field.copy_from_slice(&record[at..at + 4]);
    i32::from_le_bytes(field)
}

/// The same distance from another place: `by` bytes further up in the table.
fn moved(record: &mut [u8], at: usize, by: i64) {
    let new = i64::from(distance(record, at)).wrapping_sub(by).to_le_bytes();
    record[at..at + 4].copy_from_slice(&new[..4]);
}

/// Returns the distance that a record moves from position `from` to position `to`.
fn way(from: usize, to: usize, size: usize) -> i64 {
    i64::try_from(to * size).unwrap_or(i64::MAX) - i64::try_from(from * size).unwrap_or(i64::MAX)
}

/// `__ex_table`: by the address of the instruction. Linux's `sort_extable`.
pub(super) fn ex_table(table: &RecordTable, code: &mut impl Code) -> Result<(), PrepareError> {
    const SIZE: usize = 12;
    let records = records::<SIZE>(table, code);
    let insn: Vec<Addr> = (0..).zip(&records).map(|(n, record)| place(table, n, SIZE, record)).collect();
    let mut order: Vec<usize> = (0..records.len()).collect();
    heapsort(&mut order, |a, b| insn[a] >= insn[b]);
    let sorted = order.iter().enumerate().map(|(to, &from)| {
        let mut record = records[from];
        moved(&mut record, 0, way(from, to, SIZE));
        moved(&mut record, 4, way(from, to, SIZE));
        record
    });
    rewrite(table, sorted.collect::<Vec<_>>(), code)
}

fn place(table: &RecordTable, number: u64, size: usize, record: &[u8]) -> Addr {
    (table.at + wide(size) * number).offset(distance(record, 0).into())
}

/// Sorts `.orc_unwind_ip` and `.orc_unwind` together by the address of the code. The comparison of Linux's
/// `unwind_module_init` decides equal addresses by the contents of the first record's row.
pub(super) fn orc(ip: &RecordTable, rows: &RecordTable, code: &mut impl Code) -> Result<(), PrepareError> {
    const IP: usize = 4;
    const ROW: usize = 6;
    let (ips, orcs) = (records::<IP>(ip, code), records::<ROW>(rows, code));
    if ips.len() != orcs.len() {
        return Err(ObjectError::BadRecord {
            section: modload_abi::section::ORC_UNWIND,
            record: orcs.len(),
            problem: "there is not one row for each place",
        }
        .into());
    }
    let places: Vec<Addr> = (0..).zip(&ips).map(|(n, record)| place(ip, n, IP, record)).collect();
    // Undefined stack pointer (low four bits of byte 4) and no end (bit 2 of byte 5): a gap between objects.
    let is_gap = |row: &[u8; ROW]| row[4] & 0xf == 0 && row[5] & 0b100 == 0;
    let mut order: Vec<usize> = (0..ips.len()).collect();
    heapsort(&mut order, |a, b| match places[a].cmp(&places[b]) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => !is_gap(&orcs[a]),
    });
    let sorted = order.iter().enumerate().map(|(to, &from)| {
        let mut record = ips[from];
        moved(&mut record, 0, way(from, to, IP));
        record
    });
    rewrite(ip, sorted.collect::<Vec<_>>(), code)?;
    rewrite(rows, order.iter().map(|&from| orcs[from]).collect::<Vec<_>>(), code)
}

/// `__mcount_loc`: addresses, ascending.
pub(super) fn addresses(table: &RecordTable, code: &mut impl Code) -> Result<(), PrepareError> {
    let mut records = records::<8>(table, code);
    records.sort_by_key(|bytes| u64::from_le_bytes(*bytes));
    rewrite(table, records, code)
}
