//! The flame graph: who called whom, and where the time went.

use core::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path as FilePath;

use inferno::flamegraph::{Options, from_lines};

use crate::paths::Path;

/// Draws the paths that a thread's calls came by, of all threads, into an SVG file: a box's
/// width is the time in its function and in what that called.
pub fn draw(
    file: &FilePath,
    threads: &[Vec<Path>],
    names: &[String],
    nanoseconds_of_tick: f64,
) -> Result<(), Box<dyn Error>> {
    let mut lines = Vec::new();
    for paths in threads {
        for path in paths.iter().skip(1).filter(|path| path.own_ticks > 0) {
            let own = (path.own_ticks as f64 * nanoseconds_of_tick).round();
            lines.push(format!("{} {own}", stack(paths, path, names)));
        }
    }
    let mut options = Options::default();
    options.title = "Time in each function, above the one that called it".to_owned();
    options.count_name = "ns".to_owned();
    let cannot = |error: &dyn Error| format!("{} cannot be written: {error}", file.display());
    let create = File::create(file).map_err(|error| cannot(&error))?;
    let mut svg = BufWriter::new(create);
    from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)
        .map_err(|error| cannot(&error))?;
    Ok(svg.flush().map_err(|error| cannot(&error))?)
}

/// The functions from the outermost to this one, as inferno reads them: with `;` between.
fn stack(paths: &[Path], path: &Path, names: &[String]) -> String {
    let above = |path: &&Path| paths.get(path.above).filter(|_| path.above != 0);
    let mut functions: Vec<&str> = core::iter::successors(Some(path), above)
        .map(|path| names.get(path.function).map_or("?", String::as_str))
        .collect();
    functions.reverse();
    functions.join(";")
}
