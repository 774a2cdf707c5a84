//! The server against somebody else's client: the crate `vfio_user`.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test, as which clippy does not know them"
)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use host_shim::device::{DeviceEvent, Profile, VhostPci};
use host_shim::vfio_user::{Closed, Connection};
use spec::device;
use uuid::Uuid;
use vfio_user::Client;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::tempdir::TempDir;

/// Serves one client to its end; returns what the function had to tell.
fn serve(listener: &UnixListener) -> Vec<DeviceEvent> {
    let mut device = VhostPci::new(&Profile::new("hba0", Uuid::nil())).unwrap();
    let mut connection = Connection::new(listener.accept().unwrap().0).unwrap();
    let mut events = Vec::new();
    loop {
        let result = connection.ready(&mut device);
        events.extend(std::iter::from_fn(|| device.take_event()));
        match result {
            Ok(_) => thread::sleep(Duration::from_millis(1)),
            Err(Closed::Eof) => return events,
            Err(other) => panic!("{other}"),
        }
    }
}

fn connect(path: &Path) -> Client {
    Client::new(path).unwrap()
}

fn read_register(client: &mut Client, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    client.region_read(0, offset, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

fn write_register(client: &mut Client, offset: u64, value: u32) {
    client
        .region_write(0, offset, &value.to_le_bytes())
        .unwrap();
}

#[test]
fn another_client_attaches_maps_session_memory_and_goes() {
    let dir = TempDir::new().unwrap();
    let path = dir.as_path().join("vfio-user.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || serve(&listener));

    let mut client = connect(&path);
    assert_eq!(
        read_register(&mut client, device::MAGIC),
        device::MAGIC_VALUE
    );
    let session = client.region(4).unwrap();
    assert_eq!(session.size, 0x2_0000);
    assert_eq!(session.sparse_areas[0].size, 0x2_0000);
    let file: &File = session.file_offset.as_ref().unwrap().file();
    let mut need_wakeup = [0; 4];
    file.read_exact_at(&mut need_wakeup, 0x4000).unwrap();
    assert_eq!(need_wakeup, [1, 0, 0, 0]);

    let vectors: Vec<EventFd> = (0..16).map(|_| EventFd::new(0).unwrap()).collect();
    let fds: Vec<_> = vectors.iter().map(AsRawFd::as_raw_fd).collect();
    client.set_irqs(1, 0x24, 0, 16, &fds).unwrap();
    assert_eq!(read_register(&mut client, device::VECTORS), 16);
    write_register(&mut client, device::DRIVER_VERSION, 0x0001_0000);
    write_register(&mut client, device::STATUS, device::status::BACKEND_UP);
    assert_eq!(
        read_register(&mut client, device::STATUS),
        device::status::BACKEND_UP
    );
    client.dma_unmap(0, 4096).unwrap();
    client.reset().unwrap();
    assert_eq!(read_register(&mut client, device::STATUS), 0);
    client.shutdown().unwrap();
    drop(client);

    // How much of the rest is told depends on how many messages one turn served.
    assert!(server.join().unwrap().contains(&DeviceEvent::Reset));
}
