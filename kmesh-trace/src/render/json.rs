//! `-o json`: one object a line, as [`crate::wire`] has it.

use super::Render;
use super::sanitize::Harmless;
use crate::record::{Lost, Record, RunInfo, Summary};
use crate::wire::{ConnLine, LostLine, SummaryLine};
use serde::Serialize;
use serde_json::Serializer;
use std::io::{self, Write};

/// Writes JSON lines.
#[derive(Debug)]
pub struct Json {
    info: RunInfo,
    /// The line in the making, kept for its memory: a line is handed on whole or not at all.
    line: Vec<u8>,
}

impl Json {
    /// For a run of which `info` is true.
    pub fn new(info: &RunInfo) -> Self {
        Self { info: info.clone(), line: Vec::new() }
    }
}

impl Render for Json {
    fn record(&mut self, record: &Record, out: &mut dyn Write) -> io::Result<()> {
        write_line(&mut self.line, &ConnLine::new(record, &self.info), out)
    }

    fn lost(&mut self, lost: &Lost, out: &mut dyn Write) -> io::Result<()> {
        write_line(&mut self.line, &LostLine::from(lost), out)
    }

    fn summary(&mut self, summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
        write_line(&mut self.line, &SummaryLine::new(summary, &self.info), out)
    }
}

fn write_line(line: &mut Vec<u8>, value: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    line.clear();
    value.serialize(&mut Serializer::with_formatter(&mut *line, Harmless))?;
    line.push(b'\n');
    out.write_all(line)
}
