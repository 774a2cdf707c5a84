//! Child processes that cannot outlive the harness.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{LazyLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::error::{Error, FileContext, Result};
use super::log::Log;

/// Runs `command` to its end; what it printed is in the error if it fails.
pub fn run(what: &str, command: &mut Command) -> Result<String> {
    let output = command.output().file("run", command.get_program())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(Error::Command {
        command: what.to_owned(),
        status: output.status,
        output: text(&output.stdout) + &text(&output.stderr),
    })
}

/// A long-running program with a log; killed when dropped, or when the harness dies.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Log,
}

impl Process {
    /// Starts `command`; both its outputs go to the file `log`.
    pub fn start(name: &str, command: &Command, log: &Path) -> Result<Self> {
        let output = File::create(log).file("create", log)?;
        let errors = output.try_clone().file("open", log)?;
        let mut guarded = bound_to_harness(command);
        guarded.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = spawn(guarded).file("run", command.get_program())?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: Log::at(log),
        })
    }

    /// What the program printed.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the program with SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // Killing fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends the program a signal, by its name without "SIG".
    pub fn signal(&self, signal: &str) -> Result<()> {
        let kill = format!("kill -{signal} {}", self.id());
        run("kill", Command::new("sh").args(["-c", &kill])).map(drop)
    }

    /// Asks the program to end (SIGTERM), and kills it if it has not within `patience`.
    pub fn terminate(&mut self, patience: Duration) {
        if self.ended().is_none() && self.signal("TERM").is_ok() {
            let _ = self.wait(patience);
        }
        self.kill();
    }

    /// How the program ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until the program ends by itself.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let awaited = format!("the end of {}", self.name);
        let log = self.log.clone();
        poll(&awaited, timeout, &log, || Ok(self.ended()))
    }

    /// Waits until `condition` gives a value; an early end of the program is an error.
    pub fn wait_for<T>(
        &mut self,
        awaited: &str,
        timeout: Duration,
        context: &Log,
        mut condition: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        poll(awaited, timeout, context, || {
            if let Some(value) = condition()? {
                return Ok(Some(value));
            }
            match self.ended() {
                None => Ok(None),
                Some(status) => Err(Error::EndedEarly {
                    name: self.name.clone(),
                    status,
                    awaited: awaited.to_owned(),
                    log: self.log.tail(),
                }),
            }
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks `condition` every few milliseconds until it gives a value.
pub fn poll<T>(
    awaited: &str,
    timeout: Duration,
    context: &Log,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() > timeout {
            return Err(Error::TooLate {
                awaited: awaited.to_owned(),
                after: timeout,
                context: context.tail(),
            });
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// `command`, to be killed by the kernel when the thread that starts it ends.
fn bound_to_harness(command: &Command) -> Command {
    let mut guarded = Command::new("setpriv");
    guarded.args(["--pdeathsig", "KILL", "--"]);
    guarded.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => guarded.env(name, value),
            None => guarded.env_remove(name),
        };
    }
    guarded
}

type Spawn = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts `command` from a thread that lives as long as the harness: the kernel's parent-death
/// signal follows the thread, and a test's thread ends before its machines need to.
fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: LazyLock<mpsc::Sender<Spawn>> = LazyLock::new(|| {
        let (sender, receiver) = mpsc::channel::<Spawn>();
        thread::spawn(move || {
            for (mut command, reply) in receiver {
                // The asker may be gone; then the child is not wanted any more either.
                if let Err(mpsc::SendError(Ok(mut child))) = reply.send(command.spawn()) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        });
        sender
    });
    let (sender, receiver) = mpsc::channel();
    let gone = |_| std::io::Error::other("the thread that starts processes is gone");
    SPAWNER
        .send((command, sender))
        .map_err(|_| gone(mpsc::RecvError))?;
    receiver.recv().map_err(gone)?
}

/// Where the host has `program`, if it has.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|p| p.is_file())
}
