//! The flame graph: who called whom, and where the time went.

use core::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use inferno::flamegraph::{Options, from_lines};

use crate::paths::Path;

/// The file that the picture goes to.
pub struct Picture {
    pub path: PathBuf,
    file: File,
}

impl Picture {
    /// Makes the file: if that is impossible, it is better known before the work than after it.
    pub fn create(path: PathBuf) -> Result<Self, String> {
        let file = File::create(&path)
            .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
        Ok(Self { path, file })
    }

    /// Draws the paths that calls came by, of all threads: a box's width is the time in its
    /// function and in what that called.
    pub fn draw(
        &self,
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
        let mut svg = BufWriter::new(&self.file);
        from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)?;
        Ok(svg.flush()?)
    }
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
