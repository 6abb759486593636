//! Frames by hand, as a client would write them.

use proptest::prelude::*;

use super::*;

fn syn(id: u32, headers: &mut Deflater, fields: &[(&str, &str)], fin: bool) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend([0u8; 6]);
    body.extend(headers.write(fields).unwrap());
    let mut frame = control(SYN_STREAM, &body);
    frame[4] = u8::from(fin);
    frame
}

fn data(id: u32, text: &str, fin: bool) -> Vec<u8> {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    render(&Frame::Data { id, bytes, fin }, &mut Deflater::new()).unwrap()
}

#[test]
fn the_dictionary_is_spdys() {
    let (mut a, mut b) = (1u32, 0u32);
    for byte in dictionary() {
        a = (a + u32::from(byte)) % 65521;
        b = (b + a) % 65521;
    }
    assert_eq!((b << 16) | a, 0xe3c6_a7c2);
    // A zlib stream with a dictionary names it right behind its two bytes of header.
    assert_eq!(Deflater::new().write(&[]).unwrap()[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
}

#[tokio::test]
async fn streams_open_carry_data_both_ways_and_close() {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let (mut streams, sender) = serve(server);
    let mut headers = Deflater::new();
    client.write_all(&syn(1, &mut headers, &[("streamtype", "error")], false)).await.unwrap();
    client.write_all(&syn(3, &mut headers, &[("StreamType", "stdin")], false)).await.unwrap();
    client.write_all(&data(3, "hello", false)).await.unwrap();
    client.write_all(&data(3, " world", true)).await.unwrap();
    client.write_all(&control(PING, &7u32.to_be_bytes())).await.unwrap();
    let first = streams.recv().await.unwrap();
    assert_eq!((first.id, first.header("streamtype")), (1, "error"));
    let mut stdin = streams.recv().await.unwrap();
    assert_eq!((stdin.id, stdin.header("streamtype")), (3, "stdin"));
    let mut got = Vec::new();
    while let Some(piece) = stdin.data.recv().await {
        got.extend_from_slice(&piece.bytes);
    }
    assert_eq!(got, b"hello world");
    let bytes = Bytes::from_static(b"out");
    sender.send(Frame::Data { id: 1, bytes, fin: true }).await.unwrap();
    drop((sender, streams, first));
    let mut answer = Vec::new();
    client.shutdown().await.unwrap();
    client.read_to_end(&mut answer).await.unwrap();
    let text = answer.windows(3).any(|w| w == b"out");
    let replies = answer.windows(4).filter(|w| *w == [0x80, 3, 0, 2]).count();
    assert!(text && replies == 2 && answer.windows(4).any(|w| *w == [0x80, 3, 0, 6]), "{answer:?}");
}

#[tokio::test]
async fn what_waits_is_bounded_by_the_connection_not_by_its_streams() {
    let (mut client, server) = tokio::io::duplex(1024);
    let (mut streams, _sender) = serve(server);
    let mut headers = Deflater::new();
    let mut readers = Vec::new();
    for id in [1, 3, 5] {
        client.write_all(&syn(id, &mut headers, &[], false)).await.unwrap();
        readers.push(streams.recv().await.unwrap());
    }
    let text = "x".repeat(WAITING_BYTES_MAX);
    client.write_all(&data(1, &text, false)).await.unwrap();
    let third = data(3, &text, true);
    let mut sending = Box::pin(client.write_all(&third));
    let blocked = tokio::time::timeout(std::time::Duration::from_millis(50), &mut sending);
    assert!(blocked.await.is_err());
    drop(readers.remove(0));
    let read = async {
        let mut count = 0;
        while let Some(piece) = readers[0].data.recv().await {
            assert!(piece.bytes.len() <= DATA_BYTES_MAX);
            count += piece.bytes.len();
        }
        count
    };
    let (sent, count) = tokio::join!(sending, read);
    sent.unwrap();
    assert_eq!(count, WAITING_BYTES_MAX);
}

#[tokio::test]
async fn streams_closed_by_the_client_count_while_they_are_held() {
    let (opened, mut streams) = mpsc::channel(2 * STREAMS_MAX);
    let (sender, _frames) = mpsc::channel(2 * STREAMS_MAX);
    let mut headers = Deflater::new();
    let mut frames = |fin: bool| -> Vec<u8> {
        let ids = (1..).step_by(2).take(STREAMS_MAX);
        let mut all: Vec<u8> = ids.flat_map(|id| syn(id, &mut headers, &[], fin)).collect();
        all.extend((1..).step_by(2).take(STREAMS_MAX).flat_map(|id| data(id, "", true)));
        all
    };
    let (first, second) = (frames(true), frames(false));
    let (mut client, server) = tokio::io::duplex(first.len() + second.len());
    let reading = tokio::spawn(read(server, opened, sender.downgrade()));
    client.write_all(&first).await.unwrap();
    let mut held = Vec::new();
    while held.len() < STREAMS_MAX {
        held.push(streams.recv().await.unwrap());
    }
    held.clear();
    client.write_all(&second).await.unwrap();
    while held.len() < STREAMS_MAX {
        held.push(streams.recv().await.unwrap());
    }
    client.write_all(&syn(9999, &mut headers, &[], true)).await.unwrap();
    assert!(matches!(reading.await.unwrap(), Err(SpdyError::TooManyStreams)));
}

#[test]
fn headers_are_few() {
    let names: Vec<String> = (0..=HEADERS_MAX).map(|number| number.to_string()).collect();
    let fields: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    let read = |fields: &[(&str, &str)]| {
        Inflater::new().read(&Deflater::new().write(fields).unwrap()).map(|read| read.len())
    };
    assert_eq!(read(&fields[1..]).unwrap(), names.len() - 1);
    assert!(matches!(read(&fields), Err(SpdyError::TooManyHeaders(_))));
}

proptest! {
    #[test]
    fn headers_survive_the_way_there(fields in proptest::collection::vec(("[a-z]{1,20}", ".{0,200}"), 0..8)) {
        let (mut out, mut back) = (Deflater::new(), Inflater::new());
        for _ in 0..3 {
            let pairs: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let read = back.read(&out.write(&pairs).unwrap()).unwrap();
            let expected: HashMap<String, String> = fields.iter().cloned().collect();
            prop_assert_eq!(read, expected);
        }
    }

    #[test]
    fn no_bytes_from_outside_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (opened, mut streams) = mpsc::channel(512);
            let (sender, _frames) = mpsc::channel(512);
            let ended = read(&bytes[..], opened, sender.downgrade()).await;
            while streams.recv().await.is_some() {}
            drop(ended);
        });
        Inflater::new().read(&bytes).ok();
    }
}
