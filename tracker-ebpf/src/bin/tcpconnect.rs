//! The kernel half of the example `tcpconnect`: one record for each TCP connection that is begun on the host.
#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

#[path = "../../../tracker/examples/tcpconnect/event.rs"]
mod event;
#[path = "../example.rs"]
mod example;
#[path = "../../../tracker/examples/common/head.rs"]
mod head;

use event::Connect;
use example::{EVENTS, count_lost, here, inum, load, write_head};

/// Where the running kernel keeps fields; see `example.rs`. Those of `struct sock_common` from the beginning of the socket.
#[unsafe(no_mangle)]
static SOCK_FAMILY: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static SOCK_DADDR: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static SOCK_RCV_SADDR: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static SOCK_V6_DADDR: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static SOCK_V6_RCV_SADDR: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static SOCK_DPORT: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static SOCK_NET: Global<u64> = Global::new(u64::MAX);
#[unsafe(no_mangle)]
static NET_NS: Global<u64> = Global::new(u64::MAX);

/// `TCP_SYN_SENT` and `TCP_CLOSE` of `net/tcp_states.h`.
const SYN_SENT: i32 = 2;
const CLOSE: i32 = 7;

/// `inet_sock_set_state(sk, oldstate, newstate)`. Into `SYN_SENT` a socket gets by the system call of the task that connects,
/// which is the current one: before the first packet, when both addresses are known and the own port is not.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn on_connect(ctx: BtfTracePointContext) -> i32 {
    let (socket, former, state): (*const u8, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if state != SYN_SENT || former != CLOSE {
        return 0;
    }
    // SAFETY: takes nothing; the task is there until this program has ended.
    let task: *const u8 = unsafe { bpf_get_current_task_btf() }.cast();
    let Some(here) = here(task) else { return 0 };
    let Some(mut record) = EVENTS.reserve::<Connect>(0) else {
        count_lost();
        return 0;
    };
    let net: *const u8 = load(socket, SOCK_NET.load());
    let connect = record.as_mut_ptr();
    // SAFETY: `connect` is reserved with the size of its type, and aligned to 8 bytes.
    unsafe {
        (*connect).to_v6 = [load(socket, SOCK_V6_DADDR.load()), load(socket, SOCK_V6_DADDR.load() + 8)];
        (*connect).from_v6 = [load(socket, SOCK_V6_RCV_SADDR.load()), load(socket, SOCK_V6_RCV_SADDR.load() + 8)];
        (*connect).to_v4 = load(socket, SOCK_DADDR.load());
        (*connect).from_v4 = load(socket, SOCK_RCV_SADDR.load());
        (*connect).netns = inum(net, NET_NS.load());
        (*connect).family = load(socket, SOCK_FAMILY.load());
        (*connect).port = load(socket, SOCK_DPORT.load());
        write_head(&raw mut (*connect).head, here);
    }
    record.submit(0);
    0
}
