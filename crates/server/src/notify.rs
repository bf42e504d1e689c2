//! Telling systemd how we are (`sd_notify`). Without systemd nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// The server is up.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The server is shutting down.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// The server is alive. Send it twice within [`watchdog_interval`], from where a standstill would be noticed.
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// How long systemd waits for [`watchdog`] before it restarts us; `None`: it doesn't.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("sd_notify: {error}");
    }
}
