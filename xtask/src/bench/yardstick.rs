//! What a plain program needs for the same bytes. Each prints its times in microseconds as JSON.

use crate::Outcome;
use memmap2::MmapOptions;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;

/// A yardstick.
#[derive(clap::Subcommand)]
pub enum Yardstick {
    /// Fill memory, then write it to a file
    Write {
        /// Bytes
        size: usize,
        /// The file, made anew
        file: PathBuf,
    },
    /// Get populated memory and read a file into it
    PopulateRead {
        /// Bytes
        size: usize,
        /// The file
        file: PathBuf,
    },
    /// Make one system call again and again
    Calls {
        /// Which
        call: Call,
        /// How often
        count: u32,
    },
    /// Fill memory, say "ready" and hold it: the program that is checkpointed
    Hold {
        /// Bytes
        size: usize,
        /// Write to so many pages of a million each second, each time to others
        #[arg(long, default_value_t = 0)]
        dirty: usize,
    },
}

/// A call that programs make all the time.
#[derive(clap::ValueEnum, Clone, Copy)]
pub enum Call {
    /// getpid
    Getpid,
    /// read, of one byte
    Read,
    /// open, and close
    Open,
}

impl Yardstick {
    /// Runs it.
    ///
    /// # Errors
    /// Memory or file cannot be had, or the file is shorter than asked for.
    pub fn run(&self) -> Outcome {
        match self {
            Self::Write { size, file } => write(*size, file),
            Self::PopulateRead { size, file } => populate_read(*size, file),
            Self::Calls { call, count } => calls(*call, *count),
            Self::Hold { size, dirty } => hold(*size, *dirty),
        }
    }
}

fn write(size: usize, path: &Path) -> Outcome {
    let memory = filled(size)?;
    let begin = Instant::now();
    let mut file = File::create(path)?;
    file.write_all(&memory)?;
    let written = begin.elapsed();
    file.sync_all()?;
    let synced = begin.elapsed();
    println!("{{\"write_us\":{},\"total_us\":{}}}", written.as_micros(), synced.as_micros());
    Ok(())
}

fn populate_read(size: usize, path: &Path) -> Outcome {
    let mut file = File::open(path)?;
    let begin = Instant::now();
    let mut memory = MmapOptions::new().len(size).populate().map_anon()?;
    let populated = begin.elapsed();
    file.read_exact(&mut memory)?;
    println!("{{\"populate_us\":{},\"total_us\":{}}}", populated.as_micros(), begin.elapsed().as_micros());
    Ok(())
}

/// The best of ten tenths: whoever else runs makes calls slower, never faster.
fn calls(call: Call, count: u32) -> Outcome {
    let mut zero = File::open("/dev/zero")?;
    let mut one = || -> Outcome {
        match call {
            Call::Getpid => _ = std::hint::black_box(std::process::id()),
            Call::Read => zero.read_exact(&mut [0])?,
            Call::Open => drop(File::open("/dev/null")?),
        }
        Ok(())
    };
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let begin = Instant::now();
        for _ in 0..count / 10 {
            one()?;
        }
        best = best.min(begin.elapsed());
    }
    println!("{{\"total_us\":{}}}", (best * 10).as_micros());
    Ok(())
}

fn hold(size: usize, dirty: usize) -> Outcome {
    const STEP: Duration = Duration::from_millis(5);
    /// Each page has its turn, and none is beside the one before.
    const STRIDE: usize = 7919;
    let mut memory = filled(size)?;
    let pages = memory.len() / PAGE;
    let in_a_step = pages * dirty / 1_000_000 / 200;
    println!("ready");
    let mut page = 0;
    loop {
        thread::sleep(if in_a_step > 0 { STEP } else { Duration::from_secs(3600) });
        for _ in 0..in_a_step {
            page = (page + STRIDE) % pages;
            if let Some(byte) = memory.get_mut(page * PAGE + 8) {
                *byte = byte.wrapping_add(1);
            }
        }
        // Keeps the memory alive and the compiler from dropping it.
        std::hint::black_box(&memory);
    }
}

/// Memory in which no page is empty and no two are alike, so that neither is stored cheaply.
fn filled(size: usize) -> Outcome<memmap2::MmapMut> {
    let mut memory = MmapOptions::new().len(size).map_anon()?;
    for (number, page) in (1_u64..).zip(memory.chunks_mut(PAGE)) {
        page.fill(0xA5);
        if let Some(start) = page.first_chunk_mut() {
            *start = number.to_le_bytes();
        }
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_page_is_empty_and_none_is_like_another() -> Outcome {
        let memory = filled(3 * PAGE)?;
        let pages: Vec<&[u8]> = memory.chunks(PAGE).collect();
        assert!(pages.iter().all(|page| page.iter().any(|byte| *byte != 0)));
        assert!(pages[0] != pages[1] && pages[1] != pages[2] && pages[0] != pages[2]);
        Ok(())
    }

    #[test]
    fn what_is_written_can_be_read_and_no_more() -> Outcome {
        let path = std::env::temp_dir().join(format!("yendor-yardstick-{}", std::process::id()));
        let (written, read, too_much) =
            (write(2 * PAGE, &path), populate_read(2 * PAGE, &path), populate_read(3 * PAGE, &path));
        std::fs::remove_file(&path)?;
        assert!(written.is_ok() && read.is_ok() && too_much.is_err());
        Ok(())
    }
}
