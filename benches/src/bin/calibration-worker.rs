//! This library's worker of `cargo xtask bench-calibration`.

use std::io::{BufRead, Write};

use opt_benches::Failure;
use opt_benches::calibration::{Reply, Request, calibrate, write};

fn main() -> Result<(), Failure> {
    for line in std::io::stdin().lock().lines() {
        let reply = answer(&line?).unwrap_or_else(|e| Reply::Failed {
            error: e.to_string(),
        });
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", serde_json::to_string(&reply)?)?;
        stdout.flush()?;
    }
    Ok(())
}

fn answer(line: &str) -> Result<Reply, Failure> {
    match serde_json::from_str(line)? {
        Request::About => Ok(Reply::About {
            version: env!("CARGO_PKG_VERSION").into(),
            settings: String::new(),
        }),
        Request::Write(network) => {
            write(&network)?;
            Ok(Reply::Written {
                written: network.layers,
            })
        }
        Request::Calibrate(request) => calibrate(&request),
    }
}
