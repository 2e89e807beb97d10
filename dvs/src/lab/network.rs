//! The lab's network as root: a namespace per node, and a bridge that has a namespace of its own.
//!
//! Nothing is made in the namespace of the caller, and no packet passes it. A namespace lives as
//! long as a descriptor or a process in it (the lab's switch has them all), so the network needs no tidying: it ends with
//! the lab.

use anyhow::{Context, Result, anyhow};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

/// Bits of the network part of the nodes' addresses.
const PREFIX: u8 = 24;

/// The network of a lab, held open by descriptors of its namespaces.
#[derive(Debug)]
pub(crate) struct Network {
    /// The bridge's namespace. A process must stay in it when this value is dropped.
    pub(crate) switch: File,
    /// The namespace of each node, the first node first.
    pub(crate) nodes: Vec<File>,
}

/// Address of node number `node` inside the lab.
pub(crate) fn address(node: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 83, 0, 0)) + u32::from(node))
}

impl Network {
    /// Makes the bridge and `count` nodes, each connected to it by `eth0` with its address.
    ///
    /// # Errors
    /// What the kernel refused, and for which node.
    pub(crate) fn create(count: u16) -> Result<Network> {
        let switch = new_namespace()?;
        let nodes = (0..count).map(|_| new_namespace()).collect::<Result<Vec<File>>>()?;
        let ends: Vec<File> =
            nodes.iter().map(File::try_clone).collect::<std::io::Result<Vec<File>>>()?;
        inside(&switch, async move |links| make_bridge(&links, &ends).await)
            .context("cannot make the lab's bridge")?;
        for (node, namespace) in (1..).zip(&nodes) {
            inside(namespace, async move |links| make_node(&links, node).await)
                .with_context(|| format!("cannot set up the network of node n{node}"))?;
        }
        Ok(Network { switch, nodes })
    }
}

/// Takes the cable of a node out of the bridge in the namespace `switch`, or puts it in again.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn connect(switch: &File, node: u16, is_connected: bool) -> Result<()> {
    inside(switch, async move |links| {
        let name = format!("n{node}");
        if is_connected { links.up(&name).await } else { links.down(&name).await }
    })
    .with_context(|| format!("cannot change the network of node {node}"))
}

/// What the node in the namespace `sender` sends to node `to` gets lost, silently, or reaches it again. The other
/// direction is left alone.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn lose(sender: &File, to: u16, is_lost: bool) -> Result<()> {
    inside(sender, async move |links| links.mislead("eth0", address(to), is_lost).await)
        .with_context(|| format!("cannot change what reaches node {to}"))
}

/// A hardware address that nobody has (locally administered): frames for it reach every node, and none takes them.
const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A new network namespace without anything in it.
fn new_namespace() -> Result<File> {
    let made = std::thread::spawn(|| -> Result<File> {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    });
    made.join().map_err(|_| anyhow!("the thread that makes a network namespace panicked"))?
}

/// Runs `work` on a thread that has entered `namespace`, with a netlink socket of that namespace.
fn inside<W>(namespace: &File, work: W) -> Result<()>
where
    W: AsyncFnOnce(Links) -> Result<()> + Send + 'static,
{
    let namespace = namespace.try_clone()?;
    let done = std::thread::spawn(move || -> Result<()> {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let outcome = work(Links { handle }).await;
            connection.abort();
            outcome
        })
    });
    done.join().map_err(|_| anyhow!("the thread that sets up the network panicked"))?
}

const BRIDGE: &str = "dvs0";

/// The bridge, and one pair of interfaces per node: one end stays, the other moves to the node.
async fn make_bridge(links: &Links, nodes: &[File]) -> Result<()> {
    links.add_bridge(BRIDGE).await?;
    links.up(BRIDGE).await?;
    for (node, namespace) in (1u16..).zip(nodes) {
        let (here, there) = (format!("n{node}"), format!("to-n{node}"));
        links.add_pair(&here, &there).await?;
        links.attach(&here, BRIDGE).await?;
        links.up(&here).await?;
        links.send(&there, namespace).await?;
    }
    Ok(())
}

async fn make_node(links: &Links, node: u16) -> Result<()> {
    links.up("lo").await?;
    links.rename(&format!("to-n{node}"), "eth0").await?;
    links.add_address("eth0", address(node)).await?;
    links.up("eth0").await
}

