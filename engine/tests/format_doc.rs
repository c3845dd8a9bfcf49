//! `FORMAT.md` and the structures say the same: each offset table is a structure and each structure
//! has its table, row by row.

use ringpost_engine::format::{LAYOUTS, dedupe, frame, info, log_file, parts, superblock};

const DOC: &str = include_str!("../FORMAT.md");

/// A table of the document: title, size, rows of offset, length, field.
struct Table {
    title: String,
    size: usize,
    rows: Vec<(usize, usize, String)>,
}

/// Every heading of the form `### <title>, <n> bytes` with the rows up to the next heading.
fn tables() -> Vec<Table> {
    let mut tables = Vec::new();
    let mut open: Option<Table> = None;
    for line in DOC.lines() {
        if line.starts_with('#') {
            tables.extend(open.take());
            let heading = line.trim_start_matches('#').trim();
            open = heading
                .strip_suffix(" bytes")
                .and_then(|heading| heading.rsplit_once(", "))
                .and_then(|(title, size)| {
                    Some(Table {
                        title: title.to_owned(),
                        size: size.parse().ok()?,
                        rows: Vec::new(),
                    })
                });
        } else if line.starts_with("| offset |") {
            assert!(
                open.is_some(),
                "an offset table without a structure: {line}"
            );
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let (Some(table), [_, offset, len, field, ..]) = (&mut open, &cells[..])
            && let (Ok(offset), Ok(len)) = (offset.parse(), len.parse())
        {
            let field = field.trim_matches('`').to_owned();
            table.rows.push((offset, len, field));
        }
    }
    tables.extend(open.take());
    tables
}

#[test]
fn each_structure_is_its_table() {
    let tables = tables();
    for layout in LAYOUTS {
        let table = tables
            .iter()
            .find(|table| table.title == layout.title)
            .unwrap_or_else(|| panic!("FORMAT.md has no table \"{}\"", layout.title));
        let rows: Vec<_> = layout
            .fields
            .iter()
            .map(|field| (field.offset, field.size, field.name.to_owned()))
            .collect();
        assert_eq!(table.rows, rows, "{}", layout.title);
        assert_eq!(table.size, layout.size, "{}", layout.title);
    }
    for table in &tables {
        let known = LAYOUTS.iter().any(|layout| layout.title == table.title);
        assert!(known, "the code has no structure \"{}\"", table.title);
    }
    assert_eq!(tables.len(), LAYOUTS.len(), "a table stands there twice");
}

/// Field follows field: no byte is without a name.
#[test]
fn tables_have_no_gaps() {
    for table in tables() {
        let mut end = 0;
        for (offset, len, field) in &table.rows {
            assert_eq!(*offset, end, "{}: {field}", table.title);
            end = offset + len;
        }
        assert_eq!(end, table.size, "{}", table.title);
    }
}

#[test]
fn each_magic_value_is_named() {
    let magics = [
        &superblock::MAGIC[..],
        &log_file::MAGIC[..],
        &frame::MAGIC[..],
        &info::MAGIC[..],
        &parts::MAGIC[..],
        &dedupe::MAGIC[..],
    ];
    for magic in magics {
        let magic = std::str::from_utf8(magic).unwrap();
        assert!(DOC.contains(&format!("`{magic}`")), "{magic}");
    }
}
