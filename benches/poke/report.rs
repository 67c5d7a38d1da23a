//! Prints the table and checks the targets.

/// The activity of other threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Load {
    Idle,
    /// One thread executes the sites.
    Busy,
}

/// The median time of a contender per site.
pub(crate) struct Row {
    pub(crate) contender: &'static str,
    pub(crate) stride: u64,
    pub(crate) count: usize,
    pub(crate) load: Load,
    pub(crate) ns: f64,
}

pub(crate) fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Prints all results. Returns whether every target is met.
pub(crate) fn print(rows: &[Row]) -> bool {
    println!("Medians, ns per site; sites 64 bytes apart, and one a page.\n");
    println!("{:<26} {:>6} {:>8} {:>12} {:>12}", "", "apart", "sites", "idle", "busy");
    for row in rows.iter().filter(|row| row.load == Load::Idle) {
        let busy = find(rows, row.contender, row.stride, row.count, Load::Busy);
        let busy = busy.map_or_else(|| "-".into(), |ns| format!("{ns:.1}"));
        println!("{:<26} {:>6} {:>8} {:>12.1} {:>12}", row.contender, row.stride, row.count, row.ns, busy);
    }
    println!();
    let idle = |contender, count| find(rows, contender, 64, count, Load::Idle).unwrap_or(f64::INFINITY);
    let targets = [
        ("50,000 sites, idle, ns each", idle("modload, trusted", 50_000), 100.0),
        ("100 sites, of one by one", idle("modload, trusted", 100) / idle("modload, one by one", 100), 0.1),
        (
            "one site, ns beyond three writes and three syncs",
            idle("modload, trusted", 1) - idle("C, 3 writes and 3 syncs", 1),
            1000.0,
        ),
    ];
    let mut met = true;
    for (what, measured, at_most) in targets {
        let verdict = if measured <= at_most { "met" } else { "MISSED" };
        println!("{what}: {measured:.2}, wanted at most {at_most}: {verdict}");
        met &= measured <= at_most;
    }
    met
}

fn find(rows: &[Row], contender: &str, stride: u64, count: usize, load: Load) -> Option<f64> {
    let same = |row: &&Row| (row.contender, row.stride, row.count, row.load) == (contender, stride, count, load);
    rows.iter().find(same).map(|row| row.ns)
}
