//! Joins as fast as the server answers: many devices in one process, each with its own token, connection by connection.
//!
//! `boundkey-load --server ADDR --ca-pin PIN --secret SECRET [--devices 32] [--each 40] [--seconds 10]`: so many join at once, and
//! each is a row of `--each` devices that take turns, for one token is held to a pace. Tokens `load-0`, `load-1` ... must exist, with
//! SECRET as registration secret. Prints one JSON object.

mod device;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use boundkey::agent::transport::Https;
use device::{Device, Failure, trust};

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let options: HashMap<_, _> = arguments.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let option = |name: &str| options.get(name).copied().ok_or_else(|| format!("{name} is missing"));
    let (server, secret, pin) = (option("--server")?, option("--secret")?, option("--ca-pin")?);
    let rows: usize = option("--devices").unwrap_or("32").parse()?;
    let each: usize = option("--each").unwrap_or("40").parse()?;
    let seconds: u64 = option("--seconds").unwrap_or("10").parse()?;
    let (joins, ready, go, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false), AtomicBool::new(false));
    let run = |row: usize| -> Result<(), Failure> {
        let mut devices = Vec::new();
        for n in row * each..(row + 1) * each {
            let mut device = Device::new(&format!("load-{n}"), secret)?;
            // First joins make keys and are slower: they are not counted.
            device.join(&mut Https::new(server, trust(pin)?)?, server)?;
            devices.push(device);
        }
        ready.fetch_add(1, Ordering::Relaxed);
        while !go.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        for turn in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            // Each time on a new connection, as a device does that wakes up for it.
            devices[turn % each].join(&mut Https::new(server, trust(pin)?)?, server)?;
            joins.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let (count, time, failure) = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..rows).map(|row| scope.spawn(move || run(row))).collect();
        while ready.load(Ordering::Relaxed) < rows && !threads.iter().any(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let start = Instant::now();
        go.store(true, Ordering::Relaxed);
        while start.elapsed() < Duration::from_secs(seconds) && !threads.iter().any(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let counted = (joins.load(Ordering::Relaxed), start.elapsed());
        stop.store(true, Ordering::Relaxed);
        let failure = threads.into_iter().find_map(|thread| thread.join().ok()?.err());
        (counted.0, counted.1, failure)
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    let (seconds, per_second) = (time.as_secs_f64(), f64::from(u32::try_from(count)?) / time.as_secs_f64());
    println!(r#"{{"joins":{count},"seconds":{seconds:.3},"devices":{rows},"per_second":{per_second:.1}}}"#);
    Ok(())
}
