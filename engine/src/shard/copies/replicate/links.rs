//! Large messages of another node: their stage files are linked before a record names them.

use crate::error::CorruptReason;
use crate::format::record::RecordType;
use crate::io::Io;
use crate::request::Refused;
use crate::shard::Shard;
use crate::shard::large::Asker;

impl<I: Io> Shard<I> {
    /// Begins to link the large messages from record `known` on that are not linked yet; how many.
    pub(super) fn link_replicas(&mut self, index: usize, known: usize) -> Result<u32, Refused> {
        let open = self.copies.requests.get(index).expect("an open request");
        let mut wanted = Vec::new();
        for (place, one) in open.incoming.iter().enumerate().skip(known) {
            if one.kind != RecordType::DeliverFile || one.segment.is_some() {
                continue;
            }
            match (&one.file, &one.msg, one.user) {
                (Some(file), Some(msg), Some(user)) if self.stages.has_taken(file, msg) => {
                    wanted.push((place, user, file.clone()));
                }
                _ => {
                    let reason = CorruptReason::Value("a large message without its file");
                    return Err(Refused::BadRecords(reason));
                }
            }
        }
        let mut links_count = 0;
        for (place, user, file) in wanted {
            let segment = self.link(Asker::Replicate(index), user, &file);
            let open = self.copies.requests.get_mut(index);
            let open = open.expect("an open request");
            let one = open.incoming.get_mut(place).expect("just looked at");
            one.segment = segment;
            links_count += u32::from(segment.is_some());
            open.linking += u32::from(segment.is_some());
        }
        Ok(links_count)
    }

    /// A link of a request is durable, or cannot be.
    pub(in crate::shard) fn replica_linked(&mut self, index: usize, result: Result<(), Refused>) {
        let Some(open) = self.copies.requests.get_mut(index) else {
            return;
        };
        open.linking -= 1;
        if let Err(refused) = result {
            open.unlinked.get_or_insert(refused);
        }
        if open.linking == 0 {
            self.copies.turns.push_back(open.partition);
        }
    }
}
