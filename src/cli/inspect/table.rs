//! The report as text.

use super::Report;
use super::component::Component;
use std::collections::BTreeMap;
use std::fmt::Write;

/// How many names of a list are shown.
const SHOWN: usize = 5;

pub(super) fn table(report: &Report) -> String {
    let mut text = String::new();
    let version =
        report.diffusers_version.as_ref().map_or_else(String::new, |version| format!(", diffusers {version}"));
    let class = if report.class.is_empty() { "weights" } else { &report.class };
    // Writing to a text cannot fail.
    let _ = writeln!(text, "{class}{version}: {}\n", report.path.display());
    let rows: Vec<_> = report.components.iter().map(row).collect();
    let heads = ["component", "class", "parameters", "size", "dtypes", "files"].map(String::from);
    let total = [
        "all".into(),
        String::new(),
        grouped(report.parameters),
        size(report.bytes),
        dtypes(&report.dtypes),
        String::new(),
    ];
    let lines: Vec<_> =
        std::iter::once(heads).chain(rows).chain((report.components.len() > 1).then_some(total)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for line in &lines {
        let mut out = String::new();
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let _ = match column {
                2 | 3 => write!(out, "{cell:>width$}  "),
                _ => write!(out, "{cell:<width$}  "),
            };
        }
        let _ = writeln!(text, "{}", out.trim_end());
    }
    for component in &report.components {
        faults(component, &mut text);
    }
    list(&mut text, "not of the pipeline", &report.unexpected_files);
    text
}

fn row(component: &Component) -> [String; 6] {
    let has_weights = component.bytes > 0;
    [
        component.name.clone(),
        component.class.clone(),
        if has_weights { grouped(component.parameters) } else { String::new() },
        if has_weights { size(component.bytes) } else { String::new() },
        dtypes(&component.dtypes),
        shortened(&component.files),
    ]
}

fn faults(component: &Component, text: &mut String) {
    let lists = [
        ("missing files", &component.missing_files),
        ("files that are not read", &component.unexpected_files),
        ("missing weights", &component.missing_weights),
        ("weights of another shape", &component.wrong_shapes),
        ("weights that the model does not use", &component.unexpected_weights),
        ("broken", &component.problems),
    ];
    for (what, items) in lists {
        let head = if component.name.is_empty() { what.to_string() } else { format!("{}: {what}", component.name) };
        list(text, &head, items);
    }
}

fn list(text: &mut String, what: &str, items: &[String]) {
    if !items.is_empty() {
        let _ = writeln!(text, "\n{what}: {}", shortened(items));
    }
}

fn shortened(items: &[String]) -> String {
    let shown = items.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match items.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn dtypes(dtypes: &BTreeMap<String, u64>) -> String {
    match dtypes.len() {
        1 => dtypes.keys().cloned().collect(),
        _ => dtypes.iter().map(|(dtype, bytes)| format!("{dtype} {}", size(*bytes))).collect::<Vec<_>>().join(", "),
    }
}

/// `1,234,567`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// In the largest unit of thousands that leaves a whole number before the point.
fn size(bytes: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit);
    unit.map_or_else(|| format!("{bytes} B"), |(unit, name)| format!("{:.1} {name}", bytes as f64 / unit as f64))
}
