//! Reading a task: loads that the verifier checks by the kernel's own types.
//!
//! Pointers here are the kernel's: a tracepoint's argument, or what was loaded from one. The verifier knows their types,
//! and makes a load through one that is null or stale give 0 instead of a fault: chains need no checks in between.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use tracker_common::layout::{ABSENT, UPID_LEN};
use tracker_common::record::TaskFacts;

use crate::setting;

/// A pointer into the kernel that the verifier knows the type of.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Kernel(pub *const u8);

impl Kernel {
    /// Loads a number or pointer at a constant offset.
    #[inline(always)]
    pub fn load<T: Copy>(self, offset: u64) -> T {
        // SAFETY: the verifier accepts the program only if a `T` may be read there.
        unsafe { core::ptr::read_volatile(self.0.add(offset as usize).cast()) }
    }

    /// Loads a pointer at a constant offset.
    #[inline(always)]
    pub fn follow(self, offset: u64) -> Kernel {
        Kernel(self.load(offset))
    }
}

/// A `struct task_struct`.
#[derive(Clone, Copy)]
pub struct Task {
    task: Kernel,
    nsproxy: Kernel,
    mnt_ns: Kernel,
    /// Inode number of its mount namespace; 0 when it has given up its namespaces.
    pub mntns: u32,
}

impl Task {
    /// Reads as much of a task as tells whether it is of interest.
    #[inline(always)]
    pub fn new(task: *const u8) -> Self {
        let task = Kernel(task);
        let nsproxy = task.follow(setting!(layout.task_nsproxy));
        let mnt_ns = nsproxy.follow(setting!(layout.nsproxy_mnt_ns));
        let mntns = inum(mnt_ns, setting!(layout.mnt_namespace_ns));
        Self { task, nsproxy, mnt_ns, mntns }
    }

    /// Whether it is in a mount namespace that is not the host's. Most tasks of a host leave here.
    #[inline(always)]
    pub fn is_contained(&self) -> bool {
        self.mntns != setting!(host_mntns) as u32 && self.mntns != 0
    }

    /// Process id.
    #[inline(always)]
    pub fn tgid(&self) -> u32 {
        self.task.load(setting!(layout.task_tgid))
    }

    /// Thread id.
    #[inline(always)]
    pub fn pid(&self) -> u32 {
        self.task.load(setting!(layout.task_pid))
    }

    /// Whether its process's first thread has given up its namespaces, as an ended one has.
    #[inline(always)]
    pub fn is_leader_gone(&self) -> bool {
        let leader = self.task.follow(setting!(layout.task_group_leader));
        leader.load::<u64>(setting!(layout.task_nsproxy)) == 0
    }

    /// All facts but the name.
    #[inline(always)]
    pub fn facts(&self) -> TaskFacts {
        let task = self.task;
        let parent = task.follow(setting!(layout.task_real_parent));
        let parent_leader = parent.follow(setting!(layout.task_group_leader));
        let leader = task.follow(setting!(layout.task_group_leader));
        let cred = task.follow(setting!(layout.task_real_cred));
        let user_ns = cred.follow(setting!(layout.cred_user_ns));
        let net_ns = self.nsproxy.follow(setting!(layout.nsproxy_net_ns));
        let cgroup_ns = self.nsproxy.follow(setting!(layout.nsproxy_cgroup_ns));
        let cgroup = task.follow(setting!(layout.task_cgroups)).follow(setting!(layout.css_set_dfl_cgrp));
        let (pid_in_ns, pidns) = self.own_pid();
        TaskFacts {
            mntns_id: self.mntns_id(),
            cgroup_id: cgroup_id(cgroup),
            start_ns: leader.load(setting!(layout.task_start_boottime)),
            parent_start_ns: parent_leader.load(setting!(layout.task_start_boottime)),
            tgid: self.tgid(),
            pid: self.pid(),
            parent_tgid: parent.load(setting!(layout.task_tgid)),
            pid_in_ns,
            uid: cred.load(setting!(layout.cred_uid)),
            flags: task.load(setting!(layout.task_flags)),
            mntns: self.mntns,
            netns: inum(net_ns, setting!(layout.net_ns)),
            pidns,
            cgroupns: inum(cgroup_ns, setting!(layout.cgroup_namespace_ns)),
            userns: inum(user_ns, setting!(layout.user_namespace_ns)),
            reserved: 0,
            comm: [0; 16],
        }
    }

