//! A leader hands over to a follower under load.