/// The interfaces of the namespace that the current thread is in.
struct Links {
    handle: Handle,
}

impl Links {
    async fn add_bridge(&self, name: &str) -> Result<()> {
        Ok(self.handle.link().add(LinkBridge::new(name).build()).execute().await?)
    }

    async fn add_pair(&self, name: &str, peer: &str) -> Result<()> {
        Ok(self.handle.link().add(LinkVeth::new(name, peer).build()).execute().await?)
    }

    async fn attach(&self, name: &str, bridge: &str) -> Result<()> {
        let bridge = if_nametoindex(bridge)?;
        self.set(name, |link| link.controller(bridge)).await
    }

    async fn send(&self, name: &str, namespace: &File) -> Result<()> {
        self.set(name, |link| link.setns_by_fd(namespace.as_raw_fd())).await
    }

    async fn rename(&self, name: &str, new: &str) -> Result<()> {
        self.set(name, |link| link.name(new)).await
    }

    async fn up(&self, name: &str) -> Result<()> {
        self.set(name, LinkMessageBuilder::up).await
    }

    async fn down(&self, name: &str) -> Result<()> {
        self.set(name, LinkMessageBuilder::down).await
    }

    async fn set(
        &self,
        name: &str,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        let link = LinkUnspec::new_with_index(if_nametoindex(name)?);
        Ok(self.handle.link().set(change(link).build()).execute().await?)
    }

    /// Sends what is for `to` to nobody, or has the kernel find out anew where it is.
    async fn mislead(&self, name: &str, to: Ipv4Addr, is_misled: bool) -> Result<()> {
        let neighbours = self.handle.neighbours();
        let entry = neighbours.add(if_nametoindex(name)?, to.into());
        let mut entry = entry.link_layer_address(&NOBODY).replace();
        if is_misled {
            return Ok(entry.execute().await?);
        }
        match neighbours.del(entry.message_mut().clone()).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENOENT => {
                Ok(())
            }
            result => Ok(result?),
        }
    }

    async fn add_address(&self, name: &str, address: Ipv4Addr) -> Result<()> {
        let index = if_nametoindex(name)?;
        Ok(self.handle.address().add(index, IpAddr::V4(address), PREFIX).execute().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    fn in_namespace<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            work.join().unwrap()
        })
    }

    #[test]
    fn nodes_reach_each_other_and_the_caller_sees_no_interface() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: network namespaces need root");
            return;
        }
        let before = nix::net::if_::if_nameindex().unwrap().iter().count();
        let network = Network::create(3).unwrap();
        assert_eq!(nix::net::if_::if_nameindex().unwrap().iter().count(), before);
        let listener =
            in_namespace(&network.nodes[2], || TcpListener::bind((address(3), 7000)).unwrap());
        let mut client =
            in_namespace(&network.nodes[0], || TcpStream::connect((address(3), 7000)).unwrap());
        let (mut server, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), IpAddr::V4(address(1)));
        client.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[test]
    fn what_one_node_sends_to_another_gets_lost_and_what_it_hears_does_not() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: network namespaces need root");
            return;
        }
        let network = Network::create(2).unwrap();
        let [one, two] = [0, 1].map(|node| {
            let own = address(u16::try_from(node).unwrap() + 1);
            let socket = in_namespace(&network.nodes[node], || UdpSocket::bind((own, 7000)));
            let socket = socket.unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
            socket
        });
        let mut bytes = [0; 1];
        let mut arrives = |from: &UdpSocket, at: &UdpSocket, to: u16, byte: u8| {
            from.send_to(&[byte], (address(to), 7000)).unwrap();
            at.recv(&mut bytes).unwrap();
            bytes[0]
        };
        assert_eq!(arrives(&one, &two, 2, 1), 1);
        lose(&network.nodes[0], 2, true).unwrap();
        one.send_to(&[2], (address(2), 7000)).unwrap();
        assert_eq!(arrives(&two, &one, 1, 3), 3, "the other direction is as it was");
        lose(&network.nodes[0], 2, false).unwrap();
        lose(&network.nodes[0], 2, false).unwrap();
        assert_eq!(arrives(&one, &two, 2, 4), 4, "2 was lost");
    }
}
