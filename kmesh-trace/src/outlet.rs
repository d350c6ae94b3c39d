//! What a run's settings make of its records: lines, blocks, or a screen that a person looks at.

use anyhow::{Context, Result};

use crate::config::{Config, RollupConfig, parse_prompt_filter};
use crate::note::NamesFrom;
use crate::record::RunInfo;
use crate::render::table::Feed;
use crate::render::table::view::Begin;
use crate::render::{Render, renderer, term};

/// Where records go.
pub struct Outlet {
    /// Makes output of them.
    pub render: Box<dyn Render + Send>,
    /// The screen that it is, if it is one. While it is there nothing else may be written to the terminal.
    pub screen: Option<term::Handle>,
}

/// Opens it. `quit` is called when a person at the screen wants an end.
pub fn open(config: &Config, info: &RunInfo, names: &NamesFrom, quit: impl Fn() + Send + 'static) -> Result<Outlet> {
    let Some(rolled) = on_terminal(config) else {
        return Ok(Outlet {
            render: renderer(config.output, config.rollup.as_ref(), config.color, info, names),
            screen: None,
        });
    };
    let begin = Begin {
        by: rolled.by.clone(),
        sort: rolled.sort,
        top: rolled.top,
        color: config.color,
        parse: parse_prompt_filter,
    };
    let (screen, asks, handle) = term::start(begin, quit).context("cannot use the terminal")?;
    Ok(Outlet {
        render: Box::new(Feed::new(rolled.settings, info, names, asks, screen)),
        screen: Some(handle),
    })
}

/// The table that a person looks at, if one is wanted.
fn on_terminal(config: &Config) -> Option<&RollupConfig> {
    config.rollup.as_ref().filter(|rolled| rolled.on_terminal)
}
