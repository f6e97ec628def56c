//! Without file descriptors a sidecar waits, and goes on when there are some.

use std::time::Duration;

use outrigger_tests::mesh::{Sidecar, id};
use outrigger_tests::program::Program;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{app, authority, raise_file_limit, soon, until};

#[tokio::test]
async fn the_soft_limit_of_open_files_is_raised() {
    let authority = authority().await;
    let orders = Sidecar::new("orders").protects("127.0.0.1:9".parse().unwrap());
    let orders = Program::start("orders", orders, &authority, Some((64, 512))).await;
    assert_eq!(orders.file_limits(), (512, 512));
}

#[tokio::test]
async fn without_file_descriptors_it_waits_and_recovers() {
    const LIMIT: u64 = 100;
    raise_file_limit();
    let authority = authority().await;
    let server = app(async |mut stream| {
        // Clients that were never served are what this is about.
        let mut said = Vec::new();
        if stream.read_to_end(&mut said).await.is_ok() {
            let _ = stream.write_all(&said).await;
        }
    })
    .await;
    let orders = Sidecar::new("orders").protects(server);
    let orders = Program::start("orders", orders, &authority, Some((LIMIT, LIMIT))).await;
    let web = Sidecar::new("web").calls("orders", "opaque", &[(orders.inbound[0], Some(id("orders")))], "{}");
    let web = Program::start("web", web, &authority, None).await;
    let works = async || {
        let mut client = TcpStream::connect(web.outbound[0]).await.unwrap();
        client.write_all(b"\0word").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.is_ok() && heard == b"\0word"
    };
    assert!(soon(works()).await);

    let flood: Vec<_> = futures_util::future::join_all((0..300).map(|_| TcpStream::connect(orders.inbound[0]))).await;
    until("no file is left", async || orders.said("cannot accept connections") > 0).await;
    // It goes on for a while: it waits and does not spin, and the log is not full of it.
    let before = orders.cpu();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = orders.cpu() - before;
    assert!(spent < Duration::from_millis(500), "{spent:?}");
    assert_eq!(orders.said("cannot accept connections"), 1);
    drop(flood);
    until("new connections work", works).await;
    until("the files are free", async || orders.files().await < 40).await;
}
