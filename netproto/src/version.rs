//! HELLO: who speaks, which versions, and with which bounds. Its 192 bytes never change their
//! layout; features come as bits, new facts come into the zeros at the end.

use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32, U64};

use crate::error::Violation;
use crate::id::NodeId;
use crate::limits::{
    CREDIT_BYTES_DEFAULT, CREDIT_BYTES_MAX, CREDIT_BYTES_MIN, PAYLOAD_BYTES_CEILING,
    PAYLOAD_BYTES_DEFAULT,
};
use crate::wire::{read_grown, wire_struct};

/// The lowest protocol version this code speaks.
pub const VERSION_MIN: u16 = 1;

/// The highest.
pub const VERSION_MAX: u16 = 1;

/// Length of a HELLO.
pub const HELLO_BYTES: usize = 192;

/// `core` of a side that has none.
const CORE_NONE: u16 = 0xFFFF;

wire_struct! {
    /// The payload of HELLO.
    pub struct HelloPayload [192] {
        /// Lowest protocol version spoken.
        0 version_min: U16,
        /// Highest.
        2 version_max: U16,
        /// [`Role`].
        4 role: u8,
        /// Sent 0.
        5 reserved: u8,
        /// Core of the sender, 0xFFFF none.
        6 core: U16,
        /// Feature bits; none yet.
        8 features: U64,
        /// Cluster uuid; zeros: not known.
        16 cluster: [u8; 16],
        /// Node id; 0: no node.
        32 node: U32,
        /// Largest payload accepted.
        36 payload_bytes_max: U32,
        /// The node's epoch in the control plane.
        40 node_epoch: U64,
        /// Store uuid; zeros: no store.
        48 store: [u8; 16],
        /// Storage generation.
        64 store_generation: U64,
        /// Credit granted to the receiver of this HELLO.
        72 credit_bytes: U64,
        /// Revision of the partition map.
        80 map_revision: U64,
        /// Its hash; in `static` clusters both sides compare it.
        88 map_hash: U64,
        /// Entropy for authentication; zeros where there is none.
        96 nonce: [u8; 32],
        /// Sent 0; checked only against a peer that speaks no newer version.
        128 zeros: [u8; 64],
    }
}

/// What the peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// A node of the cluster.
    Node,
    /// `ringpost-deliver`.
    Shim,
    /// A reader, such as the web gateway.
    Client,
    /// An operator's tool.
    Admin,
}

impl Role {
    const ALL: [Self; 4] = [Self::Node, Self::Shim, Self::Client, Self::Admin];

    /// The number on the wire.
    pub const fn wire(self) -> u8 {
        match self {
            Self::Node => 0,
            Self::Shim => 1,
            Self::Client => 2,
            Self::Admin => 3,
        }
    }

    /// `None` for a number that is not in the table.
    pub fn from_wire(wire: u8) -> Option<Self> {
        Self::ALL.get(usize::from(wire)).copied()
    }
}

/// A cluster's uuid.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterId([u8; 16]);

/// A store's uuid.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StoreId([u8; 16]);

impl ClusterId {
    /// `None` for all zeros, which stand for "not known" on the wire.
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// The 16 bytes.
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl StoreId {
    /// `None` for all zeros, which stand for "no store" on the wire.
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// The 16 bytes.
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }
}

/// A side as it introduces itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Lowest protocol version spoken.
    pub version_min: u16,
    /// Highest; not below the lowest.
    pub version_max: u16,
    /// What it is.
    pub role: Role,
    /// The core that has this connection.
    pub core: Option<u16>,
    /// Feature bits.
    pub features: u64,
    /// Its cluster; a shim or client may not know.
    pub cluster: Option<ClusterId>,
    /// Its node id. Not 0.
    pub node: Option<NodeId>,
    /// The node's epoch in the control plane, 0 without one.
    pub node_epoch: u64,
    /// Its store.
    pub store: Option<StoreId>,
    /// Storage generation, 0 without a store.
    pub store_generation: u64,
    /// Largest payload it accepts: `PAYLOAD_BYTES_DEFAULT` to `PAYLOAD_BYTES_CEILING`.
    pub payload_bytes_max: u32,
    /// Credit that it grants: `CREDIT_BYTES_MIN` to `CREDIT_BYTES_MAX`.
    pub credit_bytes: u32,
    /// Revision of its partition map, 0 without one.
    pub map_revision: u64,
    /// Hash of that map.
    pub map_hash: u64,
    /// Entropy for authentication, zeros where there is none.
    pub nonce: [u8; 32],
}

impl Hello {
    /// A side with this role, this version's range, default bounds, and no identity.
    pub const fn new(role: Role) -> Self {
        Self {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            role,
            core: None,
            features: 0,
            cluster: None,
            node: None,
            node_epoch: 0,
            store: None,
            store_generation: 0,
            payload_bytes_max: PAYLOAD_BYTES_DEFAULT,
            credit_bytes: CREDIT_BYTES_DEFAULT,
            map_revision: 0,
            map_hash: 0,
            nonce: [0; 32],
        }
    }

