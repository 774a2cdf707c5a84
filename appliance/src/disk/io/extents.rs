//! Which parts of a file are allocated, asked on a thread of its own since lseek(2) may block.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use super::inbox::{Inbox, Message, Place};
use crate::disk::{DiskError, Extent, OpenFile, sys};
use crate::pinning;

/// Most questions that wait for their answer; more are refused as [`DiskError::Busy`].
const MAX_QUESTIONS: usize = 64;
/// Most seeks for each extent that is asked for: several may end in one block.
const SEEKS_PER_EXTENT: usize = 8;

/// A question about a file.
#[derive(Debug)]
pub struct Question {
    pub file: Arc<OpenFile>,
    /// First byte and end of what it is about; multiples of `block`.
    pub offset: u64,
    pub end: u64,
    /// Bytes of a block.
    pub block: u64,
    /// Most extents to be told, at least 1.
    pub limit: usize,
    /// The operation that the answer is for.
    pub place: Place,
}

/// The thread that answers; started with the first question, gone with the last sender. A file
/// that hangs makes the questions about other files of this loop wait, too.
#[derive(Debug, Default)]
pub struct Surveyor {
    questions: Option<SyncSender<Question>>,
}

impl Surveyor {
    /// Asks; [`Message::Extents`] comes to `inbox`.
    ///
    /// # Errors
    /// [`DiskError::Busy`] if there is no thread or no room for the question.
    pub fn ask(&mut self, question: Question, inbox: &Arc<Inbox>) -> Result<(), DiskError> {
        let questions = match &self.questions {
            Some(questions) => questions,
            None => {
                let (sender, receiver) = sync_channel(MAX_QUESTIONS);
                let inbox = Arc::clone(inbox);
                pinning::spawn_free("extents", move || answer_all(&receiver, &inbox))
                    .map_err(|_| DiskError::Busy)?;
                self.questions.insert(sender)
            }
        };
        questions.try_send(question).map_err(|error| {
            if matches!(error, TrySendError::Disconnected(_)) {
                self.questions = None;
            }
            DiskError::Busy
        })
    }
}

fn answer_all(questions: &Receiver<Question>, inbox: &Inbox) {
    while let Ok(question) = questions.recv() {
        let answer = survey(question.file.file(), &question);
        let place = question.place;
        // The file, and its lock, before the answer: it may be the last use of both.
        drop(question);
        inbox.post(Message::Extents(place, answer));
    }
}

/// The extents of a file; a block that is allocated in part is allocated.
fn survey(file: &File, question: &Question) -> io::Result<Vec<Extent>> {
    let &Question {
        offset,
        end,
        block,
        limit,
        ..
    } = question;
    let mut extents = Vec::new();
    if !file.metadata()?.is_file() {
        // A device does not tell.
        push(&mut extents, end - offset, true);
        return Ok(extents);
    }
    let mut at = offset;
    let mut seeks = limit.saturating_mul(SEEKS_PER_EXTENT);
    while at < end && extents.len() <= limit && seeks > 0 {
        seeks -= 1;
        let data = match sys::seek_data(file, at) {
            Ok(data) => data.unwrap_or(end).clamp(at, end),
            // No filesystem has to know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => at,
            Err(error) => return Err(error),
        };
        let data_start = if data == end {
            end
        } else {
            data - data % block
        };
        push(&mut extents, data_start - at, false);
        if data == end {
            break;
        }
        let hole = match sys::seek_hole(file, data) {
            Ok(hole) => hole.unwrap_or(end),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => end,
            Err(error) => return Err(error),
        };
        // At least a block, even if the file changes meanwhile.
        let data_end = hole.max(data + 1).next_multiple_of(block).min(end);
        push(&mut extents, data_end - data_start, true);
        at = data_end;
    }
    extents.truncate(limit);
    Ok(extents)
}

/// Appends `len` bytes, to the last extent if they are of its state.
fn push(extents: &mut Vec<Extent>, len: u64, allocated: bool) {
    match extents.last_mut() {
        _ if len == 0 => {}
        Some(last) if last.allocated == allocated => last.len += len,
        _ => extents.push(Extent { len, allocated }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vmm_sys_util::tempfile::TempFile;

    use super::*;
    use crate::disk::Cache;

    fn told(file: File, block: u64, limit: usize) -> Vec<(u64, bool)> {
        let file = Arc::new(OpenFile::new(file, Cache::WriteBack));
        let place = Place {
            operation: 0,
            serial: 0,
        };
        let question = Question {
            file: Arc::clone(&file),
            offset: 0,
            end: 1 << 20,
            block,
            limit,
            place,
        };
        survey(file.file(), &question)
            .unwrap()
            .into_iter()
            .map(|extent| (extent.len, extent.allocated))
            .collect()
    }

    /// A file with a page of data at each of these bytes.
    fn sparse(at: &[u64]) -> File {
        let file = TempFile::new().unwrap().into_file();
        file.set_len(1 << 20).unwrap();
        for at in at {
            file.write_all_at(&[1; 4096], *at).unwrap();
        }
        file.sync_all().unwrap();
        file
    }

    #[test]
    fn a_block_with_any_data_is_allocated_and_neighbours_are_one_extent() {
        // In the second block, the third, and the last but one.
        let at = [16384 + 8192, 32768, 49152 - 4096, (1 << 20) - 32768];
        let all = [
            (16384, false),
            (32768, true),
            ((1 << 20) - 49152 - 32768, false),
            (16384, true),
            (16384, false),
        ];
        assert_eq!(told(sparse(&at), 16384, 10), all);
        assert_eq!(told(sparse(&at), 16384, 2), all[..2]);
    }

    #[test]
    fn what_is_behind_the_end_of_a_file_is_not_allocated() {
        let file = sparse(&[0]);
        file.set_len(4096).unwrap();
        assert_eq!(
            told(file, 512, 10),
            [(4096, true), ((1 << 20) - 4096, false)]
        );
    }

    #[test]
    fn what_is_no_file_is_allocated() {
        let null = File::open("/dev/null").unwrap();
        assert_eq!(told(null, 512, 10), [(1 << 20, true)]);
    }
}
