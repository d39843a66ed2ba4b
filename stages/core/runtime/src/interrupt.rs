//! The wish to stop: SIGINT and SIGTERM set a flag that loops look at between updates.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::process::{Signal, getpid, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

fn requested_flag() -> &'static Arc<AtomicBool> {
    REQUESTED.get_or_init(Arc::default)
}

/// From now on SIGINT and SIGTERM set the flag instead of ending the process. A second SIGINT (an
/// impatient Ctrl-C) ends it at once with exit code 130; a second SIGTERM does not, since process
/// managers send it to a group and to each of its members.
///
/// # Errors
/// The system refuses the handlers.
pub fn install() -> io::Result<()> {
    let interrupted_before = Arc::new(AtomicBool::new(false));
    flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&interrupted_before))?;
    flag::register(SIGINT, interrupted_before)?;
    flag::register(SIGINT, Arc::clone(requested_flag()))?;
    flag::register(SIGTERM, Arc::clone(requested_flag()))?;
    Ok(())
}

/// Sets the flag, as a signal would.
pub fn request() {
    requested_flag().store(true, Ordering::SeqCst);
}

/// Whether someone wants the run to save and end.
pub fn requested() -> bool {
    requested_flag().load(Ordering::SeqCst)
}

/// Ends this process now: no destructor, no exit handler and no other thread is waited for.
/// (`std::process::exit` runs libtorch's exit handlers, which can wait on its computing threads.)
pub fn end_at_once() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_signal_sets_the_flag() -> Result<(), Box<dyn std::error::Error>> {
        install()?;
        assert!(!requested());
        kill_process(getpid(), Signal::TERM)?;
        let start = Instant::now();
        while !requested() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(requested());
        Ok(())
    }
}