    /// As it stands on the wire. Bounds outside their range are brought into it.
    pub fn to_payload(&self) -> HelloPayload {
        let payload = self.payload_bytes_max;
        let credit = self.credit_bytes;
        HelloPayload {
            version_min: U16::new(self.version_min),
            version_max: U16::new(self.version_max),
            role: self.role.wire(),
            core: U16::new(self.core.unwrap_or(CORE_NONE)),
            features: U64::new(self.features),
            cluster: self.cluster.map_or([0; 16], ClusterId::bytes),
            node: U32::new(self.node.map_or(0, NodeId::value)),
            node_epoch: U64::new(self.node_epoch),
            store: self.store.map_or([0; 16], StoreId::bytes),
            store_generation: U64::new(self.store_generation),
            payload_bytes_max: U32::new(
                payload.clamp(PAYLOAD_BYTES_DEFAULT, PAYLOAD_BYTES_CEILING),
            ),
            credit_bytes: U64::new(u64::from(credit.clamp(CREDIT_BYTES_MIN, CREDIT_BYTES_MAX))),
            map_revision: U64::new(self.map_revision),
            map_hash: U64::new(self.map_hash),
            nonce: self.nonce,
            ..HelloPayload::new_zeroed()
        }
    }

    /// Reads a HELLO's payload. The version range comes first: a peer of another version is told
    /// about versions and not about the first field that looks odd to us.
    pub fn from_payload(payload: &[u8], ours: &Self) -> Result<Self, Violation> {
        if payload.len() < HELLO_BYTES {
            return Err(Violation::HelloInvalid("it is too short"));
        }
        let wire: HelloPayload = read_grown(payload);
        let (version_min, version_max) = (wire.version_min.get(), wire.version_max.get());
        if version_min > version_max || version_min == 0 {
            return Err(Violation::HelloInvalid("its version range is empty"));
        }
        if version_max < ours.version_min || ours.version_max < version_min {
            return Err(Violation::Version {
                ours_min: ours.version_min,
                ours_max: ours.version_max,
                theirs_min: version_min,
                theirs_max: version_max,
            });
        }
        let newer = version_max > ours.version_max;
        if !newer && (wire.reserved != 0 || wire.zeros != [0; 64]) {
            return Err(Violation::HelloInvalid("its reserved bytes are not zero"));
        }
        let payload_bytes_max = wire.payload_bytes_max.get();
        if !(PAYLOAD_BYTES_DEFAULT..=PAYLOAD_BYTES_CEILING).contains(&payload_bytes_max) {
            return Err(Violation::HelloInvalid("its largest frame is out of range"));
        }
        let credit_bytes = u32::try_from(wire.credit_bytes.get())
            .ok()
            .filter(|credit| (CREDIT_BYTES_MIN..=CREDIT_BYTES_MAX).contains(credit))
            .ok_or(Violation::HelloInvalid("its credit is out of range"))?;
        Ok(Self {
            version_min,
            version_max,
            role: Role::from_wire(wire.role)
                .ok_or(Violation::HelloInvalid("its role is not known"))?,
            core: Some(wire.core.get()).filter(|core| *core != CORE_NONE),
            features: wire.features.get(),
            cluster: ClusterId::new(wire.cluster),
            node: Some(NodeId::new(wire.node.get())).filter(|node| node.value() != 0),
            node_epoch: wire.node_epoch.get(),
            store: StoreId::new(wire.store),
            store_generation: wire.store_generation.get(),
            payload_bytes_max,
            credit_bytes,
            map_revision: wire.map_revision.get(),
            map_hash: wire.map_hash.get(),
            nonce: wire.nonce,
        })
    }

    /// The version both sides use: the lower highest. Both ranges overlap.
    pub const fn common_version(&self, other: &Self) -> u16 {
        if self.version_max < other.version_max {
            self.version_max
        } else {
            other.version_max
        }
    }

    /// Whether the two may talk at all; versions were compared before.
    pub fn check_peer(&self, peer: &Self, expected: Option<NodeId>) -> Result<(), Violation> {
        if let (Some(ours), Some(theirs)) = (self.cluster, peer.cluster)
            && ours != theirs
        {
            return Err(Violation::OtherCluster);
        }
        if self.role == Role::Node && peer.role == Role::Node {
            let same_node = self.node.is_some() && self.node == peer.node;
            let same_store = self.store.is_some() && self.store == peer.store;
            if same_node || same_store {
                return Err(Violation::OwnIdentity);
            }
        }
        match expected {
            Some(expected) if peer.node != Some(expected) => Err(Violation::OtherNode {
                expected: expected.value(),
                found: peer.node.map_or(0, NodeId::value),
            }),
            _ => Ok(()),
        }
    }
}
