//! The `trunkline` program.

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(trunkline_server::config::reference().as_bytes())
}
