//! A node: opens the store, starts a pinned thread per core, and runs the control thread until the
//! end.
//!
//! The control thread (the caller's) accepts connections and hands them to the cores in turn, serves
//! the admin pages, and takes signals. The end comes in order: doors close, open transactions finish,
//! shards drain and mark themselves clean, threads join. A shard's fatal error ends the process
//! instead, after the replies that are on their way (DESIGN.md decision 11).

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use ringpost_engine::ShardIdentity;
use ringpost_engine::error::{Fatal, OpenError};
use ringpost_engine::io::ring::{UringIo, UringOptions};
use ringpost_engine::io::{Helpers, short_turns};
use ringpost_engine::store::{Store, StoreOptions};
use ringpost_netproto::id::NodeId;
use ringpost_netproto::placement::PARTITIONS_DEFAULT;
use ringpost_netproto::version::StoreId;

use crate::accounts::{Accounts, AccountsError};
use crate::clock;
use crate::config::{Address, Config, ConfigError};
use crate::core_loop::{self, Seat};
use crate::gate::Gates;
use crate::letter::{Letter, Settings};
use crate::listen::passed::Passed;
use crate::mesh::{Endpoint, mesh};
use crate::shard_host::ShardHost;

mod control;

pub use control::Doors;

/// Why a node cannot start, or ended. Each is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The configuration does not work; exit 78.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The list of users does not; exit 78.
    #[error(transparent)]
    Accounts(#[from] AccountsError),
    /// A door cannot be opened.
    #[error("{0}")]
    Listen(String),
    /// The store cannot be opened; exit 78 if `io_uring` is forbidden.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The system said no.
    #[error("cannot {operation}: {error}")]
    System {
        /// A verb and its object.
        operation: &'static str,
        /// The system's words.
        error: io::Error,
    },
    /// A shard stopped for good.
    #[error("{0}")]
    Fatal(Fatal),
}

impl NodeError {
    /// Whether another start is pointless until somebody changes something: exit 78.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Config(_) | Self::Accounts(_) | Self::Open(OpenError::NoRing { .. })
        )
    }

    fn system(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::System { operation, error }
    }
}

/// What a node is started with, beside its configuration.
pub struct Start {
    /// Reads the configuration again, for SIGHUP.
    pub reload: Box<dyn Fn() -> Result<Config, ConfigError>>,
    /// Sockets that were made for this process; their doors open no others.
    pub passed: Passed,
    /// Called once, when mail is taken.
    pub ready: Box<dyn FnOnce(&Doors)>,
}

/// Runs a node until a signal or a fatal error ends it.
pub fn run(config: Config, start: Start) -> Result<(), NodeError> {
    clock::now();
    let cpus = allowed_cpus()?;
    let cores = config.cores.unwrap_or(cpus.len()).max(1);
    let config = Arc::new(Config {
        cores: Some(cores),
        ..config
    });
    let accounts = Accounts::load(&config)?;
    let settings = Arc::new(Settings {
        accounts,
        return_path: config.return_path,
    });
    raise_open_files();

    let (store, helpers) = open_store(&config, cores)?;
    let ends = mesh(cores + 1)
        .map_err(io::Error::from)
        .map_err(NodeError::system("make an eventfd"))?;
    let mut ends = ends.into_iter();
    let gates = Arc::new(Gates::new(cores));
    let mut threads = Vec::new();
    for index in 0..cores {
        let endpoint = ends.next().expect("one for each core and one for control");
        let seat = Seat {
            endpoint,
            cores,
            config: Arc::clone(&config),
            settings: Arc::clone(&settings),
            hash_key: store.key(),
            partitions: store.partitions(),
            store_id: StoreId::new(store.id().bytes()),
            gates: Arc::clone(&gates),
            entropy: entropy()?,
        };
        let cpu = (cpus.len() >= cores)
            .then(|| cpus.get(index).copied())
            .flatten();
        let place = Place {
            identity: store.identity(number(index)),
            helpers: helpers.clone(),
            seed: entropy()?,
        };
        threads.push(start_core(seat, cpu, place)?);
    }
    let endpoint = ends.next().expect("the last one is control's");
    let end = control::run(&config, settings, endpoint, start);
    if let Err(NodeError::Fatal(_)) = &end {
        // Threads are left where they are: the process ends at once.
        return end;
    }
    for thread in threads {
        join(thread);
    }
    drop(store);
    end
}

/// Takes the data directory and brings it to this number of cores.
fn open_store(config: &Config, cores: usize) -> Result<(Store, Helpers), NodeError> {
    let options = StoreOptions {
        node: NodeId::new(config.node_id),
        partitions: PARTITIONS_DEFAULT,
        logs: number(cores),
        entropy: entropy()?,
    };
    let mut store = Store::open(&config.data_dir, &options)?;
    let helpers = Helpers::start(&config.data_dir).map_err(OpenError::from)?;
    if store.needs_new_layout() {
        tracing::info!(
            from = store.logs(),
            to = cores,
            "the number of cores has changed"
        );
        let make_io = || UringIo::new(&UringOptions::default(), &helpers);
        store.change_layout(&config.shard_config(), entropy()?, make_io, clock::now)?;
    }
    Ok((store, helpers))
}

/// What a core opens its shard with.
struct Place {
    identity: ShardIdentity,
    helpers: Helpers,
    seed: [u8; 16],
}

fn start_core(seat: Seat, cpu: Option<usize>, place: Place) -> Result<JoinHandle<()>, NodeError> {
    let index = seat.endpoint.index();
    let config = seat.config.shard_config();
    thread::Builder::new()
        .name(format!("core {index}"))
        .spawn(move || {
            if let Some(cpu) = cpu {
                pin(index, cpu);
            }
            short_turns();
            core_loop::serve(seat, move || {
                let Place {
                    identity,
                    helpers,
                    seed,
                } = place;
                ShardHost::open(&helpers, identity, config, seed)
            });
        })
        .map_err(NodeError::system("start a thread"))
}

/// Cores are at most 255.
fn number(cores: usize) -> u32 {
    u32::try_from(cores).unwrap_or(u32::MAX)
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a core's thread has panicked");
    }
}

fn pin(core: usize, cpu: usize) {
    let mut set = CpuSet::new();
    let result = set
        .set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = result {
        tracing::warn!(core, cpu, %error, "cannot pin the core's thread");
    }
}

/// The processors that this process may run on.
fn allowed_cpus() -> Result<Vec<usize>, NodeError> {
    let set = sched_getaffinity(Pid::from_raw(0))
        .map_err(io::Error::from)
        .map_err(NodeError::system("ask for the allowed processors"))?;
    Ok((0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .collect())
}

/// Sockets and segments need descriptors; the soft limit is often 1,024.
fn raise_open_files() {
    let limits = getrlimit(Resource::RLIMIT_NOFILE);
    let result = limits.and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        } else {
            Ok(())
        }
    });
    if let Err(error) = result {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The open-file limit in force.
fn open_files_max() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(soft, _)| soft)
}

fn entropy<const N: usize>() -> Result<[u8; N], NodeError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(io::Error::other)
        .map_err(NodeError::system("read entropy"))?;
    Ok(bytes)
}

/// The addresses of a list, or `none`.
fn show(addresses: &[Address]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses
        .iter()
        .map(Address::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

type Mail = Endpoint<Letter>;