    /// The address of its name.
    #[inline(always)]
    pub fn comm(&self) -> *const u8 {
        self.task.0.wrapping_add(setting!(layout.task_comm) as usize)
    }

    /// Whether no thread of the process is left but this one, which is ending.
    #[inline(always)]
    pub fn is_last_thread(&self) -> bool {
        let signal = self.task.follow(setting!(layout.task_signal));
        signal.load::<u32>(setting!(layout.signal_live)) == 0
    }

    /// What `wait` will report about the process, when its last thread is ending.
    #[inline(always)]
    pub fn exit_status(&self) -> u32 {
        const SIGNAL_GROUP_EXIT: u32 = 4;
        let signal = self.task.follow(setting!(layout.task_signal));
        let flags: u32 = signal.load(setting!(layout.signal_flags));
        let group_exit_code: u32 = signal.load(setting!(layout.signal_group_exit_code));
        let exit_code: u32 = self.task.load(setting!(layout.task_exit_code));
        if flags & SIGNAL_GROUP_EXIT != 0 { group_exit_code } else { exit_code }
    }

    /// Whether the out-of-memory killer chose the process; `None` where the kernel does not keep that.
    #[inline(always)]
    pub fn is_oom_victim(&self) -> Option<bool> {
        if setting!(layout.signal_oom_mm) == ABSENT {
            return None;
        }
        let signal = self.task.follow(setting!(layout.task_signal));
        Some(signal.load::<u64>(setting!(layout.signal_oom_mm)) != 0)
    }

    #[inline(always)]
    fn mntns_id(&self) -> u64 {
        if setting!(layout.ns_common_ns_id) != ABSENT {
            self.mnt_ns.load(setting!(layout.mnt_namespace_ns) + setting!(layout.ns_common_ns_id))
        } else if setting!(layout.mnt_namespace_seq) != ABSENT {
            self.mnt_ns.load(setting!(layout.mnt_namespace_seq))
        } else {
            0
        }
    }

    /// Its pid in its own pid namespace, and that namespace.
    #[inline(always)]
    fn own_pid(&self) -> (u32, u32) {
        let pid = self.task.follow(setting!(layout.task_thread_pid));
        let level: u32 = pid.load(setting!(layout.pid_level));
        // At a variable offset only the helper may read.
        let offset = setting!(layout.pid_numbers) + u64::from(level & 0x3f) * UPID_LEN;
        let upid = pid.0.wrapping_add(offset as usize);
        let field = |offset: u64| upid.wrapping_add(offset as usize);
        // SAFETY: the helper checks the address.
        let number = unsafe { bpf_probe_read_kernel(field(setting!(layout.upid_nr)).cast::<u32>()) };
        // SAFETY: the helper checks the address.
        let ns = unsafe { bpf_probe_read_kernel(field(setting!(layout.upid_ns)).cast::<*const u8>()) };
        let Ok(ns) = ns else { return (0, 0) };
        let inum = ns.wrapping_add((setting!(layout.pid_namespace_ns) + setting!(layout.ns_common_inum)) as usize);
        // SAFETY: the helper checks the address.
        let pidns = unsafe { bpf_probe_read_kernel(inum.cast::<u32>()) };
        (number.unwrap_or(0), pidns.unwrap_or(0))
    }
}

/// Id of a cgroup in its hierarchy.
#[inline(always)]
pub fn cgroup_id(cgroup: Kernel) -> u64 {
    cgroup.follow(setting!(layout.cgroup_kn)).load(setting!(layout.kernfs_node_id))
}

/// Id of a cgroup's hierarchy.
#[inline(always)]
pub fn cgroup_hierarchy(cgroup: Kernel) -> u32 {
    cgroup.follow(setting!(layout.cgroup_root)).load(setting!(layout.cgroup_root_hierarchy_id))
}

/// Inode number of a namespace whose `ns_common` is at this offset.
#[inline(always)]
fn inum(namespace: Kernel, ns_common: u64) -> u32 {
    namespace.load(ns_common + setting!(layout.ns_common_inum))
}
