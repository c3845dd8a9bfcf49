//! The systems by name.

use super::cyrus::{self, Cyrus};
use super::dovecot::{self, Dovecot, Format};
use super::mda::{self, Mda, Program};
use super::packages::Family;
use super::peer::{Running, Site};
use super::postfix::{self, Behind, Postfix};
use super::ringpost::{Ringpost, Via};
use super::sendmail::{self, Local, Sendmail};

/// What can be compared, in the order of the tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub(crate) enum System {
    /// Ours, node protocol
    RingpostNode,
    /// Ours, LMTP
    RingpostLmtp,
    /// Ours, a ringpost-deliver per message
    RingpostMda,
    /// Dovecot LMTP into mdbox
    DovecotMdbox,
    /// Dovecot LMTP into sdbox
    DovecotSdbox,
    /// Dovecot LMTP into maildir
    DovecotMaildir,
    /// Dovecot LMTP into mbox
    DovecotMbox,
    /// Cyrus lmtpd
    CyrusLmtp,
    /// procmail per message, mbox files
    Procmail,
    /// maildrop per message, maildirs
    Maildrop,
    /// sendmail with procmail and system accounts
    SendmailProcmail,
    /// sendmail with a ringpost-deliver per message
    SendmailRingpost,
    /// sendmail with a program that throws mail away: what the MTA leaves to any store
    SendmailDummy,
    /// Postfix before Dovecot LMTP (mdbox)
    PostfixDovecot,
    /// Postfix before our LMTP
    PostfixRingpost,
}

impl System {
    /// As on the command line.
    pub(crate) fn name(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether the store is ours.
    pub(crate) fn is_ours(self) -> bool {
        self.name().contains("ringpost")
    }

    /// Whether it has a server that clients read from.
    pub(crate) fn is_read(self) -> bool {
        matches!(
            self,
            Self::RingpostNode
                | Self::DovecotMdbox
                | Self::DovecotSdbox
                | Self::DovecotMaildir
                | Self::DovecotMbox
        )
    }

    /// The packages it needs, the one that names its version first.
    pub(crate) fn families(self) -> &'static [&'static Family] {
        match self {
            Self::RingpostNode | Self::RingpostLmtp | Self::RingpostMda => &[],
            Self::DovecotMdbox | Self::DovecotSdbox | Self::DovecotMaildir | Self::DovecotMbox => {
                &[&dovecot::FAMILY]
            }
            Self::CyrusLmtp => &[&cyrus::FAMILY],
            Self::Procmail => &[&mda::PROCMAIL],
            Self::Maildrop => &[&mda::MAILDROP],
            Self::SendmailProcmail | Self::SendmailRingpost | Self::SendmailDummy => {
                &[&sendmail::FAMILY]
            }
            Self::PostfixDovecot => &[&postfix::FAMILY, &dovecot::FAMILY],
            Self::PostfixRingpost => &[&postfix::FAMILY],
        }
    }

    /// Starts it on an empty store.
    pub(crate) fn start(self, site: &Site<'_>) -> anyhow::Result<Box<dyn Running>> {
        let dovecot = |format| -> anyhow::Result<Box<dyn Running>> {
            Ok(Box::new(Dovecot::start(site, format)?))
        };
        let ringpost =
            |via| -> anyhow::Result<Box<dyn Running>> { Ok(Box::new(Ringpost::start(site, via)?)) };
        match self {
            Self::RingpostNode => ringpost(Via::Node),
            Self::RingpostLmtp => ringpost(Via::Lmtp),
            Self::RingpostMda => ringpost(Via::Mda),
            Self::DovecotMdbox => dovecot(Format::Mdbox),
            Self::DovecotSdbox => dovecot(Format::Sdbox),
            Self::DovecotMaildir => dovecot(Format::Maildir),
            Self::DovecotMbox => dovecot(Format::Mbox),
            Self::CyrusLmtp => Ok(Box::new(Cyrus::start(site)?)),
            Self::Procmail => Ok(Box::new(Mda::start(site, Program::Procmail)?)),
            Self::Maildrop => Ok(Box::new(Mda::start(site, Program::Maildrop)?)),
            Self::SendmailProcmail => Ok(Box::new(Sendmail::start(site, Local::Procmail)?)),
            Self::SendmailRingpost => Ok(Box::new(Sendmail::start(site, Local::Ringpost)?)),
            Self::SendmailDummy => Ok(Box::new(Sendmail::start(site, Local::Dummy)?)),
            Self::PostfixDovecot => Ok(Box::new(Postfix::start(site, Behind::Dovecot)?)),
            Self::PostfixRingpost => Ok(Box::new(Postfix::start(site, Behind::Ringpost)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        assert_eq!(System::RingpostNode.name(), "ringpost-node");
        assert_eq!(System::DovecotMdbox.name(), "dovecot-mdbox");
        assert!(System::RingpostMda.is_ours() && !System::DovecotMbox.is_ours());
    }
}
