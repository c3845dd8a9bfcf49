//! buf
/// x
#[derive(Debug)]
pub struct AlignedBuf;
