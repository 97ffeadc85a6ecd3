//! Where the running kernel keeps the fields that the probes read, and what else they are told before they load.
//!
//! rustc emits no relocations that a loader could resolve, so user space finds each offset in the kernel's own type
//! information and writes this struct over the probes' read-only global before it is frozen. The verifier then sees
//! constants: loads through them are checked like a C program's, and branches on them are decided while verifying.

use core::mem::size_of;

/// The value of an offset that this kernel does not have. The verifier refuses to load through it.
pub const ABSENT: u64 = u64::MAX;

/// `sizeof(struct upid)`. A constant, and a power of two: Linux 6.1 loses the bounds of a product of two registers.
pub const UPID_LEN: u64 = 16;

macro_rules! layout {
    ($($(#[$doc:meta])* $name:ident = $kind:ident $structure:literal . $field:literal),* $(,)?) => {
        /// Byte offsets of fields, each [`ABSENT`] until it was found.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Layout {
            $($(#[$doc])* #[doc = concat!("\n\n`", $structure, ".", $field, "`.")] pub $name: u64,)*
        }

        impl Layout {
            /// Nothing found yet.
            pub const UNKNOWN: Layout = Layout { $($name: ABSENT,)* };

            /// The fields to find, in the order in which [`Layout::set`] numbers them.
            pub const FIELDS: &'static [Field] =
                &[$(Field { structure: $structure, field: $field, need: Need::$kind },)*];

            /// Sets the offset of the field at this place of [`Layout::FIELDS`].
            pub fn set(&mut self, place: usize, offset: u64) {
                if let Some(slot) = [$(&mut self.$name,)*].into_iter().nth(place) {
                    *slot = offset;
                }
            }
        }
    };
}

/// A field to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The struct it is in, as the kernel spells it.
    pub structure: &'static str,
    /// Its name; it may be inside an anonymous struct or union.
    pub field: &'static str,
    /// Whether the probes can do without.
    pub need: Need,
}

/// Whether the probes can do without a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// No.
    Must,
    /// Yes; what it would tell is then absent.
    May,
}

layout! {
    /// A task's namespaces but for user and pid.
    task_nsproxy = Must "task_struct"."nsproxy",
    /// Process id.
    task_tgid = Must "task_struct"."tgid",
    /// Thread id.
    task_pid = Must "task_struct"."pid",
    /// `PF_…` flags.
    task_flags = Must "task_struct"."flags",
    /// Who gets its exit.
    task_real_parent = Must "task_struct"."real_parent",
    /// The process's first thread, also after that has ended.
    task_group_leader = Must "task_struct"."group_leader",
    /// Start in boot time.
    task_start_boottime = Must "task_struct"."start_boottime",
    /// Cgroup membership.
    task_cgroups = Must "task_struct"."cgroups",
    /// Objective credentials.
    task_real_cred = Must "task_struct"."real_cred",
    /// Its ids, one per pid namespace.
    task_thread_pid = Must "task_struct"."thread_pid",
    /// What its threads share.
    task_signal = Must "task_struct"."signal",
    /// What the thread ended with.
    task_exit_code = Must "task_struct"."exit_code",
    /// Its name.
    task_comm = Must "task_struct"."comm",
    /// Mount namespace.
    nsproxy_mnt_ns = Must "nsproxy"."mnt_ns",
    /// Net namespace.
    nsproxy_net_ns = Must "nsproxy"."net_ns",
    /// Cgroup namespace.
    nsproxy_cgroup_ns = Must "nsproxy"."cgroup_ns",
    /// What all namespaces have in common.
    mnt_namespace_ns = Must "mnt_namespace"."ns",
    /// Never-reused id, up to Linux 6.17.
    mnt_namespace_seq = May "mnt_namespace"."seq",
    /// What all namespaces have in common.
    net_ns = Must "net"."ns",
    /// What all namespaces have in common.
    cgroup_namespace_ns = Must "cgroup_namespace"."ns",
    /// What all namespaces have in common.
    user_namespace_ns = Must "user_namespace"."ns",
    /// What all namespaces have in common.
    pid_namespace_ns = Must "pid_namespace"."ns",
    /// Inode number.
    ns_common_inum = Must "ns_common"."inum",
    /// Never-reused id, from Linux 6.18 on.
    ns_common_ns_id = May "ns_common"."ns_id",
    /// How deep the pid namespace is.
    pid_level = Must "pid"."level",
    /// One number per level.
    pid_numbers = Must "pid"."numbers",
    /// The number.
    upid_nr = Must "upid"."nr",
    /// The pid namespace that it is valid in.
    upid_ns = Must "upid"."ns",
    /// The cgroup in the v2 hierarchy.
    css_set_dfl_cgrp = Must "css_set"."dfl_cgrp",
    /// Its directory.
    cgroup_kn = Must "cgroup"."kn",
    /// Its hierarchy.
    cgroup_root = Must "cgroup"."root",
    /// The directory's id.
    kernfs_node_id = Must "kernfs_node"."id",
    /// The hierarchy's id.
    cgroup_root_hierarchy_id = Must "cgroup_root"."hierarchy_id",
    /// Real uid.
    cred_uid = Must "cred"."uid",
    /// User namespace.
    cred_user_ns = Must "cred"."user_ns",
    /// Threads that are still alive.
    signal_live = Must "signal_struct"."live",
    /// `SIGNAL_GROUP_EXIT` and others.
    signal_flags = Must "signal_struct"."flags",
    /// What the whole process ends with.
    signal_group_exit_code = Must "signal_struct"."group_exit_code",
    /// Set once the out-of-memory killer chose the process.
    signal_oom_mm = May "signal_struct"."oom_mm",
}

/// All that the probes are told. One read-only global, `SETUP`, in every object that needs it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Where fields are.
    pub layout: Layout,
    /// 1 when `sched_process_exit` tells whether the last thread is ending, as its second argument (from Linux 6.17 on).
    pub exit_tells_group_dead: u64,
    /// The host's mount namespace: tasks in it are of no interest.
    pub host_mntns: u64,
    /// The initial user namespace.
    pub host_userns: u64,
    /// Cgroup records are emitted for this hierarchy alone; 0 is v2.
    pub hierarchy: u64,
    /// How many births outside the initial user namespace may be known at one time.
    pub foreign_max: u64,
    /// Processes outside the initial user namespace wake user space at most once in this many nanoseconds.
    pub foreign_wake_ns: u64,
    /// An unread ring buffer wakes user space when it holds this many bytes.
    pub ring_wake_bytes: u64,
    /// The probes stop after so many nanoseconds without a heartbeat of their owner; 0: they have none to look for.
    pub keep_ns: u64,
}

impl Setup {
    /// What an object is compiled with: it does not load.
    pub const UNSET: Setup = Setup {
        layout: Layout::UNKNOWN,
        exit_tells_group_dead: 0,
        host_mntns: 0,
        host_userns: 0,
        hierarchy: 0,
        foreign_max: 0,
        foreign_wake_ns: 0,
        ring_wake_bytes: 0,
        keep_ns: 0,
    };
}

const _: () = {
    assert!(size_of::<Layout>() == 8 * Layout::FIELDS.len());
    assert!(size_of::<Setup>() == size_of::<Layout>() + 64);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_set_at_its_own_place() {
        let place = Layout::FIELDS.iter().position(|f| (f.structure, f.field) == ("nsproxy", "net_ns")).unwrap();
        let mut layout = Layout::UNKNOWN;
        layout.set(place, 40);
        assert_eq!(layout, Layout { nsproxy_net_ns: 40, ..Layout::UNKNOWN });
    }
}
