//! A refusal: why a leader does not take a follower, and whether asking again may help.

use super::fields::Fields;
use super::frame::{Frame, Kind, push_frame};
use super::message::MessageError;

/// Most bytes of a refusal's sentence.
pub const REFUSE_TEXT_SIZE_MAX: usize = 512;
/// Most bytes of the leader's address in a refusal: a host name, a colon, a port.
pub const LEADER_SIZE_MAX: usize = 261;

/// Why a leader refuses. Codes below 256 are permanent: trying again changes nothing until somebody acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefuseCode {
    /// No protocol version in common.
    Version,
    /// The Hello itself is wrong.
    Malformed,
    /// The follower's data came from another store.
    ForeignStore,
    /// The follower's sizes are not the leader's.
    Geometry,
    /// The leader has no such shard.
    Shard,
    /// The follower holds changes that the leader does not have.
    FollowerAhead,
    /// The follower has heard of a newer epoch than the leader's.
    OldEpoch,
    /// What both share is older than the terms that the leader remembers.
    Forgotten,
    /// The shard has as many followers as it may have.
    TooManyFollowers,
    /// The node is no leader, or no more.
    NotLeader,
    /// The leader gets back what it lost in a crash, and takes followers then.
    Regaining,
    /// A slot that the follower needs is damaged at the leader. Comes when it is met, in the middle of a link.
    Damaged,
    /// A code of a later version.
    Other(u16),
}

const FIRST_TEMPORARY_CODE: u16 = 256;

impl RefuseCode {
    /// The code on the wire.
    #[must_use]
    pub fn to_u16(self) -> u16 {
        match self {
            Self::Version => 1,
            Self::Malformed => 2,
            Self::ForeignStore => 3,
            Self::Geometry => 4,
            Self::Shard => 5,
            Self::FollowerAhead => 6,
            Self::OldEpoch => 7,
            Self::Forgotten => 8,
            Self::TooManyFollowers => FIRST_TEMPORARY_CODE,
            Self::NotLeader => FIRST_TEMPORARY_CODE + 1,
            Self::Regaining => FIRST_TEMPORARY_CODE + 2,
            Self::Damaged => FIRST_TEMPORARY_CODE + 3,
            Self::Other(code) => code,
        }
    }

    /// Reads a code from the wire.
    #[must_use]
    pub fn from_u16(code: u16) -> Self {
        match code {
            1 => Self::Version,
            2 => Self::Malformed,
            3 => Self::ForeignStore,
            4 => Self::Geometry,
            5 => Self::Shard,
            6 => Self::FollowerAhead,
            7 => Self::OldEpoch,
            8 => Self::Forgotten,
            FIRST_TEMPORARY_CODE => Self::TooManyFollowers,
            257 => Self::NotLeader,
            258 => Self::Regaining,
            259 => Self::Damaged,
            code => Self::Other(code),
        }
    }

    /// The word under which refusals are counted.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Malformed => "malformed",
            Self::ForeignStore => "foreign_store",
            Self::Geometry => "geometry",
            Self::Shard => "shard",
            Self::FollowerAhead => "follower_ahead",
            Self::OldEpoch => "old_epoch",
            Self::Forgotten => "forgotten",
            Self::TooManyFollowers => "too_many_followers",
            Self::NotLeader => "not_leader",
            Self::Regaining => "regaining",
            Self::Damaged => "damaged",
            Self::Other(_) => "other",
        }
    }

    /// Whether trying again changes nothing until somebody acts.
    #[must_use]
    pub fn is_permanent(self) -> bool {
        self.to_u16() < FIRST_TEMPORARY_CODE
    }
}

/// Leader -> follower. The Hello is not fine, or a slot is damaged; the leader closes after this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuse {
    /// What is wrong.
    pub code: RefuseCode,
    /// What is wrong, for people.
    pub text: String,
    /// With [`RefuseCode::NotLeader`]: where the leader takes followers, `HOST:PORT`, if that is known.
    pub leader: Option<String>,
}

impl Refuse {
    /// A refusal that knows of no other leader.
    #[must_use]
    pub fn new(code: RefuseCode, text: String) -> Self {
        Self { code, text, leader: None }
    }

    /// Appends the message as a frame; a long text is cut.
    pub fn push(&self, target: &mut Vec<u8>, epoch: u64) {
        let cut = self.text.floor_char_boundary(REFUSE_TEXT_SIZE_MAX);
        // An address that is too long is none: better no word than half a one.
        let leader = self.leader.as_deref().filter(|leader| leader.len() <= LEADER_SIZE_MAX).unwrap_or("");
        let leader_size = u16::try_from(leader.len()).unwrap_or_else(|_| unreachable!("checked above"));
        push_frame(target, Kind::Refuse, epoch, |out| {
            out.extend_from_slice(&self.code.to_u16().to_le_bytes());
            out.extend_from_slice(&leader_size.to_le_bytes());
            out.extend_from_slice(leader.as_bytes());
            out.extend_from_slice(&self.text.as_bytes()[..cut]);
        });
    }

    /// Reads a Refuse. Control characters do not reach our logs.
    pub fn read(frame: &Frame<'_>) -> Result<Self, MessageError> {
        let mut fields = Fields::new(frame);
        let code = RefuseCode::from_u16(fields.u16()?);
        let leader_size = usize::from(fields.u16()?);
        let Some((leader, text)) = fields.rest.split_at_checked(leader_size) else {
            return Err(fields.size_error(2 * size_of::<u16>() + leader_size));
        };
        if text.len() > REFUSE_TEXT_SIZE_MAX {
            return Err(fields.size_error(2 * size_of::<u16>() + leader_size + REFUSE_TEXT_SIZE_MAX));
        }
        let text = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
        Ok(Self { code, text, leader: leader_address(leader)? })
    }
}

/// An address as a peer states it; `None` if it states none.
fn leader_address(bytes: &[u8]) -> Result<Option<String>, MessageError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let found = String::from_utf8_lossy(bytes);
    let is_address = bytes.len() <= LEADER_SIZE_MAX
        && bytes.iter().all(u8::is_ascii_graphic)
        && found
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
    if is_address {
        Ok(Some(found.into_owned()))
    } else {
        Err(MessageError::Leader { found: found.escape_debug().take(LEADER_SIZE_MAX).collect() })
    }
}
