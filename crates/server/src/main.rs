//! The `trunkline` program: see [`trunkline_server::cli`].

use std::process::ExitCode;

// Many small, short-lived allocations on several threads: the system's allocator fragments. Without huge pages: see
// `design/007-transport.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    trunkline_server::cli::main()
}
