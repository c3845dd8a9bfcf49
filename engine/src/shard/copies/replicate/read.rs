//! Whether what another node sent is records at all: whole, contiguous, tied by the chain.

use bytes::Bytes;

use super::Incoming;
use crate::error::CorruptReason;
use crate::format::crc;
use crate::format::info::{FIRST_SLOT, Msg, Seed};
use crate::format::record::{
    Group, Local, Payload, Record, RecordType, Records as Decoded, chain, heads, localise,
};
use crate::io::Io;
use crate::position::Lsn;
use crate::request::Replicate;
use crate::shard::Shard;

impl<I: Io> Shard<I> {
    /// The records of a request, if they are records, contiguous, of its partition, tied by the chain.
    pub(super) fn read_records(&self, request: &Replicate) -> Result<Vec<Incoming>, CorruptReason> {
        let (mut pseq, mut before) = (request.prev_pseq, request.prev_chain);
        let mut incoming = Vec::with_capacity(request.items.len());
        for shipped in &request.items {
            let mut one = self.read_record(&shipped.record, shipped.body.as_ref())?;
            one.file.clone_from(&shipped.file);
            let same = one.head.partition == request.partition
                && one.head.pseq == pseq.saturating_add(1)
                && one.head.epoch <= request.epoch;
            if !same {
                return Err(CorruptReason::Value("a record out of its place"));
            }
            if chain(before, &one.record) != one.head.chain {
                return Err(CorruptReason::Checksum);
            }
            (pseq, before) = (one.head.pseq, one.head.chain);
            incoming.push(one);
        }
        Ok(incoming)
    }

    /// One record: put where it could stand here and decoded like one of this log.
    pub(in crate::shard::copies) fn read_record(
        &self,
        record: &Bytes,
        body: Option<&Bytes>,
    ) -> Result<Incoming, CorruptReason> {
        let (kind, head, _, _) = heads(record).next().ok_or(CorruptReason::Truncated)?;
        let mut payload = Vec::new();
        let (mut cache_len, mut cache_crc, mut distance) = (0, 0, 0);
        if kind == RecordType::Deliver {
            let body = body.ok_or(CorruptReason::Value("a DELIVER without its BODY"))?;
            let Payload::Body(parts) = Decoded::at(body, 0)?.payload else {
                return Err(CorruptReason::Value("a DELIVER that points at no BODY"));
            };
            if crc::of(parts.stored) != head.body_crc {
                return Err(CorruptReason::Checksum);
            }
            (cache_len, cache_crc) = (parts.cache.len(), crc::of(parts.cache));
            distance = u32::try_from(body.len()).map_err(|_wide| CorruptReason::Length)?;
            payload.extend_from_slice(body);
        }
        let local = Local {
            group: Group::Ends,
            seed: Seed {
                user: head.user,
                generation: 1,
            },
            slot: FIRST_SLOT,
            lsn: Lsn::new(0),
            segment: 1,
            offset: 0,
            distance,
            cache_crc,
        };
        let at = payload.len();
        payload.extend_from_slice(&localise(record, &local)?);
        let decoded = Decoded::at(&payload, at)?;
        if decoded.bytes.len() != record.len() {
            return Err(CorruptReason::Length);
        }
        let of_user = kind != RecordType::Epoch;
        if of_user && self.identity.partitions.partition(head.user) != head.partition {
            return Err(CorruptReason::Identity);
        }
        let msg = self.look_into(&decoded, cache_len)?;
        Ok(Incoming {
            head,
            kind,
            record: record.clone(),
            body: body.filter(|_| kind == RecordType::Deliver).cloned(),
            cache_len,
            msg,
            user: None,
            file: None,
            segment: None,
        })
    }

    /// What a decoder leaves to its caller.
    pub(super) fn look_into(
        &self,
        record: &Record<'_>,
        cache_len: usize,
    ) -> Result<Option<Msg>, CorruptReason> {
        match &record.payload {
            Payload::UserCreate(name) if self.identity.key.user_hash(name) != record.head.user => {
                Err(CorruptReason::Identity)
            }
            Payload::Deliver(deliver)
                if usize::from(deliver.fixed.cache_slots()) * 64 != cache_len =>
            {
                Err(CorruptReason::Length)
            }
            Payload::Deliver(deliver) => Ok(Some(deliver.msg)),
            Payload::DeliverFile(file) => Ok(Some(file.msg)),
            _ => Ok(None),
        }
    }
}
