//! A client that speaks the protocol byte by byte, so that nothing of ours is tested against
//! itself.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use proptest::collection::vec;
use proptest::prelude::*;
use spec::device::MAX_VECTORS;
use uuid::Uuid;

use super::{Closed, Connection, Progress, connection, socket};
use crate::device::{DeviceEvent, Profile, Refusal, VhostPci, tests as device_tests};
use crate::journal::Journal;
use crate::kept::Kept;

/// QEMU 11.1's own greeting: version 0.0 and its capabilities.
const GREETING: &[u8] = b"\0\0\0\0{\"capabilities\":{\"pgsizes\":4096,\"max_msg_fds\":16,\
    \"max_dma_maps\":65535,\"max_data_xfer_size\":1048576,\"migration\":{\"max_bitmap_size\":\
    268435456,\"pgsize\":4096},\"write_multiple\":true}}\0";

struct Client {
    stream: UnixStream,
    connection: Connection,
    device: VhostPci,
    next_id: u16,
}

/// A reply: error number, payload, descriptors.
struct Reply {
    error: u32,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

fn device() -> VhostPci {
    let mut device = VhostPci::new(&Profile::new("hba0", Uuid::nil())).unwrap();
    let memory = device_tests::memfd(6 << 20, device_tests::SHRINK);
    device.set_tenant_memory(memory).unwrap();
    device
}

fn client(device: VhostPci) -> Client {
    let (stream, server) = UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    Client {
        stream,
        connection: Connection::new(server).unwrap(),
        device,
        next_id: 0xfffe,
    }
}

fn greeted() -> Client {
    let mut client = client(device());
    let reply = client.call(1, GREETING);
    assert_eq!(reply.error, 0);
    client
}

fn header(id: u16, command: u16, len: usize, flags: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(id.to_le_bytes());
    bytes.extend(command.to_le_bytes());
    bytes.extend(u32::try_from(16 + len).unwrap().to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn word(bytes: &[u8], index: usize) -> u32 {
    u32::from_le_bytes(bytes[4 * index..][..4].try_into().unwrap())
}

/// Payload of a REGION_READ or the beginning of a REGION_WRITE.
fn access(region: u32, offset: u32, count: u32) -> Vec<u8> {
    words(&[offset, 0, region, count])
}

impl Client {
    fn ready(&mut self) -> Result<Progress, Closed> {
        self.connection.ready(&mut self.device)
    }

    fn call(&mut self, command: u16, payload: &[u8]) -> Reply {
        self.call_with(command, payload, None)
    }

    fn call_with(&mut self, command: u16, payload: &[u8], fd: Option<&OwnedFd>) -> Reply {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let mut message = header(id, command, payload.len(), 0);
        message.extend(payload);
        let sent = socket::send(&self.stream, &message, fd.map(AsFd::as_fd)).unwrap();
        assert_eq!(sent, message.len());
        assert_eq!(self.ready().unwrap(), Progress::Waiting);
        let (reply_id, reply_command, reply) = self.receive();
        assert_eq!((reply_id, reply_command), (id, command));
        reply
    }

    fn receive(&mut self) -> (u16, u16, Reply) {
        let mut bytes = [0; 16];
        let mut fds = Vec::new();
        let received = socket::receive(&self.stream, &mut bytes, &mut fds).unwrap();
        assert_eq!(received.len, 16);
        let mut payload = vec![0; usize::try_from(word(&bytes, 1)).unwrap() - 16];
        self.stream.read_exact(&mut payload).unwrap();
        let error = word(&bytes, 3);
        assert_eq!(word(&bytes, 2), if error == 0 { 1 } else { 0x21 });
        let [a, b, c, d, ..] = bytes;
        let reply = Reply {
            error,
            payload,
            fds,
        };
        (
            u16::from_le_bytes([a, b]),
            u16::from_le_bytes([c, d]),
            reply,
        )
    }

    fn read_register(&mut self, offset: u32) -> u32 {
        let reply = self.call(9, &access(0, offset, 4));
        assert_eq!((reply.error, reply.payload.len()), (0, 20));
        word(&reply.payload, 4)
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        let mut payload = access(0, offset, 4);
        payload.extend(value.to_le_bytes());
        let reply = self.call(10, &payload);
        assert_eq!((reply.error, reply.payload), (0, access(0, offset, 4)));
    }

    fn events(&mut self) -> Vec<DeviceEvent> {
        std::iter::from_fn(|| self.device.take_event()).collect()
    }

    /// Gives MSI vector 0 an eventfd, which is returned.
    fn enable_msi(&mut self) -> File {
        let (ours, theirs) = device_tests::eventfd();
        let set = words(&[20, 0x24, 1, 0, 1]);
        assert_eq!(self.call_with(8, &set, Some(&theirs)).error, 0);
        ours
    }
}

#[test]
fn version_is_0_0_and_the_reply_no_longer_than_the_request() {
    let mut client = client(device());
    let reply = client.call(1, GREETING);
    assert_eq!(reply.payload[..4], [0; 4]);
    assert!(reply.payload.len() <= GREETING.len());
    assert_eq!(
        &reply.payload[4..],
        b"{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":16384}}\0"
    );
}

#[test]
fn a_short_greeting_gets_an_answer_that_is_as_short() {
    let mut client = client(device());
    assert_eq!(client.call(1, &[0, 0, 1, 0]).payload, [0; 4]);
}

#[test]
fn a_version_that_is_wrong_or_out_of_place_is_refused() {
    let mut client = client(device());
    assert_eq!(client.call(4, &[0; 16]).error, 22);
    assert_eq!(client.call(1, &[1, 0, 0, 0]).error, 93);
    assert_eq!(client.call(1, &[]).error, 22);
    assert_eq!(client.call(1, GREETING).error, 0);
    assert_eq!(client.call(1, GREETING).error, 22);
}

#[test]
fn the_device_is_a_resettable_pci_device() {
    let reply = greeted().call(4, &words(&[16, 0, 0, 0]));
    assert_eq!(reply.payload, words(&[16, 3, 9, 5]));
}

// covers: VPCI-BAR-2
#[test]
fn a_mapped_region_is_told_in_two_steps_with_its_file_each_time() {
    let mut client = greeted();
    let short = client.call(5, &words(&[32, 0, 2, 0, 0, 0, 0, 0]));
    // 8 MiB region, 64 bytes of information, capabilities at 32.
    assert_eq!(short.payload, words(&[64, 0xf, 2, 32, 8 << 20, 0, 0, 0]));
    assert_eq!(short.fds.len(), 1);
    let full = client.call(5, &words(&[64, 0, 2, 0, 0, 0, 0, 0]));
    assert_eq!(full.payload[..32], short.payload);
    // One sparse area: the file of 6 MiB.
    assert_eq!(
        full.payload[32..],
        words(&[0x1_0001, 0, 1, 0, 0, 0, 6 << 20, 0])
    );
    let [fd] = <[OwnedFd; 1]>::try_from(full.fds).unwrap();
    assert_eq!(File::from(fd).metadata().unwrap().size(), 6 << 20);
}

// covers: VPCI-BAR-1
#[test]
fn every_region_of_pci_can_be_asked_for() {
    let mut client = greeted();
    let mut region = |index| {
        let reply = client.call(5, &words(&[32, 0, index, 0, 0, 0, 0, 0]));
        (reply.error, reply.payload, reply.fds.len())
    };
    let trapped = |index, len| (0, words(&[32, 3, index, 0, len, 0, 0, 0]), 0);
    assert_eq!(region(0), trapped(0, 0x1_0000));
    assert_eq!(region(7), trapped(7, 4096));
    for index in [3, 5, 6, 8] {
        assert_eq!(region(index), (0, words(&[32, 0, index, 0, 0, 0, 0, 0]), 0));
    }
    assert_eq!(
        region(1),
        (0, words(&[64, 0xf, 1, 32, 0x10_0000, 0, 0, 0]), 1)
    );
    assert_eq!(
        region(4),
        (0, words(&[64, 0xf, 4, 32, 0x2_0000, 0, 0, 0]), 1)
    );
    assert_eq!(region(9), (22, vec![], 0));
    assert_eq!(region(u32::MAX), (22, vec![], 0));
}

// covers: VPCI-VER-3
#[test]
fn a_function_of_version_1_0_has_no_in_flight_memory() {
    let profile = Profile {
        version: spec::version::Version { major: 1, minor: 0 },
        ..Profile::new("hba0", Uuid::nil())
    };
    let mut client = client(VhostPci::new(&profile).unwrap());
    client.call(1, GREETING);
    let reply = client.call(5, &words(&[32, 0, 1, 0, 0, 0, 0, 0]));
    assert_eq!(reply.payload, words(&[32, 0, 1, 0, 0, 0, 0, 0]));
    assert!(reply.fds.is_empty());
}

#[test]
fn only_msi_has_interrupts() {
    let mut client = greeted();
    let mut irq = |index| client.call(7, &words(&[16, 0, index, 0])).payload;
    assert_eq!(irq(0), words(&[16, 0, 0, 0]));
    assert_eq!(irq(1), words(&[16, 1, 1, 16]));
    assert_eq!(irq(2), words(&[16, 0, 2, 0]));
    assert_eq!(irq(3), words(&[16, 0, 3, 0]));
    assert_eq!(irq(4), words(&[16, 0, 4, 0]));
    assert_eq!(client.call(7, &words(&[16, 0, 5, 0])).error, 22);
}

#[test]
fn all_of_configuration_space_is_read_at_once() {
    let reply = greeted().call(9, &access(7, 0, 4096));
    assert_eq!(reply.payload.len(), 16 + 4096);
    assert_eq!(reply.payload[..16], access(7, 0, 4096));
    assert_eq!(reply.payload[16..20], [0xf4, 0x1a, 0xf5, 0x10]);
}

#[test]
fn accesses_outside_a_region_are_refused() {
    let mut client = greeted();
    assert_eq!(client.call(9, &access(7, 4093, 4)).error, 22);
    assert_eq!(client.call(9, &access(3, 0, 4)).error, 22);
    assert_eq!(client.call(9, &access(99, 0, 4)).error, 22);
    assert_eq!(client.call(9, &access(2, 0, 16385)).error, 22);
    let wrapping = words(&[u32::MAX, u32::MAX, 0, 4]);
    assert_eq!(client.call(9, &wrapping).error, 22);
    assert_eq!(client.call(10, &access(0, 0, 4)).error, 22);
}

// covers: VPCI-REG-3
#[test]
fn accesses_that_are_not_whole_registers_change_nothing() {
    let mut client = greeted();
    for (offset, len) in [(0x08, 1), (0x08, 2), (0x0a, 4), (0x09, 8), (0x08, 7)] {
        let mut write = access(0, offset, len);
        write.resize(16 + usize::try_from(len).unwrap(), 0x55);
        assert_eq!(client.call(10, &write).error, 0);
        let read = client.call(9, &access(0, offset, len));
        assert!(read.payload[16..].iter().all(|&byte| byte == 0xff));
    }
    assert_eq!(client.read_register(0x08), 0);
    // Two registers at once are two registers.
    let both = client.call(9, &access(0, 0, 8));
    assert_eq!(both.payload[16..20], *b"VPCI");
    assert_eq!(both.payload[20..], [1, 0, 1, 0]);
}

#[test]
fn memory_that_the_client_did_not_map_reads_as_ones() {
    let mut client = greeted();
    let reply = client.call(9, &access(2, 7 << 20, 8));
    assert_eq!(reply.payload[16..], [0xff; 8]);
    let mut write = access(2, 0, 4);
    write.extend([0; 4]);
    assert_eq!(client.call(10, &write).error, 0);
}

#[test]
fn dma_of_the_storage_vm_is_accepted_and_forgotten() {
    let mut client = greeted();
    let (_, fd) = device_tests::eventfd();
    let map = words(&[32, 3, 0, 0, 0, 0, 0, 1]);
    let reply = client.call_with(2, &map, Some(&fd));
    assert_eq!((reply.error, reply.payload.len()), (0, 0));
    let unmap = words(&[24, 0, 0x0110_0000, 0xffff_ffff, 0, 1]);
    let reply = client.call(3, &unmap);
    assert_eq!((reply.error, reply.payload), (0, unmap));
}

#[test]
fn a_burst_of_unanswered_messages_is_served_to_the_last() {
    let mut client = greeted();
    for _ in 0..100 {
        let mut map = header(1, 2, 32, 0x10);
        map.extend([0; 32]);
        client.stream.write_all(&map).unwrap();
    }
    client.stream.write_all(&header(2, 13, 0, 0)).unwrap();
    assert_eq!(client.ready().unwrap(), Progress::More);
    assert_eq!(client.ready().unwrap(), Progress::Waiting);
    let (id, command, reply) = client.receive();
    assert_eq!((id, command, reply.error), (2, 13, 0));
}

#[test]
fn unknown_commands_are_refused_and_their_payload_is_skipped() {
    let mut client = greeted();
    for command in [0, 6, 11, 12, 14, 15, 16, 0xffff] {
        let reply = client.call(command, &[0x55; 77]);
        assert_eq!((reply.error, reply.payload.len()), (95, 0));
    }
    let oversized = client.call(10, &[0; 100_000]);
    assert_eq!(oversized.error, 22);
    assert_eq!(client.read_register(0).to_le_bytes(), *b"VPCI");
}

#[test]
fn a_reply_from_the_client_is_ignored() {
    let mut client = greeted();
    let mut stray = header(9, 11, 4, 1);
    stray.extend([0; 4]);
    client.stream.write_all(&stray).unwrap();
    assert_eq!(client.read_register(0).to_le_bytes(), *b"VPCI");
}

// covers: VPCI-MBX-1
#[test]
fn an_appliance_attaches_works_and_goes() {
    let mut client = greeted();
    let mut eventfd = client.enable_msi();
    assert_eq!(client.read_register(0x1c), 1);
    client.write_register(0x08, 0x0001_0001);
    client.write_register(0x0c, 1);
    assert_eq!(
        client.events(),
        [
            DeviceEvent::VectorsChanged(1),
            DeviceEvent::BackendUp {
                version: spec::version::CURRENT
            }
        ]
    );
    let sequence = client.device.post(spec::mailbox::Request::Reset).unwrap();
    let mut count = [0; 8];
    eventfd.read_exact(&mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    assert_eq!(client.read_register(0x48), sequence);
    client.write_register(0x1000 + 4 * 3, 1);
    assert_eq!(client.events(), [DeviceEvent::Doorbell { ring: 3 }]);
    // MSI is disabled: the driver of the appliance was closed.
    assert_eq!(client.call(8, &words(&[20, 0x21, 1, 0, 0])).error, 0);
    assert_eq!(
        client.events(),
        [DeviceEvent::BackendDown, DeviceEvent::VectorsChanged(0)]
    );
}

// covers: VPCI-REG-4
#[test]
fn reading_every_register_changes_nothing() {
    let mut client = greeted();
    client.enable_msi();
    client.write_register(0x08, 0x0001_0000);
    client.write_register(0x0c, 1);
    let sequence = client.device.post(spec::mailbox::Request::Reset).unwrap();
    client.write_register(0x50, 0x0001_0002);
    client.events();
    let mut read_all = || -> Vec<u8> {
        (0..0x1_0000)
            .step_by(0x1000)
            .flat_map(|at| client.call(9, &access(0, at, 0x1000)).payload.split_off(16))
            .collect()
    };

    let first = read_all();
    assert_eq!(read_all(), first);

    assert_eq!(client.events(), []);
    assert_eq!(word(&first, 0x0c / 4), 0x81);
    assert_eq!(word(&first, 0x48 / 4), sequence);
    // The request still waits, and the appliance is still attached.
    client.write_register(0x4c, sequence);
    assert_eq!(client.events(), [DeviceEvent::Reply { sequence }]);
}

// covers: VPCI-STS-8
#[test]
fn an_attached_appliance_that_is_refused_is_woken_to_find_out() {
    let mut client = greeted();
    let mut eventfd = client.enable_msi();
    client.write_register(0x08, 0x0001_0000);
    client.write_register(0x0c, 1);
    client.device.post(spec::mailbox::Request::Reset).unwrap();
    let mut count = [0; 8];
    eventfd.read_exact(&mut count).unwrap();
    client.events();

    client.device.refuse(Refusal::Timeout);

    // Non-blocking: this fails if the vector did not fire.
    eventfd.read_exact(&mut count).unwrap();
    assert_eq!(client.read_register(0x0c), 0x40);
    assert_eq!(client.read_register(0x10), 4);
    assert_eq!(client.read_register(0x48), 0);
    assert_eq!(client.events(), [DeviceEvent::BackendDown]);
}

#[test]
fn interrupts_that_do_not_exist_or_carry_no_eventfd_are_refused() {
    let mut client = greeted();
    let (_, fd) = device_tests::eventfd();
    let sixteen = u32::try_from(MAX_VECTORS / 2).unwrap();
    for bad in [
        [20, 0x24, 1, sixteen, 1],
        [20, 0x24, 1, 0, 2],
        [20, 0x24, 1, u32::MAX, u32::MAX],
        [20, 0x24, 2, 0, 1],
        [20, 0x22, 1, 0, 1],
        [20, 0x21, 5, 0, 0],
        [20, 0x21, 1, 0, 1],
    ] {
        let reply = client.call_with(8, &words(&bad), Some(&fd));
        assert_eq!(reply.error, 22, "{bad:?}");
    }
    // Disabling what is not there is nothing wrong.
    for index in [0, 1, 2, 3, 4] {
        let reply = client.call(8, &words(&[20, 0x21, index, 0, 0]));
        assert_eq!(reply.error, 0);
    }
    assert_eq!(client.events(), []);
}

// covers: VPCI-RST-2
#[test]
fn a_device_reset_detaches_the_appliance() {
    let mut client = greeted();
    client.enable_msi();
    client.write_register(0x08, 0x0001_0000);
    client.write_register(0x0c, 1);
    client.events();
    assert_eq!(client.call(13, &[]).error, 0);
    assert_eq!(
        client.events(),
        [DeviceEvent::Reset, DeviceEvent::BackendDown]
    );
    assert_eq!(client.read_register(0x08), 0);
}

// covers: VPCI-BAR-3
#[test]
fn when_the_client_closes_the_function_is_free_again() {
    let mut client = greeted();
    client.enable_msi();
    client.write_register(0x08, 0x0001_0000);
    client.write_register(0x0c, 1);
    client.events();
    let other = || device_tests::memfd(4096, device_tests::SHRINK);
    assert!(client.device.set_tenant_memory(other()).is_err());
    let Client {
        stream,
        mut connection,
        mut device,
        ..
    } = client;
    drop(stream);
    assert!(matches!(connection.ready(&mut device), Err(Closed::Eof)));
    let events: Vec<_> = std::iter::from_fn(|| device.take_event()).collect();
    assert_eq!(
        events,
        [
            DeviceEvent::Reset,
            DeviceEvent::BackendDown,
            DeviceEvent::VectorsChanged(0)
        ]
    );
    device.set_tenant_memory(other()).unwrap();
    assert!(!device.is_open());
}

#[test]
fn a_stream_that_cannot_be_a_message_ends_the_connection() {
    let mut short = greeted();
    let mut bytes = header(1, 4, 0, 0);
    bytes[4] = 15;
    short.stream.write_all(&bytes).unwrap();
    assert!(matches!(short.ready(), Err(Closed::Framing(15))));

    let Client {
        mut stream,
        mut connection,
        mut device,
        ..
    } = greeted();
    stream.write_all(&header(1, 4, 16, 0)).unwrap();
    drop(stream);
    let end = connection.ready(&mut device);
    assert!(matches!(end, Err(Closed::Truncated)));
}

#[test]
fn a_connection_is_dropped_with_nothing_unread() {
    let Client {
        mut stream,
        connection,
        ..
    } = greeted();
    stream.write_all(&header(1, 4, 16, 0)).unwrap();
    drop(connection);
    // ECONNRESET here is what makes QEMU abort.
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
}

#[test]
fn a_connection_is_closed_with_nothing_unanswered() {
    let mut client = greeted();
    client.stream.write_all(&header(7, 13, 0, 0)).unwrap();
    client.stream.write_all(&header(8, 13, 0, 0)).unwrap();
    let Client {
        mut stream,
        connection,
        mut device,
        ..
    } = client;
    connection.close(&mut device);
    assert!(!device.is_open());
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).unwrap();
    assert_eq!(replies.len(), 32);
    assert_eq!((replies[0], replies[16]), (7, 8));
    assert!(stream.write_all(&[0]).is_err());
}

#[test]
fn a_client_that_is_turned_away_gets_its_answer_and_no_reset() {
    let (mut stream, server) = UnixStream::pair().unwrap();
    stream.write_all(&header(3, 1, GREETING.len(), 0)).unwrap();
    stream.write_all(GREETING).unwrap();
    Connection::turn_away(server);
    let mut replies = Vec::new();
    // ECONNRESET here is what makes QEMU abort.
    stream.read_to_end(&mut replies).unwrap();
    assert_eq!(replies.len(), 16);
    assert_eq!((replies[0], word(&replies, 12 / 4)), (3, 16));
}

#[test]
fn a_client_that_does_not_read_stalls_only_itself() {
    let mut client = greeted();
    let mut sent: u32 = 0;
    let mut read = header(0, 9, 16, 0);
    read.extend(access(7, 0, 4096));
    while client.stream.write_all(&read).is_ok() {
        sent += 1;
        let _ = client.ready().unwrap();
    }
    // What was sent is answered once it reads, in order and without a byte missing. The last
    // message may have been cut off by the full socket.
    let mut replies = 0;
    loop {
        let progress = client.ready().unwrap();
        let mut reply = [0; 16 + 16 + 4096];
        match client.stream.read_exact(&mut reply) {
            Ok(()) => {
                assert_eq!(word(&reply, 1), 16 + 16 + 4096);
                replies += 1;
            }
            Err(_) if progress == Progress::Waiting => break,
            Err(_) => {}
        }
    }
    assert_eq!(replies, sent);
}

/// A message of some shape, with its header's size telling the truth.
fn message() -> impl Strategy<Value = (u16, u32, Vec<u8>)> {
    let payload = prop_oneof![
        vec(any::<u8>(), 0..80),
        vec(prop_oneof![0u32..10, any::<u32>()], 0..12).prop_map(|values| words(&values)),
        (0u32..10, 0u32..0x2000, 0u32..64).prop_map(|(region, offset, count)| {
            let mut bytes = access(region, offset, count);
            bytes.resize(16 + usize::try_from(count).unwrap(), 1);
            bytes
        }),
        (16_000usize..20_000).prop_map(|len| vec![0; len]),
    ];
    (
        0u16..18,
        prop_oneof![Just(0u32), Just(0x10), any::<u32>()],
        payload,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_sequence_of_messages_loses_the_thread(messages in vec(message(), 1..20)) {
        let mut client = greeted();
        for (command, flags, payload) in messages {
            let mut bytes = header(1, command, payload.len(), flags);
            bytes.extend(payload);
            client.stream.write_all(&bytes).unwrap();
            prop_assert_eq!(client.ready().unwrap(), Progress::Waiting);
            let wants_reply = flags & 0x1f == 0;
            if wants_reply {
                let (id, replied, _) = client.receive();
                prop_assert_eq!((id, replied), (1, command));
            }
            while client.device.take_event().is_some() {}
        }
        prop_assert_eq!(client.read_register(0).to_le_bytes(), *b"VPCI");
    }

    // covers: VPCI-SEC-4
    #[test]
    fn no_bytes_in_any_pieces_break_the_server(pieces in vec(vec(any::<u8>(), 1..50), 1..40)) {
        let mut client = client(device());
        for piece in pieces {
            if client.stream.write_all(&piece).is_err() || client.ready().is_err() {
                break;
            }
            while client.device.take_event().is_some() {}
        }
    }

    #[test]
    fn a_message_in_pieces_is_the_same_message(cut in 1usize..35) {
        let mut client = greeted();
        let mut bytes = header(3, 9, 16, 0);
        bytes.extend(access(0, 0, 4));
        let cut = cut.min(bytes.len() - 1);
        client.stream.write_all(&bytes[..cut]).unwrap();
        prop_assert_eq!(client.ready().unwrap(), Progress::Waiting);
        client.stream.write_all(&bytes[cut..]).unwrap();
        prop_assert_eq!(client.ready().unwrap(), Progress::Waiting);
        let (_, _, reply) = client.receive();
        prop_assert_eq!(word(&reply.payload, 4).to_le_bytes(), *b"VPCI");
    }
}

/// One message of a client: command, payload, and whether an eventfd comes along.
type Message = (u16, Vec<u8>, bool);

/// What a client does: greets, asks for a file, enables vectors, attaches, rings and resets.
fn session() -> Vec<Message> {
    let write = |offset, value: u32| {
        let mut payload = access(0, offset, 4);
        payload.extend(value.to_le_bytes());
        (10, payload, false)
    };
    let read = |offset| (9, access(0, offset, 4), false);
    let mut config = access(7, 0x3c, 1);
    config.push(11);
    vec![
        (1, GREETING.to_vec(), false),
        (5, words(&[64, 0, 4, 0, 0, 0, 0, 0]), false),
        (8, words(&[20, 0x24, 1, 0, 1]), true),
        write(0x08, 0x0001_0000),
        write(0x0c, 1),
        read(0x0c),
        (10, config, false),
        (9, access(7, 0x3c, 1), false),
        write(0x1000, 1),
        (8, words(&[20, 0x24, 1, 1, 1]), true),
        read(0x1c),
        write(0x54, 1),
        read(0x0c),
    ]
}

/// A server that is killed and gone on for: what outlives it.
struct Mortal {
    stream: UnixStream,
    server: UnixStream,
    journal: Arc<Mutex<Journal>>,
    kept: Kept,
    device: VhostPci,
    connection: Option<Connection>,
    killed: bool,
}

impl Mortal {
    fn new(last: Option<usize>) -> Self {
        let (stream, server) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let kept = Kept::alone();
        let mut device = VhostPci::new(&Profile::new("hba0", Uuid::nil())).unwrap();
        device.keep(&kept).unwrap();
        let memory = device_tests::memfd(6 << 20, device_tests::SHRINK);
        device.set_tenant_memory(kept.keep(memory)).unwrap();
        let journal = Journal::new().unwrap();
        journal.commit(&device.record().unwrap(), b"").unwrap();
        let journal = Arc::new(Mutex::new(journal));
        let theirs = server.try_clone().unwrap();
        let mut connection = Connection::begin(theirs, journal.clone(), kept.clone()).unwrap();
        connection.steps.last = last;
        Self {
            stream,
            server,
            journal,
            kept,
            device,
            connection: Some(connection),
            killed: false,
        }
    }

    /// Serves what is there; where the server is killed, the next one goes on.
    fn serve(&mut self) {
        loop {
            let connection = self.connection.as_mut().unwrap();
            match connection.ready(&mut self.device) {
                Ok(Progress::Waiting) => return,
                Ok(Progress::More) => continue,
                Err(Closed::Io(error)) => assert_eq!(error.to_string(), "killed"),
                Err(other) => panic!("{other}"),
            }
            self.killed = true;
            // A process that is killed drops nothing.
            std::mem::forget(self.connection.take());
            let [record, _] = connection::lock(&self.journal).records().unwrap();
            let mut device = VhostPci::new(&Profile::new("hba0", Uuid::nil())).unwrap();
            device.restore(&record, &self.kept).unwrap();
            self.device = device;
            let server = self.server.try_clone().unwrap();
            let journal = self.journal.clone();
            let next = Connection::resume(server, journal, self.kept.clone(), &self.device);
            self.connection = Some(next.unwrap());
        }
    }

    /// Bytes and number of descriptors of everything that the client was sent.
    fn replies(&self) -> (Vec<u8>, usize) {
        let mut all = Vec::new();
        let mut fds = Vec::new();
        let mut some = [0; 65536];
        while let Ok(received) = socket::receive(&self.stream, &mut some, &mut fds) {
            all.extend(&some[..received.len]);
        }
        (all, fds.len())
    }
}

/// Has a server serve `session`, `pieces` bytes at a time, that is killed at step `last`; what
/// the client was sent, what the function had to tell, and whether it was killed.
fn survive(last: Option<usize>, piece: usize) -> (Vec<u8>, usize, Vec<DeviceEvent>, bool) {
    let mut mortal = Mortal::new(last);
    let mut vectors = Vec::new();
    for (id, (command, payload, with_eventfd)) in (0u16..).zip(session()) {
        let mut message = header(id, command, payload.len(), 0);
        message.extend(payload);
        let mut eventfd = with_eventfd.then(device_tests::eventfd);
        for bytes in message.chunks(piece) {
            let theirs = eventfd.as_ref().map(|(_, theirs)| theirs.as_fd());
            let sent = socket::send(&mortal.stream, bytes, theirs).unwrap();
            assert_eq!(sent, bytes.len());
            vectors.extend(eventfd.take().map(|(ours, _)| ours));
            mortal.serve();
        }
    }
    // The newest eventfds are those that were given, whoever took them.
    mortal.device.kick(2);
    assert_eq!(vectors.len(), 2);
    let fired = vectors
        .iter_mut()
        .map(|vector| vector.read(&mut [0; 8]).is_ok());
    assert_eq!(fired.collect::<Vec<_>>(), [false, true]);
    let (bytes, fds) = mortal.replies();
    let events = std::iter::from_fn(|| mortal.device.take_event());
    // A doorbell is not remembered: every ring is called after a handover.
    let events = events.filter(|event| !matches!(event, DeviceEvent::Doorbell { .. }));
    (bytes, fds, events.collect(), mortal.killed)
}

#[test]
fn a_server_killed_at_any_moment_has_each_message_answered_once_and_right() {
    for piece in [7, usize::MAX] {
        let (replies, fds, events, _) = survive(None, piece);
        assert_eq!(fds, 1);
        let mut deaths = 0;
        for last in 1.. {
            let (bytes, count, told, killed) = survive(Some(last), piece);
            assert!(bytes == replies, "killed at step {last}");
            assert_eq!((count, &told), (fds, &events), "killed at step {last}");
            if !killed {
                break;
            }
            deaths += 1;
        }
        // Each of the 13 messages has at least: receive twice, act, write down, send.
        assert!(deaths > 13 * 8, "only {deaths} moments");
    }
}
